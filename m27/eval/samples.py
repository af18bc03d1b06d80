"""Questions with their right answers, whatever they were read from: a user's own records, or an official data set.

Knows records and media's hashes; no model and no score.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m27.data.check import usable
from m27.data.importers.base import CheckError
from m27.data.media_parts import fingerprint

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Sample:
    """One question: the conversation up to the answer, and every answer that counts as right (none where the data set
    keeps it back, or has none). `meta`: what a scorer of its data set needs besides (choices, type of question, …),
    plain JSON values."""

    id: str
    messages: Messages
    references: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)


def records(path: str | Path) -> Iterator[Sample]:
    """The samples of a user's own file or folder, in any form that `m27 data check` knows: of each conversation, what
    stands before the assistant's last turn is asked, and that turn, words alone, is the reference.

    Several records of one id are further references of one question where they ask the same. Raises CheckError naming
    the file and what is wrong: no record, media that cannot be opened, an answer that is not words, an id of two
    questions.
    """
    found: dict[str, Sample] = {}
    for number, document in enumerate(usable(path)[0]):
        name = str(document["id"])
        *asked, last = document["messages"]
        if last["role"] != "assistant" or not asked:
            raise CheckError(f"{path}: record {number + 1} ({name}): does not end in an answer of the assistant's")
        parts = last["content"]
        parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
        if any(part["type"] != "text" for part in parts):
            raise CheckError(f"{path}: record {number + 1} ({name}): the answer holds more than words")
        reference = "".join(part["text"] for part in parts).strip()
        sample = Sample(name, [_bare(m) for m in asked], (reference,))
        if name not in found:
            found[name] = sample
        elif shown(found[name].messages) == shown(sample.messages):
            found[name] = Sample(name, sample.messages, (*found[name].references, reference))
        else:
            raise CheckError(f"{path}: record {number + 1}: another question has the id {name!r}")
    yield from found.values()


def _bare(message: dict[str, Any]) -> dict[str, Any]:
    """A message without training's loss flags."""
    content = message["content"]
    if isinstance(content, str):
        return message
    return {**message, "content": [{k: v for k, v in part.items() if k != "loss"} for part in content]}


def shown(messages: Messages) -> list[dict[str, Any]]:
    """Messages as plain JSON: a medium as its type and hash, and its file's name where it has one."""
    out = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            content = [part if part["type"] == "text" else _medium(part) for part in content]
        out.append({"role": message["role"], "content": content})
    return out


def _medium(part: dict[str, Any]) -> dict[str, Any]:
    named = {"file": Path(part["path"]).name} if part.get("path") else {}
    return {"type": part["type"], "sha256": fingerprint(part), **named}


def digest(values: Iterable[Any]) -> str:
    """12 hex digits of the sha256 over JSON values."""
    hashed = hashlib.sha256()
    for value in values:
        hashed.update(json.dumps(value, ensure_ascii=False, sort_keys=True).encode() + b"\n")
    return hashed.hexdigest()[:12]


def prompt_hash(samples: Sequence[Sample]) -> str:
    """Equal where every prompt is, media and all, wherever the files lie."""
    return digest([sample.id, _placeless(shown(sample.messages))] for sample in samples)


def data_hash(samples: Sequence[Sample]) -> str:
    """Equal where questions and right answers are."""
    return digest([sample.id, list(sample.references), sample.meta] for sample in samples)


def _placeless(messages: Messages) -> Messages:
    return [
        {**m, "content": m["content"] if isinstance(m["content"], str) else [
            {k: v for k, v in part.items() if k != "file"} for part in m["content"]]}
        for m in messages
    ]  # fmt: skip
