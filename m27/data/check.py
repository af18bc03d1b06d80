"""`m27 data check`: a JSONL file of messages, each bad record named by file, line and reason.

One record a line: `{"messages": [...]}` with optional "id", "task", "source", or the bare list of
messages. Media in a record are `"path"` (relative to the file) or `"codes"`. `read` gives the same
records to training and raises at the first bad one, so both say the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m27.codec import media
from m27.data.messages import Message
from m27.data.progress import Progress
from m27.data.sources.base import Document
from m27.language.template import MessageError, check_message

KEYS = {"messages", "id", "task", "source"}
MAX_LINE = 20_000_000


class CheckError(ValueError):
    """A file that cannot be used; the message names file, line and reason."""


@dataclass(frozen=True)
class Problem:
    """One bad record."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


@dataclass
class Report:
    """What `check` found: how many records there are, and what is wrong with which."""

    records: int = 0
    problems: list[Problem] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.records:,} records, {len(self.problems):,} bad"


def check(path: str | Path, *, open_media: bool = True) -> Report:
    """Look at every record of a JSONL file; with `open_media` also decode its pictures and sounds.

    Raises CheckError where the file itself cannot be read or holds no record.
    """
    report = Report()
    with Progress(f"checking {Path(path).name}", unit="records") as bar:
        for line, found in _records(Path(path), open_media):
            report.records += 1
            bar.add()
            if isinstance(found, str):
                report.problems.append(Problem(str(path), line, found))
    if report.records == 0:
        raise CheckError(f"{path}: no records")
    return report


def read(path: str | Path) -> Iterator[Document]:
    """Yield the records of a JSONL file with the paths of their media made absolute.

    Media are not opened here. Raises CheckError naming file and line at the first bad record.
    """
    for line, found in _records(Path(path), open_media=False):
        if isinstance(found, str):
            raise CheckError(f"{path}:{line}: {found}")
        yield found


def _records(path: Path, open_media: bool) -> Iterator[tuple[int, Document | str]]:
    """(line number, document or what is wrong with it); blank lines are passed over."""
    try:
        with path.open("rb") as file:
            number = 0
            while data := file.readline(MAX_LINE + 1):
                number += 1
                if data.strip():
                    yield number, _record(data, number, path, open_media)
                if len(data) > MAX_LINE:
                    return  # what follows is the rest of the same line
    except OSError as error:
        raise CheckError(f"{path}: {error.strerror or error}") from error


def _record(data: bytes, number: int, path: Path, open_media: bool) -> Document | str:
    if len(data) > MAX_LINE:
        return f"the line is longer than {MAX_LINE:,} bytes"
    try:
        record = json.loads(data)
    except UnicodeDecodeError:
        return "is not UTF-8"
    except (ValueError, RecursionError) as error:
        return f"is not JSON: {error}"
    if isinstance(record, list):
        record = {"messages": record}
    if not isinstance(record, dict):
        return "must be an object with messages, or a list of messages"
    unknown = sorted(set(record) - KEYS)
    if unknown:
        return f"unknown key {unknown[0]!r}"
    for key in KEYS - {"messages"}:
        if not isinstance(record.get(key, ""), str):
            return f"{key} must be a string"
    try:
        messages = _messages(record.get("messages"), path.parent, open_media)
    except (MessageError, media.MediaError) as error:
        return str(error)
    return Document(
        id=record.get("id", f"{path.name}:{number}"),
        task=record.get("task", ""),
        source=record.get("source", path.stem),
        messages=messages,
    )


def _messages(found: Any, folder: Path, open_media: bool) -> list[Message]:
    """The messages, checked, with absolute paths; MessageError or MediaError says what is wrong."""
    if not isinstance(found, list) or not found:
        raise MessageError("messages must be a list with at least one message")
    messages: list[Message] = []
    for index, message in enumerate(found):
        role, parts = check_message(message, f"message {index}")
        content: list[dict[str, Any]] = []
        for place, part in enumerate(parts):
            where = f"message {index}, part {place}"
            if "path" in part:
                part = {**part, "path": str(folder / str(part["path"]))}
                if open_media:
                    _open(part, where)
            elif part["type"] != "text" and "codes" not in part:
                raise MessageError(f"{where}: a {part['type']} in a file needs path or codes")
            content.append(part)
        messages.append({"role": role, "content": content})
    if not any(message["role"] == "assistant" for message in messages):
        raise MessageError("no message is the assistant's, so there is nothing to learn")
    return messages


def _open(part: dict[str, Any], where: str) -> None:
    try:
        if part["type"] == "image":
            media.read_image(part["path"])
        elif media.read_audio(part["path"]).size == 0:
            raise media.MediaError(f"{part['path']}: holds no sound")
    except media.MediaError as error:
        raise media.MediaError(f"{where}: {error}") from error
