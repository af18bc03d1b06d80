"""Answers on their way to a client who may leave: cancelled when it does, ended when time is up.

Knows ASGI; neither the engine nor the form of an answer.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from m27.serve.errors import ApiError

if TYPE_CHECKING:
    from starlette.requests import Request

T = TypeVar("T")
PING = b": still at it\n\n"


class Gone(Exception):  # noqa: N818 - it is not a fault
    """The client has left; nobody waits for an answer."""


def late() -> ApiError:
    """What a request is told whose time is up."""
    return ApiError(504, "the answer was not ready in time", code="timeout")


async def within(request: Request, work: Coroutine[Any, Any, T], seconds: float) -> T:
    """Do the work of a request whose body was read; cancelled where the client leaves (Gone is
    raised) or `seconds` have passed (ApiError, 504)."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(left(request.receive))
    try:
        await asyncio.wait({task, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Gone if gone.done() else late()
    finally:
        await ended(task, gone)


async def left(receive: Receive) -> None:
    """Wait until the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def ended(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks and wait until they have ended."""
    for task in tasks:
        if not task.done():
            task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Stream(Response):
    """A body that is produced piece by piece. `close` is called however it ends.

    `ping`: seconds of silence after which a comment is sent, in an event stream; `seconds`: until it
    must be whole. `gone` is told where the client leaves first.
    """

    def __init__(
        self,
        source: AsyncIterator[bytes],
        close: Callable[[], None],
        gone: Callable[[], None],
        seconds: float,
        media_type: str = "text/event-stream",
        ping: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status_code, self.background = 200, None
        self.media_type = media_type
        self._source, self._close, self._gone = source, close, gone
        self._until, self._ping = time.monotonic() + seconds, ping
        self._sent = float("inf")  # when the last piece was; not before the head
        self.init_headers({"x-accel-buffering": "no", **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the pieces as they come."""
        del scope
        watcher = asyncio.ensure_future(left(receive))
        writer = asyncio.ensure_future(self._write(send))
        pinger = asyncio.ensure_future(self._pings(send))
        try:
            seconds = max(0.0, self._until - time.monotonic())
            both = {watcher, writer}
            await asyncio.wait(both, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if writer.done():
                with suppress(OSError):  # the client has left while it was written
                    writer.result()
            elif watcher.done():
                self._gone()
            else:
                await ended(writer, pinger)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._too_late(send), 1.0)
        finally:
            await ended(writer, watcher, pinger)
            self._close()

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        self._sent = time.monotonic()
        async for piece in self._source:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            self._sent = time.monotonic()
        self._ping = None
        await send({"type": "http.response.body", "body": b""})

    async def _pings(self, send: Send) -> None:
        """Signs of life while nothing else is sent."""
        while (ping := self._ping) is not None:
            silent = max(0.0, time.monotonic() - self._sent)
            if silent < ping:
                await asyncio.sleep(ping - silent)
                continue
            self._sent = time.monotonic()
            await send({"type": "http.response.body", "body": PING, "more_body": True})

    async def _too_late(self, send: Send) -> None:
        """The end of a stream whose time is up; one that is no event stream just breaks off."""
        if self.media_type == "text/event-stream":
            told = json.dumps(late().to_json()).encode()
            body = b"data: " + told + b"\n\ndata: [DONE]\n\n"
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
