"""Boxes as answers: "left top right bottom" in whole units of an 8×8 grid, the codes of a picture.

A unit is 16 pixels of a made scene and a digit of the answer, so a box is four digits: a small model
learns them sooner than hundredths. Rounding costs overlap; `fits_grid` says where too much.
"""

from __future__ import annotations

Box = tuple[int, int, int, int]
GRID = 8  # a box counts the lines between the codes: 0 … 8
SIZE = 128  # pixels of a made picture


def on_grid(box: Box, size: int = SIZE) -> Box:
    """A box in pixels of a square picture of `size`, rounded to the grid; at least one unit wide."""
    x0, y0, x1, y1 = (min(GRID, max(0, round(value * GRID / size))) for value in box)
    x0, y0 = min(x0, GRID - 1), min(y0, GRID - 1)
    return x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)


def spelled(box: Box, size: int = SIZE) -> str:
    """A box as an answer: "2 1 6 5"."""
    return " ".join(str(value) for value in on_grid(box, size))


def overlap(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Intersection over union of two boxes x0, y0, x1, y1."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0.0, wide) * max(0.0, high)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / (sum(areas) - shared) if shared else 0.0


def fits_grid(box: Box, size: int = SIZE, least: float = 0.6) -> bool:
    """Whether rounding to the grid keeps `least` of a box's overlap with itself."""
    unit = size / GRID
    return overlap(box, tuple(value * unit for value in on_grid(box, size))) >= least
