"""Ids to events within the step: what decodes where no thread beside it does.

`Media` is what the engine asks of whatever turns ids into events; `Inline` does it at once, which
the oracle and tests want, and an engine that writes nothing but text. Knows ids and codecs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from m27.infer.request import Event
from m27.infer.stops import Stops
from m27.language.processor import Processor
from m27.language.stream import StreamDecoder


class Media(Protocol):
    """Events of many answers, each under a key; those of one answer keep their order."""

    def open(self, key: int, stops: Stops | None = None, live: bool = True) -> None:
        """Begin an answer. With `live` off there need be no packets and previews."""
        ...

    def push(self, key: int, ids: Sequence[int]) -> bool:
        """Take the next ids; False once no more are of use, because a stop string was found."""
        ...

    def put(self, key: int, event: Event) -> None:
        """An event of the caller's own, behind all that came before."""
        ...

    def finish(self, key: int) -> None:
        """No more ids will come; what was held back is due."""
        ...

    def cancel(self, key: int) -> None:
        """Forget an answer and its events."""
        ...

    def poll(self) -> list[tuple[int, Event]]:
        """The events that are ready; one of type "error" is an answer's last."""
        ...

    def close(self) -> None:
        """Nothing is asked any more."""
        ...


@dataclass
class _Open:
    decoder: StreamDecoder
    stops: Stops | None
    failed: bool = False


class Inline:
    """Decodes when it is told an id, in the caller's thread."""

    def __init__(self, processor: Processor) -> None:
        self._processor = processor
        self._open: dict[int, _Open] = {}
        self._ready: list[tuple[int, Event]] = []

    def open(self, key: int, stops: Stops | None = None, live: bool = True) -> None:
        """Begin an answer; sounds always come in packets."""
        self._open[key] = _Open(self._processor.stream(), stops)

    def push(self, key: int, ids: Sequence[int]) -> bool:
        """Take the next ids; False once no more are of use."""
        state = self._open.get(key)
        if state is None or state.failed:
            return False
        try:
            for id in ids:
                if state.stops is not None and state.stops.hit is not None:
                    break
                self._tell(key, state, state.decoder.push(id))
        except Exception as error:  # one answer must not take the others with it
            state.failed = True
            message = " ".join(f"{type(error).__name__}: {error}".split())
            self._ready.append((key, {"type": "error", "message": message}))
        return not state.failed and (state.stops is None or state.stops.hit is None)

    def _tell(self, key: int, state: _Open, events: Sequence[Event]) -> None:
        for event in events:
            if state.stops is None:
                self._ready.append((key, event))
                continue
            text = event["text"] if event["type"] == "text" else ""
            shown = state.stops.push(text) if text else state.stops.flush()
            if shown:
                self._ready.append((key, {"type": "text", "text": shown}))
            if not text:
                self._ready.append((key, event))

    def put(self, key: int, event: Event) -> None:
        """An event of the caller's own, behind all that came before."""
        self._ready.append((key, event))

    def finish(self, key: int) -> None:
        """No more ids will come; what was held back is due."""
        state = self._open.pop(key, None)
        if state is None or state.failed:
            return
        stops = state.stops
        if stops is None or stops.hit is None:
            self._tell(key, state, state.decoder.finish())
            if stops is not None and (text := stops.flush()):
                self._ready.append((key, {"type": "text", "text": text}))

    def cancel(self, key: int) -> None:
        """Forget an answer and its events."""
        self._open.pop(key, None)
        self._ready = [(other, event) for other, event in self._ready if other != key]

    def poll(self) -> list[tuple[int, Event]]:
        """The events that came since the last time."""
        ready, self._ready = self._ready, []
        return ready

    def close(self) -> None:
        """Nothing is left to do."""
