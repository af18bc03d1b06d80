"""JSON values one after another, each with its line: of a JSONL file or of one long JSON list.

Neither is ever in memory as a whole. A line that cannot be read is a `Fault` and the next goes on; in a
JSON list nothing can be found again behind broken JSON, so that one fault is the last. Knows JSON, no
formats of records.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

MAX_LINE = 32_000_000  # bytes of one record: a picture of 20 MB in base64, and words
_CHUNK = 1 << 16
_BETWEEN = re.compile(r"[\s,]*")
_NOT_UTF8 = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True)
class Fault:
    """What is wrong with a value that could not be read."""

    reason: str


Line = tuple[int, Any]


def values(path: Path) -> Iterator[Line]:
    """(line number, value or Fault) of a JSONL file or of a JSON list of objects. Raises OSError.

    A file that begins with "[" is a list of records, unless its first line is a list of messages.
    """
    return array(path) if _is_array(path) else jsonl(path)


def jsonl(path: Path) -> Iterator[Line]:
    """(line number, value or Fault) of each line; blank ones are passed over. Raises OSError."""
    with path.open("rb") as file:
        number = 0
        while data := file.readline(MAX_LINE + 1):
            number += 1
            if len(data) > MAX_LINE:
                _skip_line(file, data)
                yield number, Fault(f"the line is longer than {MAX_LINE:,} bytes")
            elif data.strip():
                yield number, _parsed(data.removeprefix(b"\xef\xbb\xbf") if number == 1 else data)


def _skip_line(file: BinaryIO, data: bytes) -> None:
    while data and not data.endswith(b"\n"):
        data = file.readline(_CHUNK)


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data.decode("utf-8"))
    except UnicodeDecodeError:
        return Fault("is not UTF-8")
    except (ValueError, RecursionError) as error:
        return Fault(f"is not JSON: {error}")


def array(path: Path) -> Iterator[Line]:
    """(line number, value or Fault) of each value of a JSON list, read piece by piece. Raises OSError.

    Bytes that are no UTF-8 spoil the record that they stand in, not the file.
    """
    decode = json.JSONDecoder().raw_decode
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        text = file.read(_CHUNK)
        while "[" not in text and (more := file.read(_CHUNK)):
            text += more
        at = text.index("[") + 1
        line = 1 + text.count("\n", 0, at)
        while True:
            at, line = _beyond(text, at, line)
            if at == len(text) or (text[at] != "]" and len(text) - at < _CHUNK):
                text, at, grew = _more(file, text, at)
                if grew:
                    continue
            if text[at : at + 1] == "]":
                return
            try:
                value, end = decode(text, at)
            except (ValueError, RecursionError) as error:
                size = len(text) - at
                if size < MAX_LINE:
                    text, at, grew = _more(file, text, at, size)
                    if grew:
                        continue
                reason = str(error).split(": line")[0] if size < MAX_LINE else "a record is too long"
                yield line, Fault(f"is not JSON: {reason}; what follows is not read")
                return
            broken = _NOT_UTF8.search(text, at, end)
            yield line, Fault("is not UTF-8") if broken else value
            line, at = line + text.count("\n", at, end), end


def _beyond(text: str, at: int, line: int) -> tuple[int, int]:
    """The place behind spaces and commas, and its line."""
    found = _BETWEEN.match(text, at)
    end = found.end() if found else at
    return end, line + text.count("\n", at, end)


def _more(file: Any, text: str, at: int, size: int = 0) -> tuple[str, int, bool]:
    """The text from `at` on with as much again read behind it, its place there, and whether there was more."""
    read = file.read(max(_CHUNK, size))
    return text[at:] + read, 0, bool(read)


def _is_array(path: Path) -> bool:
    with path.open("rb") as file:
        head = b""
        while not head.strip() and (data := file.readline(MAX_LINE)):
            head = data.removeprefix(b"\xef\xbb\xbf")
    if not head.lstrip().startswith(b"["):
        return False
    first = _parsed(head)  # of a list over several lines this is no whole value
    if not isinstance(first, list):
        return not head.lstrip().startswith((b'[{"role"', b'[{"content"'))
    return bool(first) and not (isinstance(first[0], dict) and "role" in first[0])
