"""The engine in a thread of its own: requests in through a queue, events out to the event loop.

The engine never waits for a client. Knows the loop and its port, nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from m27.infer.request import Event
from m27.serve.engine_loop import Command, Counts, EngineLike, EngineLoop
from m27.serve.errors import ApiError
from m27.serve.front import Front
from m27.serve.ticket import Ticket

_log = logging.getLogger("m27.serve")


class EngineThread(Front):
    """Runs an engine in a thread; see `Front`, and `EngineLoop` for `linger`."""

    def __init__(
        self, engine: EngineLike, stuck_seconds: float = 120.0, linger: float | None = None
    ) -> None:
        super().__init__(engine.processor, stuck_seconds)
        self.engine = engine
        self._loop: EngineLoop[Ticket] = EngineLoop(engine, self, linger)
        self._in: queue.SimpleQueue[Command[Ticket]] = queue.SimpleQueue()
        self._death: BaseException | None = None
        self._metrics = engine.metrics()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def close(self, timeout: float = 10.0) -> None:
        """Cancel everything, end the thread, and let the engine close what it holds."""
        if not self._closing:
            self._closing = True
            self._in.put(Command())
            self._thread.join(timeout)
            if not self._thread.is_alive():
                self.engine.close()

    def _alive(self) -> bool:
        return self._death is None and self._thread.is_alive()

    def _add(self, ticket: Ticket) -> None:
        self._in.put(Command(ticket, ticket.request, ticket.live))

    def _cancel(self, ticket: Ticket) -> None:
        self._in.put(Command(ticket))

    # In the thread

    def _run(self) -> None:
        try:
            self._loop.run()
        except BaseException as error:
            self._death = error
            told = ApiError(500, "the engine has died", code="engine_failed")
            for ticket in list(self._open):
                _call(ticket.loop, ticket.put, told)
            _log.critical("the engine has died", exc_info=error)

    def get(self, seconds: float) -> Command[Ticket] | None:
        """As `Port`: whoever has left before its turn came is passed over."""
        with contextlib.suppress(queue.Empty):
            command = self._in.get(timeout=seconds) if seconds else self._in.get_nowait()
            if command.key is not None and command.key.over:
                return Command(command.key)  # of which the engine may know nothing
            return command
        return None

    def answer(self, key: Ticket, error: ApiError | None) -> None:
        """A request was taken on, or refused: its client's loop is told."""
        _call(key.loop, key.accept, error)

    def turn(self, told: Sequence[tuple[Ticket, Event]], counts: Counts | None) -> None:
        """As `Port`; also a sign of life."""
        self._beat = time.monotonic()
        if counts is not None:
            self._metrics = counts
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Ticket, Event]]] = {}
        for ticket, event in told:
            by_loop.setdefault(ticket.loop, []).append((ticket, event))
        for loop, pairs in by_loop.items():
            _call(loop, _hand_out, pairs)


def _hand_out(pairs: list[tuple[Ticket, Event]]) -> None:
    for ticket, event in pairs:
        ticket.put(event)


def _call(loop: asyncio.AbstractEventLoop, what: Callable[..., None], *arguments: Any) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended, and its clients with it
        loop.call_soon_threadsafe(what, *arguments)
