"""One request under way, as its client's coroutine sees it. Knows events; no engine and no HTTP.

What an answer says is kept until its client takes it; one whose media pile up is given up.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

import numpy as np

from m27.infer.request import Event, Request
from m27.serve.errors import ApiError

_MOST_WAITING = 32 << 20  # bytes of media that one client may leave untaken
_SMALL = frozenset({"text", "logprobs", "done"})  # events without media


class Ticket:
    """`async for event in ticket`, and `leave()` in the end, however it came about. All for one event loop."""

    def __init__(self, request: Request, live: bool, leave: Callable[[Ticket], None]) -> None:
        self.request, self.live = request, live
        self.loop = asyncio.get_running_loop()
        self.told = 0  # answers whose last event has come
        self.left = request.n  # those whose last event was not taken yet
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


def _size(event: Event) -> int:
    return sum(value.nbytes for value in event.values() if isinstance(value, np.ndarray))
