"""JSONL of conversations: our own records and those of OpenAI's chat and fine-tuning, in one file if need be.

Ours is OpenAI's form with three things more (`docs/data.md`), so every message may be in either: parts
`image`, `audio` by path or codes and a `loss` flag, or parts `image_url`, `input_audio`, `audio_url` and a
`weight`. What calls tools is refused: there is no way yet to train on a call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from m27.data.importers.base import Options, Record, by_line, conversation, decoded, medium
from m27.data.importers.base import local as local_path
from m27.data.sources.base import Document
from m27.language.template import MessageError

NAMES = ("id", "task", "source")
TOOLS = ("tools", "functions", "tool_calls", "function_call", "tool_call_id")
_PARTS = {
    "image_url": ("image", ("url", "detail")),
    "audio_url": ("audio", ("url",)),
    "input_audio": ("audio", ("data", "format")),
}


def records(path: Path, options: Options) -> Iterator[Record]:
    """The records of a file of conversations, in order. Raises OSError."""
    return by_line(path, lambda value, line: _document(value, path, line, options))


def _document(value: Any, path: Path, line: int, options: Options) -> Document:
    if isinstance(value, list):
        value = {"messages": value}
    if not isinstance(value, dict):
        raise MessageError("must be an object with messages, or a list of messages")
    record = checked(value, ("messages", *NAMES))
    messages = conversation(ours(record.get("messages"), options.root))
    return named(record, path, line, "", messages)


def checked(value: Any, keys: tuple[str, ...]) -> dict[str, Any]:
    """The object of a line, its keys known. MessageError."""
    if not isinstance(value, dict):
        raise MessageError(f"must be an object with {', '.join(keys)}")
    for key in value:
        if key in TOOLS and value[key]:
            raise MessageError(f"{key!r}: calls of tools cannot be trained")
    known = {*keys, *TOOLS, "parallel_tool_calls"}  # the last is a setting of calls, and says nothing
    unknown = sorted(key for key in value if key not in known)
    if unknown:
        raise MessageError(f"unknown key {unknown[0]!r}")
    for key in NAMES:
        if not isinstance(value.get(key, ""), str):
            raise MessageError(f"{key} must be a string")
    return value


def named(
    record: Mapping[str, Any], path: Path, line: int, task: str, messages: list[dict[str, Any]]
) -> Document:
    """A document with the record's own names, else those of its place."""
    return Document(
        id=record.get("id", f"{path.name}:{line}"),
        task=record.get("task", task),
        source=record.get("source", path.stem),
        messages=messages,
    )


def ours(found: Any, root: Path) -> list[Any]:
    """Messages of either form in ours, paths made whole; what is wrong with the rest is left to
    `conversation`. Raises MessageError."""
    if not isinstance(found, list) or not found:
        raise MessageError("messages must be a list with at least one message")
    return [_message(message, f"message {n}", root) for n, message in enumerate(found)]


def _message(message: Any, where: str, root: Path) -> Any:
    if not isinstance(message, Mapping):
        return message
    message = dict(message)
    for key in TOOLS:
        if message.pop(key, None):
            raise MessageError(f"{where}: {key!r}: calls of tools cannot be trained")
    if message.get("refusal", "") is None:
        del message["refusal"]
    if "name" in message and not isinstance(message.pop("name"), str | None):
        raise MessageError(f"{where}: name must be a string")
    if message.get("role") == "developer":  # OpenAI's later name for the same
        message["role"] = "system"
    weight = message.pop("weight", None)
    content = message.get("content")
    if isinstance(content, list):
        content = [_part(part, f"{where}, part {n}", root) for n, part in enumerate(content)]
    if weight is not None:
        if weight not in (0, 1) or message.get("role") != "assistant":
            raise MessageError(f"{where}: weight must be 0 or 1, and stand in an assistant's message")
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if weight == 0 and isinstance(content, list):
            content = [{**part, "loss": False} for part in content if isinstance(part, Mapping)]
    if "content" in message:
        message["content"] = content
    return message


def _part(part: Any, where: str, root: Path) -> Any:
    """A part in our form. Raises MessageError that names it."""
    if not isinstance(part, Mapping):
        return part
    kind = part.get("type")
    try:
        if isinstance(kind, str) and kind in _PARTS:
            return _openai(part, kind, root)
        if kind in ("image", "audio"):
            if "path" in part:
                return {**part, "path": local_path(part["path"], root)}
            if "codes" not in part:
                raise MessageError(f"a part of type {kind} in a file needs path or codes")
    except MessageError as error:
        raise MessageError(f"{where}: {error}") from None
    return part


def _openai(part: Mapping[str, Any], kind: str, root: Path) -> dict[str, Any]:
    ours, keys = _PARTS[kind]
    unknown = sorted(set(part) - {"type", kind, "loss"})
    inner = part.get(kind)
    if isinstance(inner, str):  # as some libraries write it
        inner = {keys[0]: inner}
    if not isinstance(inner, Mapping) or keys[0] not in inner:
        raise MessageError(f"{kind} needs {keys[0]}")
    unknown += sorted(set(inner) - set(keys))
    if unknown:
        raise MessageError(f"unknown key {unknown[0]!r} in a part of type {kind}")
    found = {"bytes": decoded(inner["data"])} if kind == "input_audio" else medium(inner["url"], root)
    out = {"type": ours, **found}
    return {**out, "loss": part["loss"]} if "loss" in part else out
