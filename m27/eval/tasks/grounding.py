"""Where is it? The box of a named thing, as text, against the true one.

A box is "left top right bottom" on the grid of the picture's codes (`m27.data.makers.scenes`).
Right is an overlap (intersection over union) of at least a half; what is no box is wrong.
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

from m27.data.makers.scenes import GRID
from m27.eval.bench import Bench, Records
from m27.eval.report import Row, bars
from m27.eval.score import wilson
from m27.eval.tasks.naming import BAR
from m27.eval.tasks.sample import data_hash
from m27.eval.tasks.scenes import asked

Box = tuple[float, float, float, float]
Boxes = npt.NDArray[np.float64]  # [N, 4]: left, top, right, bottom
ENOUGH = 0.5
MAX_TOKENS = 16


def parsed(text: str) -> Box | None:
    """The box that an answer gives, or None: its first four numbers, if they span a rectangle.

    >>> parsed("2 1 6 5"), parsed("6 1 2 5"), parsed("a dog")
    ((2.0, 1.0, 6.0, 5.0), None, None)
    """
    numbers = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)[:4]]
    if len(numbers) < 4:
        return None
    left, top, right, bottom = numbers
    return (left, top, right, bottom) if left < right and top < bottom else None


def overlaps(ones_N4: Boxes, others_M4: Boxes) -> npt.NDArray[np.float64]:
    """Intersection over union of every box of `ones` with every box of `others`, [N, M]."""
    a, b = ones_N4[:, None], others_M4[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = sides.clip(0).prod(-1)
    areas = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1)
    return np.asarray(shared / (areas - shared))


def best_constant(true_N4: Boxes) -> tuple[Box, float]:
    """The one box on the grid that is right most often for these very things, and how often."""
    low, high = np.triu_indices(GRID + 1, 1)
    spans = np.stack([low, high], 1).astype(float)
    across, down = np.repeat(spans, len(spans), 0), np.tile(spans, (len(spans), 1))
    every = np.stack([across[:, 0], down[:, 0], across[:, 1], down[:, 1]], 1)
    shares = (overlaps(every, true_N4) >= ENOUGH).mean(1)
    left, top, right, bottom = every[int(shares.argmax())]
    return (left, top, right, bottom), float(shares.max())


class Grounding:
    """The share of things found; `levels` are the floor and the goal."""

    def __init__(
        self, name: str, source: str, task: str, levels: tuple[float, float] | None = None
    ) -> None:
        self.name, self.source, self.task, self.levels = name, source, task, levels

    def run(self, bench: Bench) -> tuple[Row, Records]:
        """Ask for boxes; beside it the best constant box, and boxes of other things (chance)."""
        samples = asked(self.source, (self.task,), bench.samples, bench.seed, lambda _: "")
        boxes = [parsed(sample.answer) for sample in samples]
        true = np.array([box for box in boxes if box is not None])
        if len(true) < 2 or len(true) < len(samples):
            raise ValueError(f"{self.source}: documents of {self.task} without boxes")
        answers = bench.answers([s.messages for s in samples], MAX_TOKENS, self.name)
        given = [parsed(answer) for answer in answers]
        records: Records = []
        for sample, answer, box, gold in zip(samples, answers, given, true, strict=True):
            share = 0.0 if box is None else float(overlaps(np.array([box]), gold[None])[0, 0])
            records.append(
                {"id": sample.id, "answer": sample.answer, "prediction": answer, "iou": share,
                 "right": share >= ENOUGH}
            )  # fmt: skip
        right, n = sum(r["right"] for r in records), len(records)
        low, high = wilson(right, n)
        same = overlaps(true, true) >= ENOUGH
        constant, frequent = best_constant(true)
        chance = float((same.sum() - n) / (n * (n - 1)))
        if self.levels is not None:
            passed, goal, bar = bars(right / n, *self.levels)
        else:
            passed, goal, bar = low > max(chance, frequent), False, BAR
        mean = sum(r["iou"] for r in records) / n
        row = Row(
            task=self.name, n=n, score=right / n, low=low, high=high, chance=chance,
            frequent=frequent, by_kind=None, passed=passed, goal=goal,
            bar=bar, data=data_hash(samples), seconds=0.0,
            origin=bench.origin,
            note=f"mean IoU {mean:.3f}; no box in {given.count(None)} answers; best constant box "
            f"{' '.join(f'{side:.0f}' for side in constant)}",
        )  # fmt: skip
        return row, records


GROUNDING = Grounding("grounding", "scenes", "scene_box", (0.30, 0.70))
GROUNDING_PHOTOS = Grounding("grounding-photos", "tiny_imagenet", "photo_box")
