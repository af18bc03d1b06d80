"""Rounds of a comparison: every contender once, then every contender again, so that a machine that
slows down slows all of them; medians over the rounds. Knows no engine.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from benchmarks.peers.process import PeerFailedError

Ids = list[int]
SLOW = 0.3  # a peer that reaches less of the best peer's rate is out of the race …
BEHIND = 0.85  # … and, of many requests, a format that reaches less of its own engine's best one


class Asked(Protocol):
    """What answers; `benchmarks.peers.process.Process` does."""

    def ask(self, question: Mapping[str, Any], timeout: float = ...) -> dict[str, Any]:
        """One answer. Raises PeerFailedError."""
        ...


@dataclass
class Result:
    """What was measured of one contender: values by figure, ids by question, the first failure."""

    values: dict[str, list[float]] = field(default_factory=dict)
    ids: dict[str, list[Ids]] = field(default_factory=dict)
    resident: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    def note(self, figure: str, value: float) -> None:
        """One more value."""
        self.values.setdefault(figure, []).append(value)

    def median(self, figure: str) -> float | None:
        """The median of a figure, None where it was not measured."""
        values = self.values.get(figure)
        return statistics.median(values) if values else None


def rates(kind: str, prompts: Sequence[Ids], count: int, answer: Mapping[str, Any]) -> dict[str, float]:
    """Figures of one answer, tokens a second but for `ttft` (seconds)."""
    first, seconds = answer["first"], answer["seconds"]
    if kind == "one":
        return {
            "prefill": len(prompts[0]) / first, "ttft": first,
            "decode": (count - 1) / (seconds - first),
        }  # fmt: skip
    return {"many": len(prompts) * count / seconds}


def race(
    kind: str,
    peers: Mapping[str, Asked],
    rounds: Sequence[Sequence[Ids]],
    count: int,
    results: dict[str, Result],
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
    until: float = math.inf,
) -> None:
    """One unmeasured round with `rounds[0]`, then one for each of the rest, into `results`.

    `kind` "one" or "many" names the figures. Who fails once is not asked again, and who is out of
    the race after the first round (`out_of_it`) neither. No round is begun that would, at the pace
    of the last one, end after `until` (of `time.monotonic`).
    """
    question = "generate" if kind == "one" else "batch"
    out: set[str] = set()
    took = 0.0
    for number, prompts in enumerate(rounds):
        began = time.monotonic()
        if number > 1 and began + took > until:
            say(f"{kind}: no time for round {number} of {len(rounds) - 1}")
            return
        for name, peer in peers.items():
            result = results.setdefault(name, Result())
            if kind in result.failed or name in out:
                continue
            # The first round is not measured: caches fill, and whatever compiles does so now.
            asked, wanted = (prompts, count) if number else (prompts[:4], 4)
            try:
                answer = peer.ask({"do": question, "prompts": asked, "count": wanted}, 600.0)
                check(answer["ids"], len(asked), wanted)
            except PeerFailedError as error:
                result.failed[kind] = str(error)
                say(f"{name}: {kind}: {error}")
                continue
            result.resident = max(result.resident, answer["resident"])
            if number:
                found = rates(kind, prompts, count, answer)
                for key, value in found.items():
                    result.note(key, value)
                result.ids[f"{kind}{number}"] = answer["ids"]
                text = ", ".join(f"{key} {value:.4g}" for key, value in found.items())
                say(f"round {number}: {name}: {text}")
        if number == 1:
            out = out_of_it(kind, {name: results[name] for name in peers})
        took = time.monotonic() - began


def out_of_it(kind: str, results: Mapping[str, Result], ours: str = "m27") -> set[str]:
    """Who need not be measured again: of one request those `SLOW` in both prefill and decode, of
    many those that are slow or clearly behind (`BEHIND`) another format of the same engine. The
    measure is the best of the others, and `ours`, the engine whose figures are asked for, stays."""
    rivals = {name: result for name, result in results.items() if name.split()[0] != ours}
    out: set[str] = set()
    for name, result in rivals.items():
        figures = ("prefill", "decode") if kind == "one" else ("many",)
        family = [r for other, r in rivals.items() if other.split()[0] == name.split()[0]]
        slow = all(_share(figure, result, rivals.values()) < SLOW for figure in figures)
        if slow or (kind == "many" and _share("many", result, family) < BEHIND):
            out.add(name)
    return out


def _share(figure: str, result: Result, among: Iterable[Result]) -> float:
    """A median as a share of the best one."""
    best = max((other.median(figure) or 0.0 for other in among), default=0.0)
    return (result.median(figure) or 0.0) / (best or 1.0)


def check(ids: Sequence[Ids], rows: int, count: int) -> None:
    """Raises PeerFailedError where not each of the rows has `count` ids: its time would not count."""
    lengths = sorted({len(row) for row in ids})
    if len(ids) != rows or lengths != [count]:
        raise PeerFailedError(f"{rows} answers of {count} ids wanted; {len(ids)} came, of {lengths} ids")


def agreement(
    ids: Mapping[str, list[Ids]], truth: Mapping[str, list[Ids]], stops: Container[int] = ()
) -> dict[str, float] | None:
    """Greedy answers against those of the reference, each up to the reference's first stop id.

    `equal`: the share of ids that are the same at the same place; `prefix`: the mean share of an
    answer before the first that differs. None where no question is common to both.
    """
    pairs = [
        (mine, theirs)
        for key in ids.keys() & truth.keys()
        for mine, theirs in zip(ids[key], truth[key], strict=True)
    ]
    equal = total = 0
    prefixes = []
    for mine, theirs in pairs:
        end = next((i for i, token in enumerate(theirs) if token in stops), len(theirs))
        same = [a == b for a, b in zip(mine[:end], theirs[:end], strict=True)]
        if same:
            equal, total = equal + sum(same), total + len(same)
            prefixes.append((same.index(False) if False in same else len(same)) / len(same))
    if not total:
        return None
    return {
        "equal": equal / total, "prefix": statistics.mean(prefixes), "ids": total,
        "answers": len(prefixes),
    }  # fmt: skip
