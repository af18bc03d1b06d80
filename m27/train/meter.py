"""What a run says of itself: a JSON line a step in `log.jsonl`, and one line of progress on standard error.

On a terminal the line is redrawn; in a log file it is printed every half a minute. What else wants the figures
gets them too (`m27.train.sinks`). Speeds are of the last twenty steps.
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m27.train.sinks import flat, open_sinks

_WIDTH = 24


class Meter:
    """Writes the log of the run in `folder`, called `name`; `log` takes one step's record.

    Lines beyond the step a run resumes from are dropped, so the log reads as if never interrupted. `sinks`
    names what else takes the figures.
    """

    def __init__(
        self,
        folder: Path,
        resumed_step: int = 0,
        quiet: bool = False,
        sinks: Sequence[str] = (),
        name: str = "",
        writes: bool = True,
    ) -> None:
        self.path, self.writes = folder / "log.jsonl", writes
        folder.mkdir(parents=True, exist_ok=True)
        if writes and self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step_of(line) <= resumed_step]
            self.path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self.quiet = quiet
        self.sinks = open_sinks(sinks if writes else (), folder, name, resumed_step)
        self._recent: deque[tuple[float, int, float]] = deque([(time.monotonic(), 0, 0.0)], maxlen=21)
        self._drawn = 0.0
        self._tty = sys.stderr.isatty()

    def rate(self, tokens: int, flops: float = 0.0) -> tuple[float, float]:
        """Tokens and operations a second, after a step that ends at so many of both in this call."""
        self._recent.append((time.monotonic(), tokens, flops))
        first, last = self._recent[0], self._recent[-1]
        seconds = max(last[0] - first[0], 1e-9)
        return (last[1] - first[1]) / seconds, (last[2] - first[2]) / seconds

    def log(self, record: dict[str, Any], progress: float, left: float | None) -> None:
        """Append `record` as a JSON line and draw the bar; `left` is the seconds that remain."""
        if not self.writes:
            return
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        for sink in self.sinks:
            sink.add(int(record["step"]), dict(flat(record)))
        now = time.monotonic()
        if self.quiet or now - self._drawn < (0.1 if self._tty else 30.0):
            return
        self._drawn = now
        filled = round(progress * _WIDTH)
        bar = "#" * filled + " " * (_WIDTH - filled)
        media = " ".join(f"{name} {loss:.3f}" for name, loss in record["media"].items())
        eta = "" if left is None else f" ETA {clock(left)}"
        mfu = f" MFU {record['mfu']:.1%}" if "mfu" in record else ""
        line = (
            f"step {record['step']} [{bar}] {progress:4.0%} loss {record['loss']:.3f} ({media}) "
            f"{record['tokens_per_second']:,.0f} tokens/s{mfu}{eta}"
        )
        sys.stderr.write(f"\r{line}\x1b[K" if self._tty else f"{line}\n")
        sys.stderr.flush()

    def close(self, message: str) -> None:
        """End the line of progress with a message of its own, and all else that is open."""
        for sink in self.sinks:
            sink.close()
        if self.writes and not self.quiet:
            sys.stderr.write(("\n" if self._tty else "") + message + "\n")


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return sys.maxsize  # the torn last line of a killed run


def clock(seconds: float) -> str:
    """Seconds as minutes and seconds, or hours, minutes and seconds: 1:02:03."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
