"""A socket to another process, for an event loop that never waits for it: frames in, frames out.

What cannot be sent at once is kept until it can. Knows frames; not what they say.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from m27.serve import wire

_PIECE = 1 << 18  # bytes taken at once


class Pipe:
    """One end of a socket pair, from now on the running loop's. `heard` is told each value that comes, and may
    raise WireError; `lost` is told once that no more will come, with a reason where what came was no frame."""

    def __init__(
        self, link: socket.socket, heard: Callable[[Any], None], lost: Callable[[str | None], None]
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self._link, self._heard, self._lost = link, heard, lost
        self._frames = wire.Frames()
        self._out = bytearray()
        self._open = True
        link.setblocking(False)
        self.loop.add_reader(link, self._read)

    def send(self, value: Any) -> None:
        """A value, after those before it; nothing where the other side is gone."""
        if not self._open:
            return
        data = wire.frame(value)
        if not self._out:
            data = data[self._sent(data) :]
            if data:
                self.loop.add_writer(self._link, self._write)
        self._out += data

    def close(self) -> None:
        """No more is heard, and nobody told; the socket is closed."""
        if self._open:
            self._open = False
            self._out.clear()
            self.loop.remove_reader(self._link)
            self.loop.remove_writer(self._link)
            self._link.close()

    def _sent(self, data: bytes | bytearray) -> int:
        try:
            return self._link.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:  # it is gone; the reader is told as well, after what it still said
            return len(data)

    def _write(self) -> None:
        del self._out[: self._sent(self._out)]
        if not self._out:
            self.loop.remove_writer(self._link)

    def _read(self) -> None:
        why = None
        try:
            data = self._link.recv(_PIECE)
            for value in self._frames.feed(data):
                self._heard(value)
            if data:
                return
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            pass
        except wire.WireError as error:
            why = str(error)
        self.close()
        self._lost(why)
