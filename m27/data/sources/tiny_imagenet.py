"""Tiny ImageNet: 22,180 photographs of 64×64, 202 classes with boxes. Validation file held out."""

from __future__ import annotations

from collections.abc import Iterator

from m27.data import pairs
from m27.data.sources import parquet
from m27.data.sources.base import (
    Document,
    Item,
    Side,
    of_split,
    shared_file,
)

NAME = "tiny_imagenet"
LICENCE = "ImageNet terms: non-commercial research; train, do not ship"
ORIGIN = "the Hub's zh-plus/tiny-imagenet"


def items() -> Iterator[Item]:
    """Every photograph; `meta["box"]` is x0, y0, x1, y1 in pixels of 64×64, or None."""
    for file, side in (("train", "train"), ("val", "test")):
        path = shared_file(f"tiny-imagenet/{file}.parquet", ORIGIN)
        for number, row in enumerate(parquet.rows(path, ("image", "name", "box"))):
            name = row["name"].lower()
            meta = {"split": side, "box": row["box"]}
            yield Item(f"{NAME}/{side}/{number:05d}", name, name, row["image"], meta=meta)


def documents(split: Side, seed: int) -> Iterator[Document]:
    """name_picture for every photograph, answered by the bare name; draw for every fourth."""
    yield from pairs.named_photographs(of_split(items(), split), split, seed, NAME)
