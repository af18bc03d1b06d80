"""Tables that name media files with their texts, row by row: metadata.csv, metadata.jsonl, captions.txt.

Hugging Face's `imagefolder` and `audiofolder` (a column `file_name` and one of `TEXTS`; other columns are
passed over), LJSpeech (`id|text|normalised text` without a head, sounds in `wavs/`), and captions.txt with
a tab or a comma between name and caption. Knows no media; a row that cannot be read is a `Fault`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from m27.data.importers.base import plain
from m27.data.importers.lines import Fault, jsonl

NAMES = ("metadata.csv", "metadata.jsonl", "captions.txt")
FILES = ("file_name", "file", "image", "audio", "audio_file", "path", "filename")
TEXTS = ("text", "caption", "transcription", "transcript", "sentence", "normalized_text")
_MARKS = tuple(chr(code) for code in range(0xDC80, 0xDD00))  # what is no UTF-8, as it was decoded


@dataclass(frozen=True)
class Row:
    """A media file as the table names it, and its text."""

    name: str
    text: str


class TableError(ValueError):
    """A table without the columns that are needed; the message says which."""


def rows(path: Path) -> Iterator[tuple[int, Row | Fault]]:
    """(line number, Row or Fault) of a table. Raises OSError, TableError."""
    if path.suffix == ".jsonl":
        return _of_json(path)
    return _of_text(path)


def _of_json(path: Path) -> Iterator[tuple[int, Row | Fault]]:
    for line, value in jsonl(path):
        if isinstance(value, Fault):
            yield line, value
        elif not isinstance(value, dict):
            yield line, Fault("must be an object with file_name and text")
        else:
            name, text = (_first(value, keys) for keys in (FILES, TEXTS))
            if name is None or text is None:
                keys = FILES[0] if name is None else " or ".join(TEXTS)
                yield line, Fault(f"has no {keys}")
            elif not isinstance(value[name], str) or not isinstance(value[text], str):
                yield line, Fault(f"{name} and {text} must be strings")
            else:
                yield line, Row(value[name], value[text])


def _of_text(path: Path) -> Iterator[tuple[int, Row | Fault]]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        head = file.readline()
        file.seek(0)
        mark = next((mark for mark in ("\t", "|") if mark in head), ",")
        if mark == ",":
            reader = csv.reader(file, strict=True)
        else:
            reader = csv.reader(file, delimiter=mark, quoting=csv.QUOTE_NONE)
        columns: tuple[int, int] | None = None
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield reader.line_num, Fault(f"is not a row of a table: {error}")
                continue
            if not any(cell.strip() for cell in cells):
                continue
            if columns is None:
                columns, headed = _columns(path, cells, mark)
                if headed:
                    continue
            yield reader.line_num, _row(cells, columns)


def _columns(path: Path, cells: list[str], mark: str) -> tuple[tuple[int, int], bool]:
    """Where the name and the text stand, and whether `cells` are the head that says so."""
    names = {cell.strip().lower(): n for n, cell in reversed(list(enumerate(cells)))}
    name, text = (_first(names, keys) for keys in (FILES, TEXTS))
    if name is not None and text is not None:
        return (names[name], names[text]), True
    if path.name == "metadata.csv" and mark == ",":
        found = plain(", ".join(cells), 200)
        raise TableError(
            f"{path}:1: needs the columns file_name and one of {', '.join(TEXTS)}, has: {found}"
        )
    return (0, -1), False


def _row(cells: list[str], columns: tuple[int, int]) -> Row | Fault:
    if len(cells) < 2 or len(cells) <= max(columns):
        return Fault("has too few columns")
    text = cells[columns[1]]
    # The last column of LJSpeech is the text with its numbers spelt; where it is empty, the one before.
    if columns[1] == -1 and not text.strip() and len(cells) > 2:
        text = cells[-2]
    if any(mark in cell for cell in (cells[columns[0]], text) for mark in _MARKS):
        return Fault("is not UTF-8")
    return Row(cells[columns[0]].strip(), text.strip())


def _first(keys: object, wanted: tuple[str, ...]) -> str | None:
    return next((key for key in wanted if key in keys), None)  # type: ignore[operator]
