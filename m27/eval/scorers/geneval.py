"""GenEval: whether a drawn picture holds what was asked, from the boxes that a detector found.

Objects, counts, colours, relative positions and colours bound to objects. A detector is any
function from a picture to `Found`; a colour reader says the colour of each object; those that ship
are `m27.eval.detectors`. Which of either was used must stand beside the score: the official program
uses Mask2Former and CLIP ViT-L/14.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SCORER = "github.com/djghosh13/geneval@af4902f24d3ca90ebbb446dd9891a59e0f82725f"

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9  # of confidence; the second for counting
MOST = 16  # objects of one class
POSITION_THRESHOLD = 0.1  # share of both sizes that an offset must exceed


@dataclass(frozen=True)
class Box:
    """A found object: corners in pixels, confidence 0 to 1."""

    left: float
    top: float
    right: float
    bottom: float
    confidence: float = 1.0


Found = Mapping[str, Sequence[Box]]
Detector = Callable[[Any], Found]
ColourReader = Callable[[Any, Sequence[Box], str], Sequence[str]]


@dataclass(frozen=True)
class Verdict:
    """Whether a picture is right, and what is wrong with it, a line each."""

    right: bool
    faults: tuple[str, ...] = ()


def overlap(a: Box, b: Box) -> float:
    """Intersection over union, edges included: 0 to 1."""

    def area(left: float, top: float, right: float, bottom: float) -> float:
        return max(right - left + 1, 0) * max(bottom - top + 1, 0)

    shared = area(
        max(a.left, b.left), max(a.top, b.top), min(a.right, b.right), min(a.bottom, b.bottom)
    )
    whole = sum(area(box.left, box.top, box.right, box.bottom) for box in (a, b)) - shared
    return shared / whole if whole else 0.0


def kept(found: Found, tag: str, most_overlap: float = 1.0) -> dict[str, list[Box]]:
    """The boxes that count, surest first: over the threshold of the prompt's `tag`, 16 a class.

    With `most_overlap` below 1, boxes that overlap a surer one by as much are dropped.
    """
    threshold = COUNTING_THRESHOLD if tag == "counting" else THRESHOLD
    out: dict[str, list[Box]] = {}
    for name, boxes in found.items():
        surest = sorted(boxes, key=lambda box: -box.confidence)
        left = [box for box in surest if box.confidence > threshold][:MOST]
        chosen: list[Box] = []
        while left:
            chosen.append(left.pop(0))
            if most_overlap < 1:
                left = [box for box in left if overlap(chosen[-1], box) < most_overlap]
        if chosen:
            out[name] = chosen
    return out


def relations(a: Box, b: Box) -> set[str]:
    """Where `a` lies from `b`: "left of", "right of", "above", "below", two of them or none."""
    offset = (
        (a.left + a.right) / 2 - (b.left + b.right) / 2,
        (a.top + a.bottom) / 2 - (b.top + b.bottom) / 2,
    )
    sizes = (
        abs(a.right - a.left) + abs(b.right - b.left),
        abs(a.bottom - a.top) + abs(b.bottom - b.top),
    )
    clear = [
        math.copysign(max(abs(by) - POSITION_THRESHOLD * size, 0), by)
        for by, size in zip(offset, sizes, strict=True)
    ]
    if all(abs(by) < 1e-3 for by in clear):
        return set()
    across, down = (by / math.hypot(*offset) for by in clear)
    names = {
        "left of": across < -0.5,
        "right of": across > 0.5,
        "above": down < -0.5,
        "below": down > 0.5,
    }
    return {name for name, holds in names.items() if holds}


def judge(
    request: Mapping[str, Any], objects: Found, colours: ColourReader, picture: Any = None
) -> Verdict:
    """Whether `objects` (of `kept`) meet a request in the official form of `metadata.jsonl`.

    Every clause of `include` must hold: so many of a class, the surest of them of the colour, and
    each lying as asked from each of the group named. No clause of `exclude` may.
    """
    faults: list[str] = []
    groups: list[Sequence[Box] | None] = []
    for clause in request.get("include", ()):
        name, count = clause["class"], clause["count"]
        boxes = objects.get(name, ())[:count]
        wrong = []
        if len(boxes) < count:
            wrong.append(f"expected {name}>={count}, found {len(boxes)}")
        else:
            if "color" in clause:
                wrong += _miscoloured(clause, colours(picture, boxes, name))
            if "position" in clause and not wrong:
                relation, target = clause["position"]
                wrong += _misplaced(name, boxes, relation, groups[target])
        faults += wrong
        groups.append(None if wrong else boxes)
    for clause in request.get("exclude", ()):
        name, count = clause["class"], clause["count"]
        if len(objects.get(name, ())) >= count:
            faults.append(f"expected {name}<{count}, found {len(objects.get(name, ()))}")
    return Verdict(not faults, tuple(faults))


def assess(
    picture: Any, request: Mapping[str, Any], detector: Detector, colours: ColourReader
) -> Verdict:
    """Whether a picture meets a request, by what `detector` finds in it."""
    return judge(request, kept(detector(picture), request["tag"]), colours, picture)


def _miscoloured(clause: Mapping[str, Any], seen: Sequence[str]) -> list[str]:
    right = sum(colour == clause["color"] for colour in seen)
    if right >= clause["count"]:
        return []
    wanted = f"{clause['color']} {clause['class']}>={clause['count']}"
    return [f"expected {wanted}, found {right}; colours: {', '.join(seen)}"]


def _misplaced(
    name: str, boxes: Sequence[Box], relation: str, target: Sequence[Box] | None
) -> list[str]:
    if target is None:
        return [f"no target for {name} to be {relation}"]
    for box in boxes:
        for other in target:
            true = relations(box, other)
            if relation not in true:
                return [f"expected {name} {relation} target, found {' and '.join(sorted(true))}"]
    return []


def overall(verdicts: Sequence[tuple[str, bool]]) -> tuple[float, dict[str, float]]:
    """The official score, the mean over tags of the share right, and each tag's share."""
    tags: dict[str, list[bool]] = {}
    for tag, right in verdicts:
        tags.setdefault(tag, []).append(right)
    shares = {tag: sum(every) / len(every) for tag, every in tags.items()}
    return (sum(shares.values()) / len(shares) if shares else 0.0), shares
