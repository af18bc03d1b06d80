"""Grocery Store: 5,421 shop photographs of 81 products with a description each. Test file held out.

Klasson, Zhang, Kjellström: "A hierarchical grocery store image dataset", WACV 2019.
"""

from __future__ import annotations

from collections.abc import Iterator

from m27.data import messages as say
from m27.data.prompts import ask
from m27.data.sources import parquet
from m27.data.sources.base import (
    Document,
    Item,
    Side,
    of_split,
    shared_file,
)

NAME = "grocery"
LICENCE = "MIT"
ORIGIN = "GroceryStoreDataset (Klasson et al. 2019)"


def items() -> Iterator[Item]:
    """Every photograph; text is the kind ("apple"), `meta["name"]` the product's full name."""
    for file, side in (("train", "train"), ("val", "train"), ("test", "test")):
        path = shared_file(f"grocery/{file}.parquet", ORIGIN)
        columns = ("image", "name", "kind", "description")
        for number, row in enumerate(parquet.rows(path, columns)):
            name, kind = _words(row["name"]), _words(row["kind"])
            meta = {"split": side, "name": name, "description": row["description"]}
            yield Item(f"{NAME}/{file}/{number:05d}", name, kind, row["image"], meta=meta)


def _words(label: str) -> str:
    """'Golden-Delicious' → 'golden delicious'; the two plural kinds become singular."""
    words = label.replace("-", " ").lower()
    return {"carrots": "carrot", "satsumas": "satsuma"}.get(words, words)


def documents(split: Side, seed: int) -> Iterator[Document]:
    """name_picture for every photograph, answered by the kind of product ("apple")."""
    for item in say.shuffled(of_split(items(), split), seed):
        question = say.words(ask("name_picture", say.phrasing(split, seed, item.key)))
        messages = say.turn([say.picture(item), question], [say.words(item.text)])
        yield say.document(item.key, "name_picture", NAME, messages)
