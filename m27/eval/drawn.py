"""GenEval of pictures that any model drew: the official folder → the official results, and a row.

A folder a prompt (`00000`, …) with `metadata.jsonl`, a line of `evaluation_metadata.jsonl`, and `samples/0000.png`, ….
What was found in each picture is kept as it comes, so that a run goes on where it was ended; `results.jsonl` has the
columns of the official program, whose `summary_scores.py` reads it. The verdicts are those of `scorers.geneval`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from m27 import __version__
from m27.data.media_parts import pixels
from m27.data.progress import Progress
from m27.eval.journal import Journal
from m27.eval.report import commit, files_hash
from m27.eval.scorers.geneval import SCORER, Box, Found, judge, kept, overall
from m27.eval.statistics import estimate

Pixels = npt.NDArray[np.uint8]
_PICTURE = re.compile(r"\d+\.png")


class DrawnError(ValueError):
    """A folder that is not in the official form; the message names the file."""


class Finder(Protocol):
    """A detector with a name; `classes` are those that it knows."""

    name: str
    classes: frozenset[str]

    def __call__(self, picture: Pixels, /) -> Found:
        """What is in a picture."""


class Reader(Protocol):
    """A colour reader with a name."""

    name: str

    def __call__(self, picture: Pixels, boxes: Sequence[Box], name: str, /) -> Sequence[str]:
        """The colour of each box."""


@dataclass(frozen=True)
class Drawing:
    """One picture and what was asked for."""

    key: str
    path: Path
    request: dict[str, Any]


def drawings(folder: Path) -> Iterator[Drawing]:
    """Every picture of the folder, in order. Raises DrawnError where there is none or a request is broken."""
    count = 0
    for place in sorted(p for p in folder.iterdir() if p.is_dir() and p.name.isdigit()):
        file = place / "metadata.jsonl"
        try:
            request = json.loads(file.read_text(encoding="utf-8"))
            missing = [name for name in ("tag", "prompt", "include") if name not in request]
        except (OSError, ValueError, TypeError) as error:
            raise DrawnError(f"{file}: {error}") from error
        if missing:
            raise DrawnError(f"{file}: no {missing[0]!r}")
        for path in sorted((place / "samples").glob("*.png")):
            if _PICTURE.fullmatch(path.name):
                count += 1
                yield Drawing(f"{place.name}/samples/{path.name}", path, request)
    if not count:
        raise DrawnError(f"{folder}: no 00000/samples/0000.png here, the form in which GenEval's pictures are kept")


def score(
    folder: Path,
    finder: Finder,
    reader: Reader,
    out: Path,
    *,
    most: int | None = None,
    fresh: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """The row; `out` has what was found and the official results. `most`: prompts. Raises DrawnError, and JournalError
    where `out` holds another run."""
    every = list(drawings(folder))
    if most is not None:
        prompts = list(dict.fromkeys(one.path.parent for one in every))[:most]
        every = [one for one in every if one.path.parent in prompts]
    unknown = sorted({c["class"] for one in every for c in one.request["include"]} - finder.classes)
    notes = [f"{finder.name} does not know {', '.join(unknown)}, so none of them is found"] if unknown else []
    if fresh:
        for name in ("settings.json", "found.jsonl", "results.jsonl", "rows.jsonl"):
            (out / name).unlink(missing_ok=True)
    settings = {
        "task": folder.name, "metric": "geneval", "detector": finder.name, "colours": reader.name, "scorer": SCORER,
        "data_revision": files_hash([one.path for one in every]), "commit": commit(), "m27": __version__,
    }  # fmt: skip
    journal = Journal(out, settings)
    done = journal.lines("found.jsonl")
    todo = [one for one in every if one.key not in done]
    with Progress(f"{folder.name}: looking", len(todo)) as bar:
        for one in todo:
            journal.append("found.jsonl", {"key": one.key, **_judged(one, finder, reader)})
            bar.add()
    done = journal.lines("found.jsonl")
    journal.settle("results.jsonl", [_official(folder, one, done[one.key]) for one in every])
    row = {**settings, **_figures(every, done), "notes": notes}
    journal.settle("rows.jsonl", [row])
    say(line(row))
    return row


def _judged(one: Drawing, finder: Finder, reader: Reader) -> dict[str, Any]:
    picture = pixels({"type": "image", "path": one.path})
    objects = kept(finder(picture), one.request["tag"])
    verdict = judge(one.request, objects, reader, picture)
    found = {name: [list(asdict(box).values()) for box in boxes] for name, boxes in objects.items()}
    return {"right": verdict.right, "faults": list(verdict.faults), "found": found}


def _official(folder: Path, one: Drawing, found: dict[str, Any]) -> dict[str, Any]:
    """A line of the official results, whose metadata and details are JSON within JSON."""
    return {
        "filename": str(folder / one.key), "tag": one.request["tag"], "prompt": one.request["prompt"],
        "correct": found["right"], "reason": "\n".join(found["faults"]), "metadata": json.dumps(one.request),
        "details": json.dumps(found["found"]),
    }  # fmt: skip


def _figures(every: Sequence[Drawing], done: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The mean over tags, its interval by resampling prompts with their pictures, and each tag's share."""
    verdicts = [(one.request["tag"], bool(done[one.key]["right"])) for one in every]
    whole, shares = overall(verdicts)
    counts = {tag: sum(tag == other for other, _ in verdicts) for tag in shares}
    prompts: dict[Path, list[float]] = {}
    tags: dict[Path, str] = {}
    for one, (tag, right) in zip(every, verdicts, strict=True):
        prompts.setdefault(one.path.parent, []).append(float(right))
        tags[one.path.parent] = tag
    found = estimate(list(prompts.values()), [len(p) / counts[tags[key]] for key, p in prompts.items()])
    infinite = abs(found.low) == float("inf")
    return {
        "score": whole, "low": None if infinite else found.low, "high": None if infinite else found.high,
        "n": len(prompts), "pictures": len(every), "lower_is_better": False, "share": True,
        "figures": {
            **{f"tag: {tag}": share for tag, share in shares.items()},
            "correct images": sum(right for _, right in verdicts) / len(verdicts),
            "correct prompts": sum(max(p) for p in prompts.values()) / len(prompts),
        },
    }  # fmt: skip


def line(row: dict[str, Any]) -> str:
    """A row in words: the score, the tags', who looked, and what must be said."""
    interval = "" if row["low"] is None else f" (95 %: {100 * row['low']:.1f} % to {100 * row['high']:.1f} %)"
    head = f"{row['task']} geneval: {100 * row['score']:.1f} %{interval}, n {row['n']} ({row['pictures']} pictures)"
    told = [f"{name} {value:.3f}" for name, value in row["figures"].items()]
    return "\n  ".join([head, *told, f"objects by {row['detector']}", f"colours by {row['colours']}", *row["notes"]])
