"""A folder of results that grows line by line and survives being killed at any point.

`settings.json` says what the run is; what belongs to another run is never added to. A line that was being written
when the process ended is dropped, the lines before it are kept. Knows files; no models and no scores.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from m27.eval.report import write_jsonl


class JournalError(ValueError):
    """A folder that holds another run, or a file in it that cannot be read."""


class Journal:
    """The folder of one run. Raises JournalError where it holds a run of other settings."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        path = folder / "settings.json"
        plain = json.loads(json.dumps(settings))
        if path.is_file():
            try:
                held = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                raise JournalError(f"{path}: is not JSON; name another --out") from None
            differs = [k for k in {**held, **plain} if held.get(k) != plain.get(k)]
            if differs:
                name = differs[0]
                raise JournalError(
                    f"{folder}: holds a run with {name} {held.get(name)!r}, not {plain.get(name)!r}; "
                    "name another --out, or say --fresh"
                )
        else:
            write_json(path, plain)

    def lines(self, name: str) -> dict[str, dict[str, Any]]:
        """The whole lines of a file by their "key", the last of each counting; {} where there is no file."""
        path = self.folder / name
        if not path.is_file():
            return {}
        *whole, rest = path.read_bytes().split(b"\n")
        if rest:  # the line that was being written
            with path.open("r+b") as file:
                file.truncate(path.stat().st_size - len(rest))
        out: dict[str, dict[str, Any]] = {}
        for number, line in enumerate(whole, 1):
            try:
                record = json.loads(line)
                out[record["key"]] = record
            except (ValueError, KeyError, TypeError):
                raise JournalError(f"{path}:{number}: is no line of a run") from None
        return out

    def append(self, name: str, record: dict[str, Any]) -> None:
        """Add a line; it is the system's when this returns."""
        data = (json.dumps(record, ensure_ascii=False) + "\n").encode()
        with (self.folder / name).open("ab") as file:
            file.write(data)

    def settle(self, name: str, records: Iterable[dict[str, Any]]) -> None:
        """Replace a file by these lines, in this order."""
        write_jsonl(self.folder / name, records)


def clear(folder: Path) -> None:
    """Remove what a run wrote into a folder, and nothing else."""
    for name in ("settings.json", "answers.jsonl", "timing.jsonl", "judged.jsonl", "requests.jsonl", "rows.jsonl",
                 "speed.json"):  # fmt: skip
        (folder / name).unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """A JSON file, under a temporary name first; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)
