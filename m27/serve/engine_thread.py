"""The engine in a thread of its own: requests in through a queue, events out to the event loop.

The event loop never waits for a step, and the engine never waits for a client. What an answer says
is kept until its client takes it; one whose media pile up is given up. Knows the engine's interface
(`add`, `cancel`, `step`, `busy`, `metrics`, `close`), nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

import numpy as np

from m27.infer.request import Event, Request
from m27.language.processor import Processor
from m27.serve.errors import ApiError, from_engine

_log = logging.getLogger("m27.serve")
State = str  # "ok", "stuck", "dead", "closed"
_MOST_WAITING = 32 << 20  # bytes of media that one client may leave untaken
_SMALL = frozenset({"text", "logprobs", "done"})  # events without media
_COUNTED = 0.05  # seconds between looks at the engine's counts
_IDLE = 0.25  # seconds between the signs of life of an engine that has nothing to do
_LINGER = 0.008  # seconds, a sixth of a step of many answers on two cores


class EngineLike(Protocol):
    """What the server asks of an engine; `Engine` and `RemoteEngine` are two."""

    processor: Processor

    def add(self, request: Request, live: bool = True) -> int:
        """Take on a request; its number."""
        ...

    def cancel(self, number: int) -> None:
        """Let go of a request."""
        ...

    def step(self) -> list[tuple[int, Event]]:
        """Compute a step; the events that are due, each with the number of its request."""
        ...

    def busy(self) -> bool:
        """Whether some request still has events to come."""
        ...

    def metrics(self) -> dict[str, Any]:
        """Counts since the start."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...


class Ticket:
    """One request under way, as its client's coroutine sees it: `async for event in ticket`, and
    `leave()` in the end, however it came about."""

    def __init__(self, request: Request, live: bool, leave: Callable[[Ticket], None]) -> None:
        self.request, self.live = request, live
        self.loop = asyncio.get_running_loop()
        self.number: int | None = None  # the engine's; the thread sets it
        self.told = 0  # answers whose last event the thread has passed on
        self.left = request.n  # answers whose last event was not taken yet
        self.over = False  # the client has gone
        self.taken: asyncio.Future[None] = self.loop.create_future()
        self._events: deque[Event | ApiError] = deque()
        self._sleeper: asyncio.Future[None] | None = None  # the client's coroutine, where it waits
        self._waiting = 0  # bytes of media among the events that were not taken yet
        self._leave = leave

    def put(self, event: Event | ApiError) -> None:
        """An event for the client, or the error that is the last thing to come."""
        if isinstance(event, ApiError):
            self.accept(event)
        else:
            if self.over:
                return
            if event["type"] not in _SMALL:
                self._waiting += _size(event)
                if self._waiting > _MOST_WAITING:
                    self.leave()
                    event = ApiError(408, "the answer was not read in time", code="slow_client")
        self._events.append(event)
        if self._sleeper is not None and not self._sleeper.done():
            self._sleeper.set_result(None)

    def accept(self, error: ApiError | None) -> None:
        """The engine has taken the request on, or refused it."""
        if not self.taken.done():
            if error is None:
                self.taken.set_result(None)
            else:
                self.taken.set_exception(error)
                self.taken.exception()  # whoever left meanwhile need not fetch it

    async def __aiter__(self) -> AsyncIterator[Event]:
        """The events, to the last. Raises ApiError for a request that fails."""
        async for batch in self.batches():
            for event in batch:
                yield event

    async def batches(self) -> AsyncIterator[list[Event]]:
        """The events, to the last: those that are there at once together, so that they are written
        at once, but each with media alone, for what is taken counts as waiting no more. Raises
        ApiError for a request that fails."""
        batch: list[Event] = []
        while self.left:
            if not self._events:
                if batch:
                    yield batch
                    batch = []
                    continue
                self._sleeper = self.loop.create_future()
                await self._sleeper
            event = self._events.popleft()
            small = not isinstance(event, ApiError) and event["type"] in _SMALL
            if batch and not small:
                yield batch
                batch = []
            if isinstance(event, ApiError):
                raise event
            if event["type"] == "error":
                raise ApiError(500, "the answer failed", code="answer_failed")
            self.left -= event["type"] == "done"
            batch.append(event)
            if not small:
                self._waiting -= _size(event)
                yield batch
                batch = []
        if batch:
            yield batch

    def leave(self) -> None:
        """No more is wanted; what is not finished is cancelled before the engine's next step."""
        if not self.over:
            self.over = True
            self._leave(self)


class EngineThread:
    """Runs an engine. All methods but the thread's own are for the event loop.

    `stuck_seconds`: a step that takes longer counts as stuck; then, and when the thread has died,
    waiting requests fail with a 500 and new ones with a 503. One that recovers is taken again.
    `linger`: how long a step may wait for the next request of clients whose answers have just ended.
    """

    def __init__(
        self, engine: EngineLike, stuck_seconds: float = 120.0, linger: float = _LINGER
    ) -> None:
        self.engine = engine
        self._linger = Linger(linger)
        self._stuck_seconds = stuck_seconds
        self._in: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._tickets: dict[int, Ticket] = {}  # the thread's: by number of the request
        self._open: set[Ticket] = set()  # the event loop's: all that have not ended
        self._beat = time.monotonic()
        self._closing = False
        self._death: BaseException | None = None
        self._metrics: dict[str, Any] = engine.metrics()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def state(self) -> State:
        """The truth about the engine: "ok", "stuck", "dead" or "closed"."""
        if self._closing:
            return "closed"
        if self._death is not None or not self._thread.is_alive():
            return "dead"
        return "stuck" if time.monotonic() - self._beat > self._stuck_seconds else "ok"

    def metrics(self) -> dict[str, Any]:
        """The engine's counts as of its last step or idle moment."""
        return self._metrics

    async def ask(self, request: Request, live: bool = True) -> Ticket:
        """Put a request to the engine; its ticket once the engine has taken it on.

        Raises ApiError where the engine refuses it or cannot answer at all.
        """
        if (state := self.state) != "ok":
            raise ApiError(
                503, f"the engine is {state}; try again later", code="engine_unavailable",
                retry_after=5.0,
            )  # fmt: skip
        ticket = Ticket(request, live, self._leave)
        self._open.add(ticket)
        self._in.put(("add", ticket))
        try:
            await ticket.taken
        except BaseException:
            ticket.leave()
            raise
        return ticket

    def _leave(self, ticket: Ticket) -> None:
        self._open.discard(ticket)
        if ticket.left:
            self._in.put(("cancel", ticket))

    async def watch(self, every: float = 1.0) -> None:
        """Fail what waits as soon as the engine is dead or stuck. Runs until it is cancelled."""
        while True:
            await asyncio.sleep(every)
            self.check()

    def check(self) -> State:
        """The state; where it is not "ok", whatever waits has been told so."""
        state = self.state
        if state != "ok":
            for ticket in list(self._open):
                self._open.discard(ticket)
                ticket.put(ApiError(500, f"the engine is {state}", code="engine_failed"))
        return state

    def open_tickets(self) -> int:
        """Requests that have not ended."""
        return len(self._open)

    def close(self, timeout: float = 10.0) -> None:
        """Cancel everything, end the thread, and let the engine close what it holds."""
        if not self._closing:
            self._closing = True
            self._in.put(("close", None))
            self._thread.join(timeout)
            if not self._thread.is_alive():
                self.engine.close()

    # In the thread

    def _run(self) -> None:
        counted = 0.0
        try:
            ended = 0
            while self._commands(ended):
                self._beat = time.monotonic()
                ended = 0
                if self.engine.busy():
                    open_before = len(self._tickets)
                    self._deliver(self.engine.step())
                    ended = open_before - len(self._tickets)
                if not self.engine.busy() or self._beat - counted > _COUNTED:
                    self._metrics, counted = self.engine.metrics(), self._beat
        except BaseException as error:
            self._death = error
            told = ApiError(500, "the engine has died", code="engine_failed")
            for ticket in self._tickets.values():
                _call(ticket.loop, ticket.put, told)
            _log.critical("the engine has died", exc_info=error)

    def _commands(self, ended: int = 0) -> bool:
        """Do what was asked for since the last step; where there is none to compute, wait for it, and where
        `ended` answers have just gone out, a moment for as many that follow them."""
        idle = not self.engine.busy()
        patience = self._linger.begin(ended) if ended and not idle else 0.0
        until, followed = time.monotonic() + patience, 0
        with contextlib.suppress(queue.Empty):
            while True:
                left = until - time.monotonic() if patience and followed < ended else 0.0
                if idle or left > 0:
                    what, ticket = self._in.get(timeout=_IDLE if idle else left)
                else:
                    what, ticket = self._in.get_nowait()
                idle = False
                if what == "close":
                    return False
                if what == "add":
                    followed += 1
                    self._add(ticket)
                elif ticket.number is not None:
                    self._tickets.pop(ticket.number, None)
                    self.engine.cancel(ticket.number)
        if patience:
            self._linger.end(followed > 0)
        return True

    def _add(self, ticket: Ticket) -> None:
        if ticket.over:  # its client has left before its turn came
            return
        try:
            ticket.number = self.engine.add(ticket.request, ticket.live)
        except Exception as error:
            told = from_engine(error)
            if told.status >= 500:
                _log.error("a request could not be taken on", exc_info=error)
            _call(ticket.loop, ticket.accept, told)
            return
        self._tickets[ticket.number] = ticket
        _call(ticket.loop, ticket.accept, None)

    def _deliver(self, events: list[tuple[int, Event]]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Ticket, Event]]] = {}
        for number, event in events:
            if (ticket := self._tickets.get(number)) is not None:
                by_loop.setdefault(ticket.loop, []).append((ticket, event))
                ticket.told += event["type"] == "done"
                if event["type"] == "error" or ticket.told == ticket.request.n:
                    del self._tickets[number]
        for loop, pairs in by_loop.items():
            _call(loop, _hand_out, pairs)


class Linger:
    """Whether to wait a moment after an answer's end, for the request that its client sends next.

    Who asks one thing after another sends the next within a few milliseconds; a step begun before it comes
    costs that request the whole step. Where nobody follows, waiting is tried once in sixteen times only.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._hits, self._skipped = 0.5, 0

    def begin(self, ended: int) -> float:
        """Seconds to wait at most now."""
        if self._hits > 0.25 or self._skipped >= 15:
            self._skipped = 0
            return self._seconds
        self._skipped += 1
        return 0.0

    def end(self, followed: bool) -> None:
        """How the waiting came out."""
        self._hits += 0.1 * (followed - self._hits)


def warm_up(engine: EngineLike) -> None:
    """Answer a word, so that the first request does not wait for what is done once. Before the
    engine has its thread."""
    engine.add(Request([{"role": "user", "content": "hello"}], modalities=("text",), max_tokens=2))
    while engine.busy():
        engine.step()


def _size(event: Event) -> int:
    return sum(value.nbytes for value in event.values() if isinstance(value, np.ndarray))


def _hand_out(pairs: list[tuple[Ticket, Event]]) -> None:
    for ticket, event in pairs:
        ticket.put(event)


def _call(loop: asyncio.AbstractEventLoop, what: Callable[..., None], *arguments: Any) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended, and its clients with it
        loop.call_soon_threadsafe(what, *arguments)
