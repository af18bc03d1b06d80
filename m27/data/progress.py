"""A progress bar on standard error for anything that takes over two seconds.

Knows nothing of what is counted. Silent where standard error is not a terminal, apart from one
closing line, so that logs stay short.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

_T = TypeVar("_T")
_WIDTH = 28


class Progress:
    """`with Progress("unpacking", total) as bar: bar.add(1)`; `total` None means unknown.

    Nothing is drawn in the first second, and at most ten times a second after it.
    """

    def __init__(self, label: str, total: int | None = None, unit: str = "") -> None:
        self.label, self.total, self.unit = label, total, unit
        self.count = 0
        self._began = self._drawn = time.monotonic()
        self._tty = sys.stderr.isatty()
        self._visible = False

    def add(self, amount: int = 1) -> None:
        """Count `amount` more and redraw if it is time."""
        self.set(self.count + amount)

    def set(self, count: int) -> None:
        """Set the count and redraw if it is time."""
        self.count = count
        now = time.monotonic()
        if self._tty and now - self._began > 1.0 and now - self._drawn > 0.1:
            self._drawn = now
            self._visible = True
            sys.stderr.write("\r" + self._line(now) + "\x1b[K")
            sys.stderr.flush()

    def _line(self, now: float) -> str:
        seconds = now - self._began
        if self.total:
            done = min(1.0, self.count / self.total)
            bar = "#" * round(done * _WIDTH)
            return f"{self.label} [{bar:<{_WIDTH}}] {done:4.0%} {seconds:.0f} s"
        return f"{self.label} {self.count:,} {self.unit} {seconds:.0f} s"

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        seconds = time.monotonic() - self._began
        if self._visible:
            sys.stderr.write("\r\x1b[K")
        if kind is None and seconds > 2.0:
            unit = f" {self.unit}" if self.unit else ""
            sys.stderr.write(f"{self.label}: {self.count:,}{unit} in {seconds:.0f} s\n")
        sys.stderr.flush()


def track(items: Iterable[_T], label: str, total: int | None = None) -> Iterator[_T]:
    """Yield `items` unchanged while a bar counts them."""
    with Progress(label, total) as bar:
        for item in items:
            yield item
            bar.add()
