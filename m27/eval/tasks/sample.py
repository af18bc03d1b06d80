"""What a task asks: held-out items, picked the same way on every machine, as conversations."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable
from dataclasses import dataclass

from m27.data.messages import picture, sound, words
from m27.data.prompts import PROMPTS
from m27.data.sources.base import Item, of_split
from m27.eval.bench import Messages


@dataclass(frozen=True)
class Sample:
    """One question with its right answer. `kind`: what sort of question; `part`: what part of the
    data."""

    id: str
    messages: Messages
    answer: str
    kind: str = ""
    part: str = ""


def rank(seed: int, key: str) -> str:
    """A key's place in the order that `seed` makes of all keys: a hash, so order of files is
    nothing."""
    return hashlib.sha256(f"m27-eval:{seed}:{key}".encode()).hexdigest()


def picked(items: Iterable[Item], n: int, seed: int) -> list[Item]:
    """`n` items of the test side (all, if there are fewer), the lowest in `rank`."""
    return heapq.nsmallest(n, of_split(iter(items), "test"), key=lambda item: rank(seed, item.key))


def question(task: str) -> str:
    """The first phrasing of a task's prompt: the one that evaluation uses."""
    return PROMPTS[task][0]


def ask(item: Item, text: str) -> Messages:
    """A user's message: the item's picture or sound, prepared as in training, then `text`.

    Raises ValueError for an item with neither.
    """
    if item.image is not None:
        part = picture(item)
    elif item.audio is not None:
        part = sound(item.audio)
    else:
        raise ValueError(f"{item.key} has neither picture nor sound")
    return [{"role": "user", "content": [part, words(text)]}]


def data_hash(samples: Iterable[Sample]) -> str:
    """12 hex digits over what is asked (ids and answers, in order): equal hashes, equal
    questions."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(f"{sample.id}\0{sample.answer}\n".encode())
    return digest.hexdigest()[:12]
