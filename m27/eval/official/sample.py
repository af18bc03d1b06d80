"""The few steps that readers of official files share."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from m27.eval.samples import Messages, Sample

Part = dict[str, Any]


class FormatError(ValueError):
    """A file is not in the benchmark's format; says which file, where and what."""


def sample(
    name: str,
    messages: Messages,
    answer: str | Sequence[str] | None = None,
    about: Mapping[str, Any] | None = None,
) -> Sample:
    """A sample of an official file: media in `messages` are `bytes` or `path`, `answer` is one text, several of which
    each is right, or None where the benchmark keeps it back; `about` becomes its `meta`."""
    golds = (answer,) if isinstance(answer, str) else tuple(map(str, answer or ()))
    return Sample(name, messages, golds, dict(about or {}))


def ask(*parts: Part | str) -> Messages:
    """One user's message; a string is a text part, an empty one is left out."""
    content = [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts if p]
    return [{"role": "user", "content": content}]


def picture(source: bytes | str | Path) -> Part:
    """An image part of bytes as they are in the file, or of a path."""
    if isinstance(source, bytes):
        return {"type": "image", "bytes": source}
    return {"type": "image", "path": str(source)}


def sound(path: str | Path) -> Part:
    """An audio part of a path."""
    return {"type": "audio", "path": str(path)}


def lettered(options: Sequence[str]) -> dict[str, str]:
    """A, B, C … to the options, in order."""
    return {chr(ord("A") + place): text for place, text in enumerate(options)}


def decoded(text: str, where: str) -> bytes:
    """The bytes of a base64 text. Raises FormatError."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise FormatError(f"{where}: the picture is not base64 ({error})") from error


def read_json(path: Path) -> Any:
    """A whole JSON file. Raises FormatError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(f"{path}: {error}") from error


def read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file and line, object) of a file of one JSON object a line. Raises FormatError."""
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if line.strip():
                yield f"{path}:{number}", json.loads(line)
    except (OSError, ValueError) as error:
        raise FormatError(f"{path}: {error}") from error


def rows(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file and row, row) of a parquet file, or of all below a folder, in order of name.

    Raises FormatError, and ImportError without pyarrow (the `data` extra).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    top = Path(path)
    files = [top] if top.is_file() else sorted(top.rglob("*.parquet"))
    if not files:
        raise FormatError(f"{top}: no parquet file here")
    for file in files:
        number = 0
        try:
            for batch in pq.ParquetFile(file).iter_batches(64):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{file}, row {number}", row
        except pa.ArrowException as error:
            raise FormatError(f"{file}: {error}") from error


def need(row: Mapping[str, Any], names: Sequence[str], where: str) -> list[Any]:
    """The values of columns or keys. Raises FormatError naming the first that is missing."""
    for name in names:
        if name not in row:
            raise FormatError(f"{where}: no {name!r} (has {', '.join(map(str, row))})")
    return [row[name] for name in names]
