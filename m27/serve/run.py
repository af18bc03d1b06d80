"""The server as a process: uvicorn, and a stop that lets the answers under way end.

Knows signals; the application is `m27.serve.app`, the socket comes from `m27.serve.listen`.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import uvicorn

from m27.serve.app import WEB, create_app
from m27.serve.guard import Guard
from m27.serve.server import Server
from m27.serve.trace import Wrap, plain

_HEAD_BYTES = 32 << 10  # of a request's line and headers
_SWITCH_SECONDS = 0.0005
_KEEP_ALIVE = 10  # seconds that an idle connection is kept


class Service(uvicorn.Server):
    """uvicorn's server, which tells the guard when it is to stop, and somebody once it answers."""

    def __init__(self, config: uvicorn.Config, guard: Guard, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._guard, self._ready = guard, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen; then say so."""
        await super().startup(sockets)
        if self.started:
            self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """On SIGTERM or SIGINT: take no more, let end what is under way."""
        self._guard.draining = True
        super().handle_exit(sig, frame)


def service(
    server: Server,
    ready: Callable[[], None] = lambda: None,
    web: Path = WEB,
    wrap: Wrap = plain,
) -> Service:
    """The service of a server, not yet running: `serve(sockets=[listen(…)])` runs it."""
    settings = server.settings
    guard = create_app(server, web)
    config = uvicorn.Config(
        wrap(guard), log_config=None, access_log=False, server_header=False, http="h11", ws="none",
        loop="asyncio", lifespan="on", proxy_headers=False, timeout_keep_alive=_KEEP_ALIVE,
        limit_concurrency=settings.connections, h11_max_incomplete_event_size=_HEAD_BYTES,
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
    )  # fmt: skip
    return Service(config, guard, ready)


def run(
    server: Server, listening: socket.socket, ready: Callable[[], None], wrap: Wrap = plain
) -> None:
    """Serve until SIGTERM or SIGINT. `ready` is called once requests are answered."""
    running = service(server, ready, wrap=wrap)
    # The engine's thread wants the interpreter back after each step; by default it would wait 5 ms.
    sys.setswitchinterval(_SWITCH_SECONDS)
    # uvicorn raises the signal once more when it has ended; then it is not to kill the process.
    signal.signal(signal.SIGTERM, lambda *_: None)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(running.serve(sockets=[listening]))
