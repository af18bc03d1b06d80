"""Pictures and sounds decoded beside the engine's step: ids in, events out, in order per answer.

The caller's thread parses ids (microseconds); whatever needs a codec is left to a thread of its own,
and later events of the same answer wait their turn behind it, those of other answers do not. Sounds
come first, in packets that grow, then pictures, as many of a size in one call as wait; a preview is
decoded when nothing else waits, or not at all. Knows ids and codecs; no model and no scheduling.

Codes: h w grid of a picture, r of its rows.
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from m27.infer.media_jobs import Jobs, Lane, Sound
from m27.infer.request import Event
from m27.infer.stops import Stops
from m27.language.codecs import Codecs
from m27.language.processor import Processor
from m27.language.stream import DecodeError, StreamDecoder
from m27.runtime import lone_thread

K = TypeVar("K", bound=Hashable)
_workers: weakref.WeakSet[MediaWorker[Any]] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """At the interpreter's end, before it stops threads that compute where they cannot be stopped."""
    for worker in list(_workers):
        worker.close()


class MediaWorker(Generic[K]):
    """Events of many answers, each under a key of the caller's. All methods are for one thread.

    `previews`: a picture so far after every so many rows of codes, 0 for none. `threads`: how many
    decode, each computing on one core. `room`: bytes of decoded media that may wait to be polled;
    decoding pauses above. `preload`: load the codecs that there are at once, in the background.
    """

    def __init__(
        self,
        processor: Processor,
        previews: int = 2,
        threads: int = 1,
        room: int = 256 << 20,
        preload: bool = False,
    ) -> None:
        self._processor, self._previews = processor, previews
        self._answers: dict[K, _Answer] = {}
        self._keys: dict[Lane, K] = {}
        self._jobs = Jobs(room)
        self._threads = [
            threading.Thread(
                target=_work,
                args=(self._jobs, processor.codecs, preload and number == 0),
                name=f"media-{number}",
                daemon=True,
            )
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()
        _workers.add(self)

    def open(self, key: K, stops: Stops | None = None, live: bool = True) -> None:
        """Begin an answer. With `live` off there are no previews and no audio packets, only whole
        parts. Raises ValueError for a key that is in use."""
        if key in self._answers:
            raise ValueError(f"{key!r} is in use")
        decoder = self._processor.stream(decode=False)
        answer = _Answer(self._jobs, decoder, stops, self._previews if live else 0, live)
        self._answers[key] = answer
        self._keys[answer.lane] = key

    def push(self, key: K, ids: Sequence[int]) -> bool:
        """Take the next ids of an answer; never waits. False once it needs no more: a stop string was
        found, or its decoding failed, or the key is not open."""
        answer = self._answers.get(key)
        if answer is None:
            return False
        for token in ids:
            answer.push(token)
        return answer.wanted()

    def put(self, key: K, event: Event) -> None:
        """An event of the caller's own, behind all that came before."""
        if (answer := self._answers.get(key)) is not None:
            self._jobs.event(answer.lane, event)

    def finish(self, key: K) -> None:
        """No more ids will come. Once its last event is given out, the key is free again."""
        if (answer := self._answers.get(key)) is not None:
            answer.finish()
            self._jobs.touch(answer.lane)

    def cancel(self, key: K) -> None:
        """Forget an answer: what waits is dropped, what is being decoded will be thrown away."""
        if (answer := self._answers.pop(key, None)) is not None:
            del self._keys[answer.lane]
            self._jobs.drop(answer.lane)

    def poll(self) -> list[tuple[K, Event]]:
        """The events that are ready, those of each answer in order. Never waits for a codec."""
        events: list[tuple[K, Event]] = []
        for lane in self._jobs.fresh():
            if (key := self._keys.get(lane)) is not None:
                events += [(key, event) for event in self._give(key)]
        return events

    def drain(self, key: K, timeout: float | None = None) -> list[Event]:
        """Wait until all that was pushed for `key` is decoded, and give its events, the error's last
        where there was one. Raises TimeoutError after `timeout` seconds."""
        events: list[Event] = []
        until = None if timeout is None else time.monotonic() + timeout
        while (answer := self._answers.get(key)) is not None:
            events += self._give(key)
            if not answer.lane.slots or (not answer.finished and answer.open_sound()):
                break
            left = None if until is None else max(until - time.monotonic(), 0.0)
            if not self._jobs.wait(answer.lane, left):
                raise TimeoutError(f"{key!r}: still decoding after {timeout:g} seconds")
        return events

    def backlog(self) -> int:
        """How many decodings wait or run; previews that wait are not counted."""
        return self._jobs.backlog()

    def close(self) -> None:
        """End the threads; what still waits is lost."""
        self._jobs.close()
        for thread in self._threads:
            thread.join()

    def _give(self, key: K) -> list[Event]:
        answer = self._answers[key]
        events = self._jobs.ready(answer.lane)
        if answer.finished and not answer.lane.slots:
            del self._answers[key], self._keys[answer.lane]
        return events


class _Answer:
    """One answer's way from ids to events and jobs; only the caller's thread has it."""

    def __init__(
        self, jobs: Jobs, decoder: StreamDecoder, stops: Stops | None, previews: int, live: bool
    ) -> None:
        self.lane = Lane()
        self.finished = False
        self._jobs, self._decoder, self._stops = jobs, decoder, stops
        self._previews, self._live = previews, live
        self._grid: tuple[int, int] | None = None
        self._codes: list[int] = []
        self._sound: Sound | None = None

    def wanted(self) -> bool:
        """Whether more ids are of use."""
        stopped = self._stops is not None and self._stops.hit is not None
        return not (self.finished or self.lane.dead or stopped)

    def open_sound(self) -> bool:
        """Whether a sound is being written that has not ended."""
        return self._sound is not None

    def push(self, token: int) -> None:
        """One id; nothing when it is no longer wanted."""
        if not self.wanted():
            return
        try:
            code = self._decoder.code(token)
            events = self._decoder.push(token)
        except DecodeError as error:
            self._jobs.fail(self.lane, str(error))
            return
        if code is not None:
            self._code(code)
        for event in events:
            self._event(event)

    def finish(self) -> None:
        """The end of the ids: what text was held back comes out."""
        if self.wanted():
            try:
                for event in self._decoder.finish():
                    self._event(event)
                self._flush()
            except DecodeError as error:
                self._jobs.fail(self.lane, str(error))
        self.finished = True

    def _code(self, code: int) -> None:
        if self._sound is not None:
            self._jobs.code(self._sound, code)
        elif self._grid is not None and self._previews:
            self._codes.append(code)
            rows, rest = divmod(len(self._codes), self._grid[1])
            if not rest and not rows % self._previews and rows < self._grid[0]:
                codes_rw = np.array(self._codes, dtype=np.int64).reshape(rows, -1)
                self._jobs.preview(self.lane, codes_rw, self._grid[0])

    def _event(self, event: Event) -> None:
        """A codeless event of the decoder: told, or turned into work."""
        kind = event["type"]
        if kind == "text":
            shown = event["text"] if self._stops is None else self._stops.push(event["text"])
            if shown:
                self._jobs.event(self.lane, {"type": "text", "text": shown})
            return
        if kind == "image":
            self._grid = None
            self._jobs.picture(self.lane, event["codes"])
        elif kind == "audio" and self._sound is not None:
            self._jobs.code(self._sound, None)
            self._sound = None
        else:
            self._flush()
            self._jobs.event(self.lane, event)
            if kind == "image_begin":
                self._grid, self._codes = event["grid"], []
            elif kind == "audio_begin":
                self._sound = self._jobs.sound(self.lane, self._live)

    def _flush(self) -> None:
        if self._stops is not None and (text := self._stops.flush()):
            self._jobs.event(self.lane, {"type": "text", "text": text})


def _work(jobs: Jobs, codecs: Codecs, preload: bool) -> None:
    """A decoding thread. The engine's threads want the cores, so torch has one here."""
    lone_thread()
    if preload:
        for part in warm(codecs):
            with suppress(Exception):  # whoever needs the codec will be told
                if not jobs.closed:
                    part()
    jobs.run(codecs)


def warm(codecs: Codecs) -> list[Callable[[], object]]:
    """What loads the codecs and runs each once, one part after the other, so that the first picture
    and the first sound wait for neither; nothing where there is no codec."""

    def run_audio() -> None:
        if (codec := codecs.audio) is not None:
            with torch.inference_mode():
                stream = codec.stream()
                stream.push(torch.zeros(16, dtype=torch.int64))
                stream.flush()

    return [
        lambda: codecs.image,
        lambda: codecs.decode_images(np.zeros((1, 8, 8), dtype=np.int64)),
        lambda: codecs.audio,
        run_audio,
    ]
