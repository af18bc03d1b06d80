"""LLaVA-style JSON: `conversations` of `from` and `value`, with `<image>` where a picture stands.

A JSON list of records or JSONL. Pictures are named in `image` or `images` (a path, or a list of them, in
the order of the placeholders); `<audio>` with `audio` or `audios` goes the same way. A placeholder may
stand in an answer too: then the model learns to make that picture or sound.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from m27.data.importers.base import Options, Record, by_line, conversation, medium
from m27.data.sources.base import Document
from m27.language.template import MessageError

ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system",
}  # fmt: skip
MEDIA = {"image": ("image", "images"), "audio": ("audio", "audios")}
# `model` and `data_source` say where published sets got a record from; they are passed over.
KEYS = {"id", "conversations", "system", "model", "data_source", *MEDIA["image"], *MEDIA["audio"]}
_PLACEHOLDER = re.compile(r"\n?<(image|audio)>\n?")


def records(path: Path, options: Options) -> Iterator[Record]:
    """The records of a LLaVA-style file, in order. Raises OSError."""
    return by_line(path, lambda value, line: _document(value, path, line, options.root))


def _document(value: Any, path: Path, line: int, root: Path) -> Document:
    if not isinstance(value, dict) or not isinstance(value.get("conversations"), list):
        raise MessageError("must be an object with conversations, a list of turns")
    unknown = sorted(set(value) - KEYS)
    if unknown:
        raise MessageError(f"unknown key {unknown[0]!r}")
    waiting = {kind: _named(value, kind, root) for kind in MEDIA}
    counts = {kind: len(named) for kind, named in waiting.items()}
    messages = [_turn(turn, f"turn {n}", waiting) for n, turn in enumerate(value["conversations"])]
    for kind, left in waiting.items():
        if left:
            used = counts[kind] - len(left)
            raise MessageError(f"{kind} names {counts[kind]}, but <{kind}> stands {used} times")
    if value.get("system"):
        messages.insert(0, {"role": "system", "content": value["system"]})
    return Document(
        id=str(value.get("id", f"{path.name}:{line}")),
        task="",
        source=path.stem,
        messages=conversation(messages),
    )


def _named(value: dict[str, Any], kind: str, root: Path) -> list[dict[str, Any]]:
    """The parts of a medium that a record names, in order. MessageError."""
    given = [key for key in MEDIA[kind] if value.get(key) is not None]
    if len(given) > 1:
        raise MessageError(f"has {given[0]} as well as {given[1]}")
    if not given:
        return []
    named = value[given[0]]
    parts = []
    for one in named if isinstance(named, list) else [named]:
        try:
            parts.append({"type": kind, **medium(one, root)})
        except MessageError as error:
            raise MessageError(f"{given[0]}: {error}") from None
    return parts


def _turn(turn: Any, where: str, waiting: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """One turn as a message; its placeholders take from `waiting`. MessageError."""
    if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
        raise MessageError(f"{where}: must be an object with from and value, a string")
    unknown = sorted(set(turn) - {"from", "value"})
    if unknown:
        raise MessageError(f"{where}: unknown key {unknown[0]!r}")
    speaker = turn.get("from")
    if not isinstance(speaker, str) or speaker not in ROLES:
        raise MessageError(f"{where}: from must be one of {', '.join(ROLES)}, not {speaker!r}")
    parts: list[dict[str, Any]] = []
    # Split at the placeholders: text, kind, text, kind, …, text.
    for n, piece in enumerate(_PLACEHOLDER.split(turn["value"])):
        if n % 2 == 0:
            if piece:
                parts.append({"type": "text", "text": piece})
        elif waiting[piece]:
            parts.append(waiting[piece].pop(0))
        else:
            raise MessageError(f"{where}: <{piece}> stands here, but {piece} names no more of them")
    return {"role": ROLES[speaker], "content": parts}
