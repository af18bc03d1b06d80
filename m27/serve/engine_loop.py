"""The turns of an engine that is asked from elsewhere: what was asked, a step, what it told.

Cancelled is before the next step, and a step waits a moment for the request that follows an answer.
Knows the engine's interface (`add`, `cancel`, `step`, `busy`, `metrics`) and a port through which it is
asked; not who asks, nor whether that is a thread beside it or another process.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from m27.infer.request import Event, Request
from m27.serve.errors import ApiError, from_engine

if TYPE_CHECKING:
    from m27.language.processor import Processor

_log = logging.getLogger("m27.serve")
_COUNTED = 0.05  # seconds between looks at the engine's counts
_IDLE = 0.25  # seconds between the signs of life of an engine that has nothing to do
_TAKING = 0.03  # seconds of taking requests on between two steps; what comes then waits for the next
_LINGER = 0.008  # seconds; no client takes longer to ask the next thing, or it is not worth waiting for

K = TypeVar("K", bound=Hashable)
Counts = dict[str, Any]


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


@dataclass(frozen=True)
class Command(Generic[K]):
    """Something asked: a `request` to be taken on under a key, or without one a key to let go of. Without
    a key it is the end."""

    key: K | None = None
    request: Request | None = None
    live: bool = True


class Port(Protocol[K]):
    """How a loop is asked, and whom it tells."""

    def get(self, seconds: float) -> Command[K] | None:
        """What was asked next; None where nothing is within `seconds`."""
        ...

    def answer(self, key: K, error: ApiError | None) -> None:
        """A request was taken on, or refused."""
        ...

    def turn(self, told: Sequence[tuple[K, Event]], counts: Counts | None) -> None:
        """A turn is over: the events that are due, and the engine's counts where they are new."""
        ...


class EngineLoop(Generic[K]):
    """Runs an engine through a port. `linger`: how many seconds a step may wait for the next request of clients
    whose answers have just ended; None: as many as it is `worth`. `prepare`: what is done to a request before
    the engine has it; raises what the engine may."""

    def __init__(
        self,
        engine: EngineLike,
        port: Port[K],
        linger: float | None = None,
        prepare: Callable[[Request], None] = lambda request: None,
    ) -> None:
        self._engine, self._port, self._prepare = engine, port, prepare
        self._linger = Linger(_LINGER if linger is None else linger)
        self._fixed, self._step = linger is not None, 0.0  # seconds of a step, about
        self._numbers: dict[K, int] = {}
        self._open: dict[int, list[Any]] = {}  # number -> its key, answers whose end was not told yet
        self._later: deque[Command[K]] = deque()  # to be taken on after the next step

    def run(self) -> None:
        """Turn after turn until the end is asked for. Raises what the engine's step raises."""
        engine, counted, ended = self._engine, 0.0, 0
        while self._commands(ended):
            told: list[tuple[K, Event]] = []
            open_before = len(self._open)
            if engine.busy():
                began = time.monotonic()
                told = self._told(engine.step())
                self._step += 0.2 * (time.monotonic() - began - self._step)
            ended = open_before - len(self._open)
            now = time.monotonic()
            fresh = not engine.busy() or now - counted > _COUNTED
            if fresh:
                counted = now
            self._port.turn(told, engine.metrics() if fresh else None)

    def _commands(self, ended: int) -> bool:
        """Do what was asked for since the last step; where there is none to compute, wait for it, and where
        `ended` answers have just gone out, a moment for as many that follow them."""
        idle = not self._engine.busy() and not self._later
        patience = self._linger.begin(ended) if ended and not idle else 0.0
        if not self._fixed:
            patience = min(patience, worth(self._step, ended, len(self._open)))
        until, followed, spent = time.monotonic() + patience, 0, 0.0
        again, self._later = self._later, deque()
        while True:
            if again and spent < _TAKING:
                command: Command[K] | None = again.popleft()
            else:
                left = until - time.monotonic() if patience and followed < ended else 0.0
                command = self._port.get(_IDLE if idle else max(left, 0.0))
            if command is None:
                break
            idle = False
            if command.key is None:
                return False
            if command.request is not None:
                followed += 1
                if spent < _TAKING:
                    began = time.monotonic()
                    self._add(command.key, command.request, command.live)
                    spent += time.monotonic() - began
                else:
                    again.append(command)
            else:
                self._let_go(command.key, again)
        self._later = again
        if patience:
            self._linger.end(followed > 0)
        return True

    def _let_go(self, key: K, later: deque[Command[K]]) -> None:
        if (number := self._numbers.pop(key, None)) is not None:
            del self._open[number]
            self._engine.cancel(number)
        elif later:
            for command in [command for command in later if command.key == key]:
                later.remove(command)

    def _add(self, key: K, request: Request, live: bool) -> None:
        try:
            self._prepare(request)
            number = self._engine.add(request, live)
        except Exception as error:
            told = from_engine(error)
            if told.status >= 500:
                _log.error("a request could not be taken on", exc_info=error)
            self._port.answer(key, told)
            return
        self._numbers[key] = number
        self._open[number] = [key, request.n]
        self._port.answer(key, None)

    def _told(self, events: Sequence[tuple[int, Event]]) -> list[tuple[K, Event]]:
        """The events under the keys of those who asked; requests that end are forgotten."""
        out: list[tuple[K, Event]] = []
        for number, event in events:
            if (entry := self._open.get(number)) is None:
                continue
            out.append((entry[0], event))
            kind = event["type"]
            if kind in ("done", "error"):
                entry[1] -= 1
                if kind == "error" or not entry[1]:
                    del self._open[number], self._numbers[entry[0]]
        return out


def worth(step: float, ended: int, running: int) -> float:
    """Seconds for which it is worth to hold up `running` answers for the requests that follow `ended` ones.

    Without waiting those that follow come into the midst of a step of so many seconds and lose up to all of it; each
    second of waiting is lost by all that run and by them.
    """
    return step * ended / (running + ended) if ended else 0.0


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
    engine has its loop."""
    engine.add(Request([{"role": "user", "content": "hello"}], modalities=("text",), max_tokens=2))
    while engine.busy():
        engine.step()
