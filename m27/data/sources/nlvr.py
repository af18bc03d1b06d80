"""NLVR: rendered pictures of blocks, each with a sentence that is true or false of it.

Suhr, Lewis, Yeh, Artzi: "A corpus of natural language for visual reasoning", ACL 2017.
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

NAME = "nlvr"
LICENCE = "CC-BY 4.0"
ORIGIN = "lil-lab/nlvr (Suhr et al. 2017)"


def items() -> Iterator[Item]:
    """Every picture (400×100); text is the sentence, `meta["label"]` whether it is true."""
    for file, side in (("dev", "train"), ("test", "test")):
        path = shared_file(f"nlvr/{file}.parquet", ORIGIN)
        for number, row in enumerate(parquet.rows(path)):
            meta = {"split": side, "label": bool(row["label"]), "whole": True}
            sentence = row["sentence"].strip()
            yield Item(f"{NAME}/{file}/{number:04d}", "blocks", sentence, row["image"], meta=meta)


def documents(split: Side, seed: int) -> Iterator[Document]:
    """vqa: whether the sentence is true of the picture, answered yes or no."""
    for item in say.shuffled(of_split(items(), split), seed):
        sentence = item.text.rstrip(".").lower()
        question = say.words(ask("vqa", None, text=f"is it true? {sentence}."))
        answer = say.words("yes" if item.meta["label"] else "no")
        yield say.document(item.key, "vqa", NAME, say.turn([say.picture(item), question], [answer]))
