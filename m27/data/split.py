"""A held-out part of a user's own documents, chosen by what they hold: no list and no luck of the order.

Documents about the same media, or with the same words where there are none, are always on one side: both
directions of a captioned picture are, and so are records that stand twice. Which side depends on that
content, the seed and the share alone, so it stays when records are added, removed or sorted. Knows no format.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sized
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from m27.data.check import CheckError, conversations
from m27.data.sources.base import Document


class Side:
    """One side of a split; can be gone through again as often as its source can."""

    def __init__(self, source: Iterable[Document], chosen: bytes) -> None:
        self._source, self._chosen = source, chosen

    def __len__(self) -> int:
        return sum(self._chosen)

    def __iter__(self) -> Iterator[Document]:
        return compress(self._source, self._chosen)


class Split(NamedTuple):
    """The documents to train on, and those to evaluate on."""

    train: Side
    held_out: Side


def split(documents: Iterable[Document], share: float = 0.1, seed: int = 0) -> Split:
    """About `share` of the documents' contents held out, at least one content and never all of them.

    What has a length can be gone through again, and is; another iterable is listed first.
    With fewer than two contents nothing is held out. Where chance holds out none, the content that comes
    nearest is, until one is added that comes nearer. Media are read once, as bytes. Raises CheckError for
    a file that is gone, ValueError for a share outside 0..1.
    """
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"a share of {share} is not between 0 and 1")
    source: Iterable[Document] = documents if isinstance(documents, Sized) else list(documents)
    files: dict[str, str] = {}  # so that a picture of many records is read once
    places = [fraction(content(document, files), seed) for document in source]
    held = {place for place in places if place < share}
    every = set(places)
    if share > 0 and not held and len(every) > 1:
        held = {min(every)}
    if held == every and every:
        held.discard(max(every))
    chosen = bytes(place in held for place in places)
    return Split(Side(source, bytes(1 - one for one in chosen)), Side(source, chosen))


def fraction(digest: str, seed: int) -> float:
    """Where a content lies in [0, 1), the same for ever."""
    found = hashlib.sha256(f"m27-split:{seed}:{digest}".encode()).digest()
    return int.from_bytes(found[:8], "big") / 2**64


def content(document: Mapping[str, Any], files: dict[str, str] | None = None) -> str:
    """Hash of a document's media, in no order; of its roles and words where it has none.

    `files` keeps the hashes of files by path. Raises CheckError for a file that cannot be read.
    """
    files = {} if files is None else files
    media: set[str] = set()
    words: list[list[str]] = []
    for messages in conversations(document):
        for message in messages:
            text = message["content"]
            parts = [{"type": "text", "text": text}] if isinstance(text, str) else text
            for part in parts:
                if part["type"] == "text":
                    words.append([message["role"], part["text"]])
                else:
                    media.add(_medium(part, files))
    return _hash(json.dumps(sorted(media) or words).encode())


def _medium(part: Mapping[str, Any], files: dict[str, str]) -> str:
    if part.get("path") is not None:
        path = str(part["path"])
        if path not in files:
            try:
                files[path] = _hash(Path(path).read_bytes())
            except OSError as error:
                raise CheckError(f"{path}: {error.strerror or error}") from None
        return files[path]
    if part.get("bytes") is not None:
        return _hash(bytes(part["bytes"]))
    given = part.get("codes", part.get(part["type"]))
    return _hash(np.asarray(given).tobytes())


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
