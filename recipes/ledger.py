"""What the stages of a release took, a JSON line each, and on what machine. Knows no stage.

A row: `stage`, `seconds` (wall clock), `device`, `threads`, `status` (0: ended well); rows of `recipes.release`
also have `command`, `cpu_seconds` and `started`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

Record = dict[str, Any]


class ReleaseError(ValueError):
    """A stage that is not known, or a log that cannot be read; the message is one line that says which."""


class Ledger:
    """What the stages took, a JSON line each, in the order in which they ended."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self) -> list[Record]:
        """All rows, oldest first. Raises ReleaseError naming the line that is no JSON object."""
        return list(self._rows()) if self.path.is_file() else []

    def _rows(self) -> Iterator[Record]:
        for number, line in enumerate(self.path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                row: Record = json.loads(line)
                yield row | {"stage": str(row["stage"]), "seconds": float(row["seconds"])}
            except (ValueError, TypeError, KeyError):
                raise ReleaseError(f"{self.path}: line {number} is not a row of a stage") from None

    def add(self, row: Record) -> None:
        """Append one row; the file is made where there is none."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def ended_well(self, command: str) -> int:
        """The place of the last good end of a command, or -1."""
        last = -1
        for place, row in enumerate(self.rows()):
            if row.get("command") == command and row.get("status") == 0:
                last = place
        return last


def on_gpu(device: str = "auto") -> bool:
    """Whether work on `device` ("auto", "cpu" or "cuda…") is done by a GPU."""
    return device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())


def device_name(device: str = "auto") -> str:
    """What the work is done on: the GPU's name, or the processor's with its number of cores."""
    if on_gpu(device):
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return f"{names[0] if names else 'CPU'}, {os.cpu_count()} cores"
