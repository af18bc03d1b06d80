"""CIFAR-10: 60,000 photographs of 32×32 in ten classes (Krizhevsky 2009). Test file held out."""

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

NAME = "cifar10"
LICENCE = "none stated; free for research (Krizhevsky 2009)"
ORIGIN = "the Hub's uoft-cs/cifar10"
CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


def items() -> Iterator[Item]:
    """Every photograph; concept and text are the class, `meta["split"]` the official side."""
    for side in ("train", "test"):
        path = shared_file(f"cifar10/cifar10-{side}.parquet", ORIGIN)
        for number, row in enumerate(parquet.rows(path, ("img", "label"))):
            name = CLASSES[row["label"]]
            yield Item(f"{NAME}/{side}/{number:05d}", name, name, row["img"], meta={"split": side})


def documents(split: Side, seed: int) -> Iterator[Document]:
    """name_picture for every photograph, answered by the bare class; draw for every fourth."""
    yield from pairs.named_photographs(of_split(items(), split), split, seed, NAME)
