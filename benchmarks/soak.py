"""A thousand requests of random kind, length and arrival, a tenth of them cancelled.

    python -m benchmarks.soak --precision int8
    python -m benchmarks.soak --requests 100 --sample 20     # a trial

None may be lost or mixed up: what is answered is compared, id by id, with the same request asked alone (a
sample of them; each has a seed of its own, so no two answers are alike). All blocks of the cache come back,
memory stays level, and what the engine does besides the runner (grammar, sampling, guidance, events) takes
a small part of the step. Prints a table, writes JSON; exit status 1 where something of that fails.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # found from any folder

from benchmarks import machine
from m27.codec.media import write_atomic
from m27.infer.engine import Engine
from m27.infer.request import Refused, Request
from m27.infer.scheduler import Limits

RESULTS = Path(__file__).resolve().parent / "results"
WORDS = "sea wind apple river stone cloud bread house cat bird red small far old new three".split()


@dataclass
class Asked:
    """A request under way. `cancel_at`: tokens' worth of steps after which it is let go of."""

    request: Request
    number: int
    cancel_at: int | None
    steps: int = 0
    kinds: list[str] = field(default_factory=list)


@dataclass
class Tally:
    """What came of the requests, each by its place."""

    done: dict[int, list[int]] = field(default_factory=dict)
    cancelled: set[int] = field(default_factory=set)
    failed: dict[int, str] = field(default_factory=dict)
    refused: int = 0
    wrong: list[str] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)  # MB after each request that ended


def request(rng: random.Random, place: int) -> Request:
    """One of random kind and length, never twice the same."""
    text = " ".join(rng.choice(WORDS) for _ in range(rng.choice((3, 10, 40, 150))))
    kind = rng.choices(("text", "image", "audio", "free"), (6, 2, 2, 2))[0]
    options: dict[str, Any] = {"max_tokens": rng.randint(4, 96), "modalities": ("text",)}
    if kind == "image":
        side = rng.choice((2, 4, 8))
        options = {"plan": ("image",), "image_grid": (side, side), "max_tokens": 100}
    elif kind == "audio":
        codes = rng.randint(4, 60)
        options = {"plan": ("audio",), "max_audio_codes": codes, "max_tokens": codes + 8}
    elif kind == "free":
        options = {"max_tokens": rng.randint(80, 200), "max_audio_codes": 40}
    if rng.random() < 0.3:
        options |= {"temperature": 0.0}
    return Request(
        [{"role": "user", "content": f"{place}: {text}"}], seed=place,
        guidance=rng.choice((1.0, 2.5)), priority=rng.choice((0, 0, 0, 1)),
        tenant=rng.choice(("", "a", "b")), **options,
    )  # fmt: skip


def soak(engine: Engine, count: int, seed: int, share: float = 0.1) -> tuple[Tally, list[Request]]:
    """Ask `count` requests that arrive at random, cancel a share of them, and wait for the rest."""
    rng = random.Random(seed)
    requests = [request(rng, place) for place in range(count)]
    doomed = {p: rng.randint(0, 40) for p in range(count) if rng.random() < share}
    tally = Tally()
    open_: dict[int, tuple[int, Asked]] = {}
    place, pause = 0, 0
    while place < count or open_:
        while place < count and pause <= 0:
            try:
                number = engine.add(requests[place])
            except Refused:
                tally.refused += 1
                pause = 5
                break
            open_[number] = (place, Asked(requests[place], number, doomed.get(place)))
            place += 1
            pause = int(rng.expovariate(0.7)) if rng.random() < 0.7 else 0
        pause -= 1
        for number, event in engine.step():
            _take(tally, open_, number, event)
        for number, (mine, asked) in list(open_.items()):
            asked.steps += 1
            if asked.cancel_at is not None and asked.steps > asked.cancel_at:
                engine.cancel(number)
                tally.cancelled.add(mine)
                del open_[number]
                tally.memory.append(resident())
    for number, event in engine.step():
        tally.wrong.append(f"request {number}: {event['type']} after all had ended")
    return tally, requests


def _take(
    tally: Tally, open_: dict[int, tuple[int, Asked]], number: int, event: dict[str, Any]
) -> None:
    if number not in open_:
        tally.wrong.append(f"request {number}: {event['type']} after its end")
        return
    place, asked = open_[number]
    kind = event["type"]
    medium = kind.partition("_")[0]
    if medium in ("text", "image", "audio") and medium not in asked.request.modalities:
        tally.wrong.append(f"request {place}: {kind}, which it did not ask for")
    if kind in ("done", "error"):
        del open_[number]
        if kind == "done":
            tally.done[place] = list(event["ids"])
        else:
            tally.failed[place] = event["message"]
        tally.memory.append(resident())


def alone(engine: Engine, asked: Request) -> list[int]:
    """The ids of one request while nothing else is under way. Raises RuntimeError where it fails."""
    engine.add(asked)
    ids: list[int] = []
    while engine.busy():
        for _, event in engine.step():
            if event["type"] == "error":
                raise RuntimeError(event["message"])
            ids = list(event.get("ids", ids))
    return ids


def compare(
    engine: Engine, tally: Tally, requests: Sequence[Request], sample: int, seed: int
) -> dict[str, Any]:
    """How many of a sample of answers are, id by id, those that the same request has alone.

    A runner whose sums depend on what shares a step may turn a draw that is as good as even; such an
    answer begins like its own and is told from one that was mixed up by the length of that beginning:
    `prefix` is the mean share before the first difference.
    """
    places = random.Random(seed).sample(sorted(tally.done), min(sample, len(tally.done)))
    same, shares = 0, []
    for place in places:
        mine, own = tally.done[place], alone(engine, requests[place])
        together = next((i for i, (a, b) in enumerate(zip(mine, own, strict=False)) if a != b), None)
        if together is None:
            together = min(len(mine), len(own))
        same += mine == own
        shares.append(together / max(len(mine), len(own), 1))
    return {"compared": len(places), "same": same, "prefix": sum(shares) / max(len(shares), 1)}


def resident() -> int:
    """Resident memory in MB; 0 where it is not told."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    import resource

    return pages * resource.getpagesize() // 1_000_000


def growth(memory: Sequence[int]) -> float:
    """By how much memory grew over the second half, in MB: mean of the last tenth of all values less
    that of the first tenth after the middle."""
    tenth = max(1, len(memory) // 10)
    middle = len(memory) // 2
    before, after = memory[middle : middle + tenth], memory[-tenth:]
    return sum(after) / len(after) - sum(before) / len(before) if before and after else 0.0


def judge(found: dict[str, Any]) -> list[str]:
    """What fails."""
    faults = [f"{name}: {found[name]}" for name in ("lost", "failed", "blocks_held") if found[name]]
    faults += found["wrong"]
    if found["same"] < found["compared"]:
        faults.append(f"{found['compared'] - found['same']} answers are not those given alone")
    if found["memory_growth_mb"] > 0.02 * found["memory_mb"]:
        faults.append(f"memory grew by {found['memory_growth_mb']:.0f} MB over the second half")
    if found["beside_runner"] > 0.1:
        faults.append(f"{found['beside_runner']:.1%} of the step are spent beside the runner")
    return faults


def measure(engine: Engine, count: int, sample: int, seed: int) -> dict[str, Any]:
    """Soak, compare, and say what came of it."""
    began = time.perf_counter()
    tally, requests = soak(engine, count, seed)
    seconds = time.perf_counter() - began
    metrics = engine.metrics()
    parts = metrics["seconds"]
    return {
        "requests": count, "done": len(tally.done), "cancelled": len(tally.cancelled),
        "failed": len(tally.failed), "refused_and_asked_again": tally.refused,
        "lost": count - len(tally.done) - len(tally.cancelled) - len(tally.failed),
        "wrong": tally.wrong[:20], "why": list(tally.failed.values())[:5],
        "seconds": round(seconds, 1), "steps": metrics["steps"], "preempted": metrics["preempted"],
        "tokens": metrics["tokens"], "completion_tokens": metrics["completion_tokens"],
        "blocks_held": metrics["blocks"]["used"],
        "memory_mb": max(tally.memory, default=0), "memory_growth_mb": round(growth(tally.memory), 1),
        "seconds_by_part": {name: round(value, 2) for name, value in parts.items()},
        "beside_runner": round(1 - parts["run"] / max(sum(parts.values()), 1e-9), 4),
        **compare(engine, tally, requests, sample, seed),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Soak, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    root = Path(__file__).resolve().parents[1]
    parser.add_argument("--model", type=Path, default=root / "weights/m27-nano")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--sample", type=int, default=100)
    parser.add_argument("--blocks", type=int, default=None, help="a small cache forces preemption")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "soak.json")
    given = parser.parse_args(arguments)
    limits = Limits(blocks=given.blocks)
    engine = Engine.load(
        given.model, precision=given.precision, threads=given.threads, limits=limits
    )
    try:
        found = measure(engine, given.requests, given.sample, given.seed)
    finally:
        getattr(engine, "close", lambda: None)()
    about = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine.describe(given.threads), "precision": given.precision,
    }  # fmt: skip
    faults = judge(found)
    text = json.dumps({**about, **found, "faults": faults}, indent=1, ensure_ascii=False) + "\n"
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(given.out, text.encode())
    print("| | |\n|---|---|")
    for name, value in found.items():
        print(f"| {name.replace('_', ' ')} | {value} |")
    for fault in faults:
        print(f"FAULT: {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
