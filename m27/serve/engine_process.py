"""The engine in a process of its own, with an interpreter of its own: what the event loop does for one step's
events and what the engine does for the next step go on at once, on two cores, and no lock is shared.

The process is started here and again where it dies, a few times; what it says is believed only as far as it is
well formed. Knows frames and tickets; no HTTP, and nothing of how a model is loaded (`engine_child` does).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m27.serve import wire
from m27.serve.front import Front
from m27.serve.launch import Launch
from m27.serve.pipe import Pipe
from m27.serve.ticket import Ticket

if TYPE_CHECKING:
    from m27.language.processor import Processor

_log = logging.getLogger("m27.serve")
_ROOT = Path(__file__).resolve().parents[2]
_PIECE = 1 << 18
RESTARTS, WITHIN = 5, 600.0  # so many starts anew within so many seconds; then it stays dead


class EngineStartError(RuntimeError):
    """The engine could not be loaded; the message is one line."""


class EngineProcess(Front):
    """Runs an engine in a process; see `Front`. The process is started by the constructor; `wait` for it.

    The thread that makes this, and later that of the event loop, must last as long as the process: the
    system ends it with the thread that started it.
    """

    encodes = True

    def __init__(
        self, launch: Launch, stuck_seconds: float = 120.0, processor: Processor | None = None
    ) -> None:
        self._launch = launch
        self._starts: deque[float] = deque(maxlen=RESTARTS)
        self._child, self._link = self._start()
        try:
            super().__init__(processor or _processor(launch), stuck_seconds)
        except BaseException:
            self._give_up()
            raise
        self._tickets: dict[int, Ticket] = {}  # by number: those whose end the engine has not told yet
        self._keys: dict[Ticket, int] = {}
        self._numbers = 0
        self._ready = False
        self._pipe: Pipe | None = None

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._child.pid

    def wait(self) -> None:
        """Until the engine is loaded. Raises EngineStartError, or what loading it here would have raised
        of the system's errors and missing packages. Before there is an event loop."""
        frames, said = wire.Frames(), None
        try:
            while said is None:
                data = self._link.recv(_PIECE)
                if not data:
                    status = self._child.wait(10.0)
                    raise EngineStartError(f"the engine's process ended while it was loaded ({_status(status)})")
                said = next(frames.feed(data), None)
            self._starting(said)
        except BaseException:
            self._give_up()
            raise

    def _give_up(self) -> None:
        self._child.kill()
        self._child.wait()
        self._link.close()

    def _start(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        ours, theirs = socket.socketpair()
        with theirs:
            path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
            others = {name: value for name, value in os.environ.items() if name != "M27_API_KEYS"}
            child = subprocess.Popen(
                [sys.executable, "-P", "-m", "m27.serve.engine_child", str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL, stdout=2, pass_fds=[theirs.fileno()],
                env={**others, "PYTHONPATH": path},
                process_group=0,  # Ctrl-C is for the server, which then ends this one
            )  # fmt: skip
        with contextlib.suppress(OSError):  # it has ended already, as is seen soon
            ours.sendall(wire.frame(asdict(self._launch)))
        return child, ours

    def _starting(self, said: Any) -> None:
        """The first thing that the process says. Raises as `wait` does."""
        if isinstance(said, dict) and said.get("ready") is True and isinstance(said.get("counts"), dict):
            self._metrics, self._beat, self._ready = said["counts"], time.monotonic(), True
            return
        match said:
            case {"failed": {"kind": "package", "name": str(name), "line": str(line)}}:
                raise ModuleNotFoundError(line, name=name)
            case {"failed": {"kind": "system", "number": int(number), "strerror": str(text), "name": name}}:
                raise OSError(number, text, name)
            case {"failed": {"kind": "ours", "line": str(line)}}:
                raise EngineStartError(line)
            case {"failed": {"line": str(line)}}:
                raise EngineStartError(f"the engine's process failed: {line}")
        raise EngineStartError("the engine's process says what cannot be understood")

    def _alive(self) -> bool:
        return self._ready

    # Of the event loop

    async def watch(self, every: float = 1.0) -> None:
        """Hear the process, and fail what waits as soon as it is dead or stuck. Runs until it is cancelled."""
        self._attach()
        await super().watch(every)

    def _attach(self) -> None:
        """Let the running loop hear the process, if none does yet."""
        if self._pipe is None and not self._closing:
            child = self._child
            self._pipe = Pipe(self._link, self._heard, lambda why: self._lost(child, why))

    def _add(self, ticket: Ticket) -> None:
        self._attach()
        self._numbers += 1
        self._tickets[self._numbers], self._keys[ticket] = ticket, self._numbers
        self._send({"key": self._numbers, "live": ticket.live, "request": wire.request_out(ticket.request)})

    def _cancel(self, ticket: Ticket) -> None:
        if (key := self._keys.get(ticket)) is not None:
            self._forget(key)
            self._send({"key": key})

    def _send(self, value: Any) -> None:
        if self._pipe is not None and not self._closing:
            self._pipe.send(value)

    def _forget(self, key: int) -> None:
        if (ticket := self._tickets.pop(key, None)) is not None:
            del self._keys[ticket]

    def _heard(self, value: Any) -> None:
        """A frame's value came from the process. Raises WireError."""
        if not self._ready:
            try:
                self._starting(value)
            except (EngineStartError, OSError, ModuleNotFoundError) as error:
                _log.critical("the engine could not be started anew", exc_info=error)
                return
            _log.warning("the engine runs again", extra={"facts": {"engine_pid": self.pid}})
            return
        self._beat = time.monotonic()
        try:
            if "refused" in value:
                key, refusal = value["refused"]
                if (ticket := self._tickets.get(key)) is not None:
                    self._forget(key)
                    ticket.accept(wire.error_in(refusal))
                return
            for key in value.get("taken", ()):
                if (ticket := self._tickets.get(key)) is not None:
                    ticket.accept(None)
            for key, event in value["told"]:
                self._tell(key, wire.event_in(event))
            if "counts" in value:
                self._metrics = dict(value["counts"])
        except wire.WireError:
            raise
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise wire.WireError(f"no word of the engine's: {error}") from None

    def _tell(self, key: int, event: Any) -> None:
        if (ticket := self._tickets.get(key)) is None:
            return
        ticket.put(event)
        if event["type"] in ("done", "error"):
            ticket.told += 1
            if event["type"] == "error" or ticket.told == ticket.request.n:
                self._forget(key)

    def _lost(self, child: subprocess.Popen[bytes], why: str | None) -> None:
        """The process has gone, or is not to be believed any more: what waits fails, and it is started anew."""
        if self._closing or child is not self._child:
            return
        self._ready = False
        if child.poll() is None:
            with contextlib.suppress(OSError):
                child.kill()
        self._tickets.clear()
        self._keys.clear()
        self._fail("the engine has died")
        loop, now = asyncio.get_running_loop(), time.monotonic()
        loop.run_in_executor(None, child.wait)  # so that nothing is left of it
        loop.call_later(1.0, _note, child, why)
        if len(self._starts) == RESTARTS and now - self._starts[0] < WITHIN:
            _log.critical("the engine dies again and again, and is not started any more")
            return
        delay = 0.0 if not self._starts or now - self._starts[-1] > WITHIN else 2.0 ** len(self._starts) / 2
        loop.call_later(delay, self._again)

    def _again(self) -> None:
        if self._closing:
            return
        self._starts.append(time.monotonic())
        try:
            self._child, self._link = self._start()
        except OSError as error:
            _log.critical("the engine could not be started anew", exc_info=error)
            return
        self._pipe = None
        self._attach()

    def close(self, timeout: float = 10.0) -> None:
        """As `Front`: the process ends when the socket does. May be called from any thread."""
        if self._closing:
            return
        self._closing = True
        with contextlib.suppress(OSError):
            self._link.shutdown(socket.SHUT_RDWR)
        try:
            self._child.wait(timeout)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        try:
            if self._pipe is not None:
                self._pipe.loop.call_soon_threadsafe(self._pipe.close)
                return
        except RuntimeError:  # the loop has ended
            pass
        self._link.close()


def _processor(launch: Launch) -> Processor:
    from m27.language.processor import Processor  # imports torch, while the other process does too

    return Processor.load(launch.folder)


def _note(child: subprocess.Popen[bytes], why: str | None) -> None:
    """Log how a process ended, once that is known."""
    status = child.poll()
    facts = {"engine_pid": child.pid, "ended": "not yet" if status is None else _status(status)}
    _log.critical("the engine has died", extra={"facts": facts | ({"why": why} if why else {})})


def _status(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-status).name
    return f"signal {-status}"
