"""The process of the engine: it loads the model, and answers what the server's process asks through a socket.

Run by `engine_process` as `python -P -m m27.serve.engine_child FD PARENT`. The first frame says what to load
(`Launch`), the answer is "ready" or why not; then come requests and what is told of them (`wire`). It ends when
the other side closes the socket, and with the other process at the latest, whatever that one dies of. What
Ctrl-C and SIGTERM send is the server's to decide about.

Everything is done in one thread: what was asked is read between two steps, and all that a step tells is one
write. Knows no HTTP.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Sequence
from typing import Any

from m27.infer.request import Event, Request
from m27.language.template import MessageError
from m27.serve import logs, wire
from m27.serve.engine_loop import Command, Counts, EngineLike, EngineLoop
from m27.serve.errors import ApiError
from m27.serve.launch import Launch, made

_PIECE = 1 << 18
_SIGN_OF_LIFE = 0.25  # seconds without a word, after which one is said
_SWITCH_SECONDS = 0.0005
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>


class Link:
    """The child's side of the socket, as a `Port` of the loop; keys are the server's numbers."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._frames = wire.Frames()
        self._asked: deque[Any] = deque()
        self._taken: list[int] = []  # to be told with the turn's events
        self._said = 0.0

    def receive(self, seconds: float) -> Any:
        """The next frame's value; None where none is there within `seconds`, or the other side has closed
        (`{}`)."""
        while not self._asked:
            if not select.select([self._link], [], [], seconds)[0]:
                return None
            if not (data := self._link.recv(_PIECE)):
                return {}
            self._asked += self._frames.feed(data)
        return self._asked.popleft()

    def send(self, value: Any) -> None:
        """One frame. Raises OSError where the other side is gone."""
        self._link.sendall(wire.frame(value))
        self._said = time.monotonic()

    def get(self, seconds: float) -> Command[int] | None:
        """What the server asks next; None where nothing comes within `seconds`. Raises OSError, WireError."""
        if (value := self.receive(seconds)) is None:
            return None
        if not value:
            return Command()
        key, request = value["key"], value.get("request")
        return Command(key, None if request is None else wire.request_in(request), value.get("live", True))

    def answer(self, key: int, error: ApiError | None) -> None:
        """As `Port`. A refusal is told at once; that a request was taken on, with what is told next, so that
        the server is not woken while the step wants the cores."""
        if error is None:
            self._taken.append(key)
        else:
            self.send({"refused": [key, wire.error_out(error)]})

    def turn(self, told: Sequence[tuple[int, Event]], counts: Counts | None) -> None:
        """Tell the server what is due, in one frame; ends first, for their clients may ask the next thing."""
        if told or self._taken or time.monotonic() - self._said > _SIGN_OF_LIFE:
            ending = {key for key, event in told if event["type"] == "done"}
            if ending and len(ending) < len(told):  # first those whose clients may ask the next thing
                told = sorted(told, key=lambda pair: pair[0] not in ending)
            value: dict[str, Any] = {"told": [(key, wire.event_out(event)) for key, event in told]}
            if self._taken:
                value["taken"], self._taken = self._taken, []
            if counts is not None:
                value["counts"] = counts
            self.send(value)


class Codes:
    """Turns pictures that come as pixels into codes, on one core while no step wants it; those made before
    are remembered."""

    def __init__(self, engine: EngineLike) -> None:
        self._engine = engine
        self._encoder: Any = None

    def __call__(self, request: Request) -> None:
        """The pictures of a request, in place. Raises MessageError."""
        for number, message in enumerate(request.messages):
            content = message["content"]
            for place, part in enumerate(content if isinstance(content, list) else ()):
                if "image" in part:
                    if self._encoder is None:
                        from m27.infer.encode import Encoder  # imports torch

                        self._encoder = Encoder(self._engine.processor)
                    try:
                        part["codes"] = self._encoder.image(part.pop("image"), request.tenant).result()
                    except MessageError as error:
                        where = f"messages[{number}].content[{place}]"
                        raise MessageError(f"{where}: {str(error).rpartition(': ')[2]}") from None


def main(arguments: Sequence[str]) -> int:
    """Serve until the other side closes. The exit status."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _die_with(int(arguments[1]))
    link = Link(socket.socket(fileno=int(arguments[0])))
    if not (said := link.receive(60.0)):
        return 0
    launch = Launch(**said)
    try:
        engine = made(launch)
    except BaseException as error:
        link.send({"failed": _fault(error)})
        return 1
    logs.set_up(launch.log_level)
    sys.setswitchinterval(_SWITCH_SECONDS)  # as in the server's process
    link.send({"ready": True, "counts": engine.metrics()})
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the server has gone
        EngineLoop(engine, link, launch.linger, Codes(engine)).run()
    engine.close()
    return 0


def _fault(error: BaseException) -> dict[str, Any]:
    """What the server's process is told of an error, so that it says there what it would have said here."""
    line = " ".join(str(error).split())
    if isinstance(error, ModuleNotFoundError):
        return {"kind": "package", "name": error.name or "", "line": line}
    if isinstance(error, OSError):
        name = None if error.filename is None else str(error.filename)
        return {"kind": "system", "number": error.errno or 0, "strerror": error.strerror or line, "name": name}
    if type(error).__module__.startswith("m27.") and isinstance(error, Exception):
        return {"kind": "ours", "line": line}
    traceback.print_exception(error)  # a fault in the program: whoever mends it wants to see where
    return {"kind": "fault", "line": f"{type(error).__name__}: {line}"}


def _die_with(parent: int) -> None:
    """Have the system end this process with the one that started it, even in the midst of a step."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
