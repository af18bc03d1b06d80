"""Tiny ImageNet: 22,180 photographs of 64×64, 202 classes with boxes. Validation file held out."""

from __future__ import annotations

from collections.abc import Iterator

from m27.data import messages as say
from m27.data import pairs
from m27.data.boxes import fits_grid, spelled
from m27.data.prompts import ask
from m27.data.sources import parquet
from m27.data.sources.base import (
    Document,
    Item,
    Side,
    of_split,
    shared_file,
)

NAME = "tiny_imagenet"
SIDE = 64
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
    """name_picture for every photograph, draw for every fourth, photo_box for every third boxed one.

    On the test side photo_box for every boxed one. A box that the grid would spoil is not asked for.
    """
    boxed = boxes(split, seed)
    every = 3 if split == "train" else 1
    for number, named in enumerate(
        pairs.named_photographs(of_split(items(), split), split, seed, NAME)
    ):
        yield named
        if number % every == 0 and (found := next(boxed, None)) is not None:
            yield found
    if split == "test":
        yield from boxed


def boxes(split: Side, seed: int) -> Iterator[Document]:
    """photo_box: where is the thing of the photograph, in units of the grid?"""
    for item in say.shuffled(of_split(items(), split), seed + 1):
        box = item.meta["box"]
        if box is None or not fits_grid(tuple(box), SIDE):
            continue
        question = ask("photo_box", say.phrasing(split, seed, item.key), text=item.text)
        messages = say.turn(
            [say.picture(item), say.words(question)], [say.words(spelled(tuple(box), SIDE))]
        )
        yield say.document(item.key, "photo_box", NAME, messages)
