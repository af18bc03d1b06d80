"""What is asked of a model under test and what comes back, whoever answers. Plain data; knows no model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

Messages = list[dict[str, Any]]


class AnswererError(ValueError):
    """A model that cannot be asked, or that stopped answering; the message is one line that says why."""


@dataclass(frozen=True)
class Asked:
    """One question: a key that no other has, the conversation up to the answer, and the seed of that answer."""

    key: str
    messages: Messages
    seed: int = 0


@dataclass(frozen=True)
class Answer:
    """One answer in words.

    `seconds` from when the model took the question on until the answer was whole, `first` until its first piece
    (None where that cannot be seen), both wall clock with `at_once` others under way; tokens in and out as the
    model counts them. `error`: why there is no answer, where the model refuses this very question; `text` is then "".
    """

    key: str
    text: str
    seconds: float = 0.0
    first: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    error: str = ""


@dataclass(frozen=True)
class Settings:
    """How questions are put: tokens an answer at most, temperature (0: the likeliest), questions under way at once;
    `precision`, `threads` and `device` for models that run here; `key`: the variable of the environment that holds
    the key of a server; `tries` of a question before a failing server is given up."""

    max_tokens: int = 256
    temperature: float = 0.0
    at_once: int = 16
    precision: str = "auto"
    threads: int = 0
    device: str = "auto"
    key: str = "OPENAI_API_KEY"
    tries: int = 8
    adapter: str | None = None  # a folder that PEFT wrote, for a folder of weights


@dataclass(frozen=True)
class Facts:
    """What a result must say of the model: its name as given, what kind of answerer, the revision (12 hex digits of its
    files, or what the server calls it), precision, device, licence as its files say it, where the questions go, bytes
    of memory in use (of this process, or of the GPU), how many questions were under way at once, and what else."""

    name: str
    kind: str
    revision: str = "unknown"
    precision: str = "unknown"
    device: str = "unknown"
    licence: str = "unknown"
    data_goes: str = "nowhere: it runs on this machine"
    memory_bytes: int | None = None
    at_once: int = 1
    more: dict[str, Any] = field(default_factory=dict)


class Answerer(Protocol):
    """A model under test."""

    def facts(self) -> Facts:
        """What is known of it, at any time; revision, precision and device do not change."""
        ...

    def answer(self, asked: Sequence[Asked]) -> Iterator[Answer]:
        """Each question's answer as it is done, in any order. Raises AnswererError where it cannot go on."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...
