"""Small builders of messages and documents, so that a source's `documents` reads as what it says.

A document is `{"id", "task", "source", "messages"}`; parts hold raw media (arrays or bytes).
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from m27.data.sources.base import Document, Item, Side

Part = dict[str, Any]
Message = dict[str, Any]
_T = TypeVar("_T")

PICTURE_SIZE = 128


def words(text: str) -> Part:
    """A text part."""
    return {"type": "text", "text": text}


def image(rgb: NDArray[np.uint8]) -> Part:
    """An image part of uint8 [H, W, 3]."""
    return {"type": "image", "image": rgb}


def picture(item: Item) -> Part:
    """An item's picture as a part: cut-outs and diagrams whole on white, others the middle square.

    uint8 [128, 128, 3]. Raises MediaError naming the item's key where the bytes are no picture.
    """
    from m27.codec import media

    whole = bool(item.meta.get("alpha") or item.meta.get("whole"))
    try:
        rgb = media.read_image(item.image or b"")
    except media.MediaError as error:
        raise media.MediaError(f"{item.key}: {error}") from error
    if not whole:
        rgb = media.middle(rgb)
    return image(media.fit_image(rgb, PICTURE_SIZE, PICTURE_SIZE, letterbox=whole))


def sound(samples: NDArray[np.float32]) -> Part:
    """An audio part of float32 [T] at 16 kHz."""
    return {"type": "audio", "audio": samples}


def turn(user: Iterable[Part], assistant: Iterable[Part]) -> list[Message]:
    """One exchange: what the user gives and what the assistant answers."""
    return [
        {"role": "user", "content": list(user)},
        {"role": "assistant", "content": list(assistant)},
    ]


def document(name: str, task: str, source: str, messages: list[Message]) -> Document:
    """A document; `name` must be unique within its source and task."""
    return {"id": f"{task}:{name}", "task": task, "source": source, "messages": messages}


def phrasing(side: Side, seed: int, key: str) -> random.Random | None:
    """Randomness of one document: None on the test side, where the first phrasing is asked."""
    return None if side == "test" else random.Random(f"{seed}:{key}")


def shuffled(values: Iterable[_T], seed: int) -> list[_T]:
    """All values in an order that depends on the seed alone, so any first N are a fair sample."""
    every = list(values)
    random.Random(f"order:{seed}").shuffle(every)
    return every
