"""Engines for the process of the engine: the tiny model, and some that compute nothing but do as told.

What a stand does is in the words of its requests, since nobody reaches into another process.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import numpy as np

from m27.infer.request import Event, Request, RequestError, Usage
from m27.serve.launch import Launch

USAGE = Usage(3, 4, 0, 0, 7, "stop", 1)


class Stand:
    """Says a request's words as often as `max_tokens` asks, a word a step; "sleep S", "die", "raise", "lie" and
    "refuse" are done instead."""

    def __init__(self) -> None:
        self.open: dict[int, list[str]] = {}
        self.numbers = self.cancelled = 0
        self.processor: Any = None

    def add(self, request: Request, live: bool = True) -> int:
        content = request.messages[-1]["content"]
        text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
        if text == "refuse":
            raise RequestError("not that")
        self.numbers += 1
        self.open[self.numbers] = [text] * request.max_tokens
        return self.numbers

    def cancel(self, number: int) -> None:
        self.cancelled += self.open.pop(number, None) is not None

    def step(self) -> list[tuple[int, Event]]:
        time.sleep(0.002)
        told: list[tuple[int, Event]] = []
        for number, words in list(self.open.items()):
            if not words:
                del self.open[number]
                told.append((number, {"type": "done", "usage": USAGE, "seconds": 0.5, "ids": [1, 2]}))
                continue
            _do(word := words.pop())
            told.append((number, {"type": "text", "text": f"{word} "}))
        return told

    def busy(self) -> bool:
        return bool(self.open)

    def metrics(self) -> dict[str, Any]:
        return {"running": len(self.open), "waiting": 0, "cancelled": self.cancelled}

    def close(self) -> None:
        pass


def _do(word: str) -> None:
    if word == "die":
        os._exit(3)
    if word == "raise":
        raise MemoryError("secret at 0x7f001122")
    if word == "lie":
        os.write(int(sys.argv[1]), np.random.default_rng(0).bytes(1000))
    if word.startswith("sleep "):
        time.sleep(float(word[6:]))


def stand(launch: Launch) -> Stand:
    """An engine that needs no model and no torch."""
    return Stand()


def tiny_engine(launch: Launch) -> Any:
    """The tiny model with all that the shipped one has."""
    import torch

    from tests.serve import live

    torch.set_num_threads(1)
    return live.engine(**launch.limits)


def no_model(launch: Launch) -> Any:
    """As a folder that holds none."""
    raise RequestError(f"{launch.folder}: no model here")


def no_file(launch: Launch) -> Any:
    """As one that cannot be read."""
    return open(launch.folder)


def no_package(launch: Launch) -> Any:
    """As an engine that needs a package."""
    import llguidance_of_which_there_is_none  # type: ignore[import-not-found]  # noqa: F401


def no_memory(launch: Launch) -> Any:
    """As a model that is too large: the system ends the process."""
    os.kill(os.getpid(), 9)
