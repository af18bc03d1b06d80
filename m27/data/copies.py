"""A user's records once more, what they show or play somewhat otherwise: more examples of the same answers.

Only of records that answer in words. What is drawn or said stays what it is, and so does what that is made from. It
knows neither shards nor codecs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from m27.data import altered
from m27.data.sources.base import Document
from m27.language.processor import pixels, samples

PACE = (0.9, 1.1)  # how fast a sound is played; its pitch goes with it


def copies(documents: Iterable[Document], count: int, seed: int) -> Iterator[Document]:
    """`count` copies of each document that can have some, with pictures and sounds as arrays; the same for a seed.

    They are named by the document and a number ("7~2"). Raises MediaError and PartError for media that cannot be read.
    """
    for document in filter(can_be_altered, documents):
        for number in range(1, count + 1):
            name = f"{document['id']}~{number}"
            digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            messages = [
                message
                if isinstance(message["content"], str)
                else {**message, "content": [_otherwise(part, generator) for part in message["content"]]}
                for message in document["messages"]
            ]
            yield {**document, "id": name, "messages": messages}


def can_be_altered(document: Mapping[str, Any]) -> bool:
    """Whether a document shows or plays something and answers in words alone."""
    if document.get("branches"):
        return False
    found = {True: False, False: False}  # whether there are media, in answers and elsewhere
    for message in document["messages"]:
        if not isinstance(message["content"], str):
            media = any(part["type"] != "text" for part in message["content"])
            found[message["role"] == "assistant"] |= media
    return found[False] and not found[True]


def _otherwise(part: Mapping[str, Any], generator: torch.Generator) -> Mapping[str, Any]:
    kept = {key: part[key] for key in ("type", "loss", "size") if key in part}
    if part["type"] == "image":
        seen = torch.from_numpy(pixels(part).astype(np.float32) / 255).permute(2, 0, 1)[None]
        made = altered.pictures(seen, generator)[0].permute(1, 2, 0)
        return {**kept, "image": (made * 255).round().to(torch.uint8).numpy()}
    if part["type"] == "audio":
        heard = torch.from_numpy(samples(part))[None, None]
        pace = PACE[0] + (PACE[1] - PACE[0]) * float(torch.rand((), generator=generator))
        length = max(1, round(heard.shape[-1] / pace))
        paced = F.interpolate(heard, size=length, mode="linear", align_corners=False)[0]
        return {**kept, "audio": altered.sounds(paced, generator)[0].numpy()}
    return part
