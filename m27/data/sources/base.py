"""What every source yields: an `Item` (one picture, sound or text with its name) and its side.

Also where the media lie: `registry` packages, or Parquet files under `$M27_SHARED_DATA`
(`../shared/data` beside the checkout). Knows nothing of tasks' wording; `prompts` does.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from m27.data import holdout
from m27.data.holdout import Split

Side = Literal["train", "test"]


class SourceError(RuntimeError):
    """A data set is missing or not as expected; the message names it and where to get it."""


@dataclass(frozen=True)
class Item:
    """One thing of a data set.

    key: unique, begins with the source's name: "emoji/google/1f44b".
    concept: what it is of, for the hold-out; near-equal things share it.
    text: its plain lower-case name or sentence, "" where none is known.
    image: encoded bytes (PNG, JPEG, WebP …), undecoded. audio: float32 [T] mono at 16 kHz.
    meta: whatever else the source knows; `meta["split"]` is an official side.
    """

    key: str
    concept: str
    text: str
    image: bytes | None = None
    audio: NDArray[np.float32] | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """Name of the source: `meta["source"]`, else the first part of the key."""
        return str(self.meta.get("source") or self.key.split("/", 1)[0])

    @property
    def content_hash(self) -> str:
        """Hash of the media bytes; of the text where there is no medium.

        A picture rendered from a drawing brings the drawing's own, `meta["content_hash"]`.
        """
        if "content_hash" in self.meta:
            return str(self.meta["content_hash"])
        if self.image is not None:
            return holdout.content_hash(self.image)
        if self.audio is not None:
            return holdout.content_hash(self.audio.tobytes())
        return holdout.content_hash(self.text.encode())


class Document(TypedDict):
    """One training or test example: a conversation with raw media in its parts.

    `branches` are further conversations that begin as it does; see `m27.data.branches`. With
    `preference` there is one, and its answer is worse than that of `messages`.
    """

    id: str
    task: str
    source: str
    messages: list[dict[str, Any]]
    branches: NotRequired[list[list[dict[str, Any]]]]
    preference: NotRequired[bool]


Items = Callable[[], Iterator[Item]]


def split(item: Item) -> Split:
    """The side of an item: its official one, else `holdout.held_out`.

    "dropped" is a training picture that looks like a held-out one; it belongs to neither side.
    """
    digest = item.content_hash
    official = item.meta.get("split")
    if official is None:
        side: Side = "test" if holdout.held_out(item.source, item.concept, digest) else "train"
    elif official in ("train", "test"):
        side = "test" if official == "test" else "train"
    else:
        raise SourceError(f"{item.key}: split {official!r} is neither train nor test")
    if side == "train" and digest in holdout.near_duplicates():
        return "dropped"
    return side


def of_split(items: Iterator[Item], side: Side) -> Iterator[Item]:
    """Only the items of one side, in order."""
    return (item for item in items if split(item) == side)


def shared_data() -> Path:
    """Folder of the Parquet data sets: `$M27_SHARED_DATA`, or `../shared/data` by the checkout."""
    named = os.environ.get("M27_SHARED_DATA")
    return Path(named) if named else Path(__file__).resolve().parents[4] / "shared" / "data"


def shared_file(name: str, origin: str) -> Path:
    """Path of a Parquet file such as "nlvr/dev.parquet"; SourceError naming its public origin."""
    path = shared_data() / name
    if not path.is_file():
        raise SourceError(f"{path} is missing; its origin is {origin} (set M27_SHARED_DATA)")
    return path


_PLURALS = {"men", "women", "people", "children", "mice", "geese", "fireworks"}
_DETERMINER = re.compile(
    r"^(a|an|the|some|one|two|three|four|five|six|seven|eight|nine|ten|no|my|your|his|her|its|"
    r"their|our|this|that|many|\d+)\b"
)


def plain(text: str) -> str:
    """A name in the house style: lower case, no leading article, no closing full stop.

    >>> plain("A red fox.")
    'red fox'
    """
    text = re.sub(r"\s+", " ", text).strip().rstrip(".").lower()
    return re.sub(r"^(a|an|the)\s+", "", text)


def with_article(phrase: str) -> str:
    """`phrase` with "a" or "an" before it, unless it is plural or has a determiner.

    >>> with_article("owl"), with_article("scissors"), with_article("two dogs")
    ('an owl', 'scissors', 'two dogs')
    """
    head = re.split(r" (?:of|with|in|on|for|and|at|from) |,", phrase, maxsplit=1)[0]
    if phrase.startswith(("flag of ", "letter ", "map of ")):
        return f"the {phrase}"
    singular = head.endswith(("ss", "us", "is", "lens", "gas"))
    plural = head.split(" ")[-1] in _PLURALS or (head.endswith("s") and not singular)
    if not phrase or plural or _DETERMINER.match(phrase):
        return phrase
    vowel = phrase[0] in "aeio" or re.match(r"u(?!ni[^nm]|s[aei]|kr|ni$|fo)", phrase) is not None
    return f"{'an' if vowel else 'a'} {phrase}"
