"""Whoever answers: a checkpoint of ours, a model of transformers, a server, or a file of saved answers.

`open_model` finds which by the name: "hf:NAME", "openai:NAME@BASE_URL", "stored:FILE", else a folder of weights.
"""

from __future__ import annotations

from pathlib import Path

from m27.eval.answerers.base import Answer as Answer
from m27.eval.answerers.base import Answerer as Answerer
from m27.eval.answerers.base import AnswererError as AnswererError
from m27.eval.answerers.base import Asked as Asked
from m27.eval.answerers.base import Facts as Facts
from m27.eval.answerers.base import Messages as Messages
from m27.eval.answerers.base import Settings as Settings


def open_model(name: str, settings: Settings) -> Answerer:
    """The model that `name` means, ready to be asked. Raises AnswererError, and ModuleNotFoundError for "hf:" without
    transformers."""
    kind, colon, rest = name.partition(":")
    if colon and kind == "hf":
        from m27.eval.answerers.hf import Transformers

        return Transformers(rest, settings)
    if colon and kind == "openai":
        from m27.eval.answerers.server import Server

        model, at, base = rest.rpartition("@http")
        if not at or not model:
            raise AnswererError(f"{name}: a server is openai:NAME@BASE_URL, such as openai:nano@http://localhost:8000/v1")
        return Server(model, f"http{base}", settings)
    if colon and kind == "stored":
        from m27.eval.answerers.stored import Stored

        return Stored(Path(rest))
    from m27.eval.answerers.checkpoint import Checkpoint

    return Checkpoint(Path(name), settings)
