"""How much memory a model takes here, and what its folder says of its licence."""

from __future__ import annotations

import re
from pathlib import Path

import torch


def resident() -> int | None:
    """Bytes of this process that are in memory; None where the system does not say."""
    try:
        text = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"^VmRSS:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


class Growth:
    """The most memory in use since it was made: of the GPU where a model is on one, else what this process grew by."""

    def __init__(self) -> None:
        self._before = resident()
        self._most = 0
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def look(self) -> None:
        """Take note of what is in use now."""
        now = resident()
        if now is not None and self._before is not None:
            self._most = max(self._most, now - self._before)

    def bytes(self, device: str) -> int | None:
        """The most that was seen, on `device`."""
        if device.startswith("cuda"):
            return int(torch.cuda.max_memory_allocated())
        self.look()
        return self._most if self._before is not None else None


def licence(folder: Path) -> str:
    """`license:` of the model card in a folder; "unknown" where there is none."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")[:4000]
    except OSError:
        return "unknown"
    found = re.search(r"^license:[ \t]*['\"]?([\w.+-]+)", text, re.MULTILINE)
    return found[1] if found else "unknown"
