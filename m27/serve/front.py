"""The engine as the event loop sees it, wherever it runs: requests in, tickets out, and how it fares.

The event loop never waits for a step. Knows tickets; no engine and no HTTP.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from m27.infer.request import Request
from m27.serve.errors import ApiError
from m27.serve.ticket import Ticket

if TYPE_CHECKING:
    from m27.language.processor import Processor

State = str  # "ok", "stuck", "dead", "closed"


class Front(ABC):
    """An engine that runs elsewhere. All methods are for the event loop.

    `stuck_seconds`: a step that takes longer counts as stuck; then, and when the engine has died,
    waiting requests fail with a 500 and new ones with a 503. One that recovers is taken again.
    """

    encodes = False  # whether pictures may come as pixels, which it turns into codes between two steps

    def __init__(self, processor: Processor, stuck_seconds: float) -> None:
        self.processor = processor
        self._stuck_seconds = stuck_seconds
        self._open: set[Ticket] = set()  # all that have not ended
        self._beat = time.monotonic()  # the engine's last sign of life
        self._closing = False
        self._metrics: dict[str, Any] = {}

    @property
    def state(self) -> State:
        """The truth about the engine: "ok", "stuck", "dead" or "closed"."""
        if self._closing:
            return "closed"
        if not self._alive():
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
        try:
            self._add(ticket)
            await ticket.taken
        except BaseException:
            ticket.leave()
            raise
        return ticket

    def _leave(self, ticket: Ticket) -> None:
        self._open.discard(ticket)
        if ticket.left:
            self._cancel(ticket)

    async def watch(self, every: float = 1.0) -> None:
        """Fail what waits as soon as the engine is dead or stuck. Runs until it is cancelled."""
        while True:
            await asyncio.sleep(every)
            self.check()

    def check(self) -> State:
        """The state; where it is not "ok", whatever waits has been told so."""
        state = self.state
        if state != "ok":
            self._fail(f"the engine is {state}")
        return state

    def _fail(self, why: str) -> None:
        """Tell whatever waits that it fails."""
        for ticket in list(self._open):
            self._open.discard(ticket)
            ticket.put(ApiError(500, why, code="engine_failed"))

    def open_tickets(self) -> int:
        """Requests that have not ended."""
        return len(self._open)

    @abstractmethod
    def close(self, timeout: float = 10.0) -> None:
        """Cancel everything, end the engine, and let it close what it holds."""

    @abstractmethod
    def _alive(self) -> bool:
        """Whether the engine runs."""

    @abstractmethod
    def _add(self, ticket: Ticket) -> None:
        """Pass a request on; the ticket is accepted in its time."""

    @abstractmethod
    def _cancel(self, ticket: Ticket) -> None:
        """Pass on that no more is wanted."""
