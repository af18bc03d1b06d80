"""What may never be trained on: by concept, by content hash, by likeness.

A source either comes with an official test file (its items say so in `meta["split"]`) or is split
here: an item is held out when the fraction `sha256("m27-holdout:<family>:<concept>")` / 2^256 lies
below the family's rate. Sources that show the same things in other styles share a family, so a
concept is held out in every one of them. Nothing here is random: every machine, year and Python
gets the same sides.

Pictures that look like a held-out one but differ in bytes or name are listed in
`near_duplicates.txt` (made by `m27.data.likeness`) and belong to neither side.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path
from typing import Literal

Split = Literal["train", "test", "dropped"]

# source → family. A source that is not listed is a family of its own.
FAMILY: dict[str, str] = {
    "emoji": "emoji",
    "fluent": "emoji",
    "more_emoji": "emoji",
    "openclipart": "clipart",
    "stamps": "stamps",
    "storybooks": "storybooks",
}

# family → share of its concepts that is held out, from the counts wanted in the whole source:
# 200 emoji, 1,000 clip-art pictures, 100 stamps, 30 stories, 40 stamp sounds, 40 samples.
RATE: dict[str, float] = {
    "emoji": 0.124,
    "clipart": 0.19,
    "stamps": 0.118,
    "stamp-sounds": 0.20,
    "storybooks": 0.123,
    "samples": 40 / 165,
    "fashion": 0.1,
    "quickdraw": 0.1,
}

NEAR_DUPLICATES = Path(__file__).with_name("near_duplicates.txt")
_ARTICLE = re.compile(r"^(a|an|the|some)\s+")
_NOT_WORD = re.compile(r"[^\w]+|_+")


def normalise(concept: str) -> str:
    """A concept as it is compared: lower case, words only, no leading article, no digits' tail.

    >>> normalise("A Red Fox. ") 'red fox'
    """
    words = _NOT_WORD.sub(" ", concept.lower()).strip()
    words = _ARTICLE.sub("", words)
    return re.sub(r"\s+\d+$", "", words)


def fraction(family: str, concept: str) -> float:
    """Where a concept lies in [0, 1), the same for ever."""
    digest = hashlib.sha256(f"m27-holdout:{family}:{normalise(concept)}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def held_out(source: str, concept: str, content_hash: str = "") -> bool:
    """Whether an item of `source` that shows `concept` is on the test side.

    With an empty concept the content hash decides. Raises KeyError for a family without a rate.
    """
    family = FAMILY.get(source, source)
    return fraction(family, concept or content_hash) < RATE[family]


def content_hash(data: bytes) -> str:
    """32 hex digits of the sha256 of the bytes of a picture or sound."""
    return hashlib.sha256(data).hexdigest()[:32]


@cache
def near_duplicates() -> frozenset[str]:
    """Content hashes of training pictures that look like a held-out one.

    Raises FileNotFoundError where the shipped list is missing: without it pictures would leak.
    """
    lines = NEAR_DUPLICATES.read_text().splitlines()
    return frozenset(line.split()[0] for line in lines if line and not line.startswith("#"))
