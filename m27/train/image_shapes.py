"""Plain coloured shapes, drawn by rule: what shows whether a codec keeps colours and edges.

Photographs and most drawings have few saturated, flat areas; these have nothing else.

Shape suffixes: S side in pixels.
"""

from __future__ import annotations

import colorsys

import numpy as np
from numpy.typing import NDArray

from m27.train.image_data import Pictures

# Names of colours and their RGB, as far apart as common words for colours go.
NAMED: dict[str, tuple[int, int, int]] = {
    "black": (10, 10, 10), "white": (250, 250, 250), "gray": (128, 128, 128),
    "red": (220, 30, 30), "green": (30, 160, 50), "blue": (40, 70, 220),
    "yellow": (250, 220, 40), "orange": (250, 140, 20), "purple": (130, 40, 170),
    "pink": (250, 150, 190), "brown": (130, 80, 40), "teal": (20, 140, 140),
    "cyan": (60, 210, 230),
}  # fmt: skip
SHAPES = ("circle", "rectangle", "triangle", "ring", "stripe")


def shapes(count: int, side: int = 128, seed: int = 0, weight: float = 1.0) -> Pictures:
    """``count`` pictures of one to four shapes on a plain ground, captions like "red circle"."""
    rng = np.random.default_rng([seed, 271])
    pixels, captions = [], []
    for _ in range(count):
        picture, words = _draw(rng, side)
        pixels.append(picture)
        captions.append(words)
    return Pictures("shapes", np.stack(pixels), captions, weight)


def _colour(rng: np.random.Generator) -> tuple[NDArray[np.float32], str]:
    """A colour near a named one half of the time, else any hue; and the name nearest to it."""
    names = tuple(NAMED)
    table = np.array(list(NAMED.values()), dtype=np.float32)
    if rng.random() < 0.6:
        rgb = table[rng.integers(len(names))] + rng.normal(0, 8, 3)
    else:
        hsv = rng.random(), rng.uniform(0.3, 1.0), rng.uniform(0.3, 1.0)
        rgb = np.array(colorsys.hsv_to_rgb(*hsv)) * 255
    rgb = np.clip(rgb, 0, 255).astype(np.float32)
    return rgb, names[int(((table - rgb) ** 2).sum(1).argmin())]


def _draw(rng: np.random.Generator, side: int) -> tuple[NDArray[np.uint8], str]:
    """One picture ``[S, S, 3]`` and its caption, drawn at twice the size and averaged down."""
    big = side * 2
    y, x = np.mgrid[0:big, 0:big].astype(np.float32) + 0.5
    ground = np.array([250.0] * 3, np.float32) if rng.random() < 0.4 else _colour(rng)[0]
    picture = np.broadcast_to(ground, (big, big, 3)).copy()
    words = []
    for _ in range(int(rng.integers(1, 5))):
        rgb, name = _colour(rng)
        kind = SHAPES[int(rng.integers(len(SHAPES)))]
        cx, cy = rng.uniform(0.1, 0.9, 2) * big
        w, h = rng.uniform(0.08, 0.45, 2) * big
        u, v = (x - cx) / w, (y - cy) / h
        if kind == "rectangle":
            mask = (abs(u) < 0.8) & (abs(v) < 0.8)
        elif kind == "triangle":
            mask = (v < 0.8) & (v > 2 * abs(u) - 0.8)
        elif kind == "stripe":
            turn = rng.uniform(0, np.pi)
            mask = abs((x - cx) * np.cos(turn) + (y - cy) * np.sin(turn)) < w * 0.3
        else:
            r = np.hypot((x - cx) / w, (y - cy) / w)
            mask = (r < 0.8) if kind == "circle" else (r < 0.9) & (r > 0.6)
        picture[mask] = rgb
        words.append(f"{name} {kind}")
    small = picture.reshape(side, 2, side, 2, 3).mean((1, 3))
    return small.round().astype(np.uint8), ", ".join(words)
