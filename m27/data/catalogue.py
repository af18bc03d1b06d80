"""The names of everything that yields documents, and a way to get at one by name.

Modules are imported when asked for, so one that needs an extra package does not stop the others.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path

from m27.data.sources.base import Document, Side

Documents = Callable[[Side, int], Iterator[Document]]

# name → module with `documents(split, seed)`.
PICTURES: dict[str, str] = {
    "cifar10": "m27.data.sources.cifar10",
    "tiny_imagenet": "m27.data.sources.tiny_imagenet",
    "grocery": "m27.data.sources.grocery",
    "nlvr": "m27.data.sources.nlvr",
    "easy_vqa": "m27.data.sources.easy_vqa",
    "emoji": "m27.data.sources.emoji",
    "fluent": "m27.data.sources.fluent",
    "more_emoji": "m27.data.sources.more_emoji",
    "fashion": "m27.data.sources.fashion",
    "quickdraw": "m27.data.sources.quickdraw",
    "stamps": "m27.data.sources.stamps",
    "openclipart": "m27.data.sources.openclipart",
    "books": "m27.data.makers.books",
    "scenes": "m27.data.makers.scenes",
    "triples": "m27.data.makers.triples",
    "made_books": "m27.data.makers.made_books",
    "languages": "m27.data.makers.languages",
    "heard_pictures": "m27.data.makers.heard_pictures",
    "asked": "m27.data.makers.asked",
}
SOUNDS: dict[str, str] = {
    "environment": "m27.data.sources.environment",
    "spoken_words": "m27.data.sources.spoken_words",
    "spoken_digits": "m27.data.sources.spoken_digits",
    "instruments": "m27.data.sources.instruments",
    "speech": "m27.data.sources.speech",
    "more_speech": "m27.data.sources.more_speech",
    "kokoro": "m27.data.sources.kokoro",
    "soundscapes": "m27.data.makers.soundscapes",
}
WORDS: dict[str, str] = {"texts": "m27.data.sources.texts"}
EVERY: dict[str, str] = {**PICTURES, **SOUNDS, **WORDS}


def is_path(name: str) -> bool:
    """Whether `name` is a file or folder of a user's own: no name of ours, and there or called like one."""
    return name not in EVERY and (name.endswith((".jsonl", ".json")) or Path(name).exists())


def documents(name: str) -> Documents:
    """The document maker called `name`; KeyError naming the known ones where there is none."""
    if name not in EVERY:
        raise KeyError(f"no documents called {name!r}; there are: {', '.join(EVERY)}")
    made: Documents = importlib.import_module(EVERY[name]).documents
    return made
