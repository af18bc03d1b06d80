"""The work of `media`: what waits for a codec, in which order it is taken, and how it is done.

Shared between the engine's thread, which adds, and the decoding threads, which take; every method
takes the one lock for as long as it moves a few references. Knows no ids.

Shapes: B pictures, h w code grid, r rows of codes so far, H W pixels, N audio codes.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from m27.infer.request import Event
from m27.language.codecs import AudioStream, Codecs, Codes, Pixels, Samples

MOST_PICTURES = 8  # in one call: a picture more saves less and less, and all wait for the last
PACKETS = (4, 8, 16)  # codes a packet after the first: the same call serves few codes or many


@dataclass(eq=False)
class Slot:
    """A place in the order of an answer's events; later places wait until it is done."""

    events: deque[Event] = field(default_factory=deque)
    done: bool = False


@dataclass(eq=False)
class Lane:
    """One answer's events: the order, and whether what is still to be decoded is wanted."""

    slots: deque[Slot] = field(default_factory=deque)
    dead: bool = False

    def ready(self) -> list[Event]:
        """The events that nothing stands before, taken out."""
        events: list[Event] = []
        while self.slots:
            events += self.slots[0].events
            self.slots[0].events.clear()
            if not self.slots[0].done:
                break
            self.slots.popleft()
        return events


@dataclass(eq=False)
class Picture:
    """A whole picture's codes [h, w]."""

    lane: Lane
    slot: Slot
    codes_hw: Codes


@dataclass(eq=False)
class Preview:
    """The codes [r, w] of a picture of `height` rows that is still being drawn."""

    lane: Lane
    slot: Slot
    codes_rw: Codes
    height: int


@dataclass(eq=False)
class Sound:
    """A sound under way. `waiting` codes have not been taken yet; `live`: packets are wanted."""

    lane: Lane
    slot: Slot
    live: bool
    codes: list[int] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    closing: bool = False
    taken: list[int] = field(default_factory=list)  # the codes of the packet being decoded
    last: bool = False  # whether that packet is the last one
    queued: bool = False  # or being decoded: one thread at a time has it
    packets: int = 0  # how many were given out
    stream: AudioStream | None = None
    deltas: list[Samples] = field(default_factory=list)

    def due(self) -> bool:
        """Whether there is enough for a packet: one code before the first, then more and more."""
        least = PACKETS[min(self.packets, len(PACKETS)) - 1] if self.packets else 1
        return self.closing or (self.live and len(self.waiting) >= least)


Job = Picture | Preview | Sound


class Jobs:
    """What waits to be decoded and whose results are there. `room`: bytes of results unfetched."""

    def __init__(self, room: int) -> None:
        self._room, self._held = room, 0
        self._lock = threading.Condition()
        self._sounds: deque[Sound] = deque()
        self._pictures: deque[Picture] = deque()
        self._previews: dict[Lane, Preview] = {}  # the newest of each answer
        self._fresh: dict[Lane, None] = {}
        self._running = 0
        self._drained: Lane | None = None
        self._closed = False

    # The engine's side

    def event(self, lane: Lane, event: Event) -> None:
        """Add an event that needs no codec."""
        with self._lock:
            lane.slots.append(Slot(deque([event]), done=True))
            self._fresh[lane] = None

    def touch(self, lane: Lane) -> None:
        """Have `fresh` name an answer even if nothing new is there."""
        with self._lock:
            self._fresh[lane] = None

    def picture(self, lane: Lane, codes_hw: Codes) -> None:
        """Add a picture; a preview of it that still waits is dropped."""
        with self._lock:
            self._skip_preview(lane)
            lane.slots.append(Slot())
            self._pictures.append(Picture(lane, lane.slots[-1], codes_hw))
            self._lock.notify_all()

    def preview(self, lane: Lane, codes_rw: Codes, height: int) -> None:
        """Add a preview, in place of one that still waits; dropped when sounds or pictures wait."""
        with self._lock:
            self._skip_preview(lane)
            if self._sounds or self._pictures:
                return
            lane.slots.append(Slot())
            self._previews[lane] = Preview(lane, lane.slots[-1], codes_rw, height)
            self._lock.notify_all()

    def sound(self, lane: Lane, live: bool) -> Sound:
        """Begin a sound."""
        with self._lock:
            lane.slots.append(Slot())
            return Sound(lane, lane.slots[-1], live)

    def code(self, sound: Sound, code: int | None) -> None:
        """One code more of a sound, or None at its end."""
        with self._lock:
            if code is None:
                sound.closing = True
            else:
                sound.waiting.append(code)
            self._queue(sound)

    def fail(self, lane: Lane, message: str) -> None:
        """End an answer with an error: what is done stays, what is not is dropped."""
        with self._lock:
            self._fail(lane, message)

    def drop(self, lane: Lane) -> None:
        """Forget an answer and all that it waits for."""
        with self._lock:
            self._bury(lane)
            self._held -= sum(_size(e) for slot in lane.slots for e in slot.events)
            lane.slots.clear()
            self._fresh.pop(lane, None)
            self._lock.notify_all()

    def fresh(self) -> list[Lane]:
        """The answers that may have something ready since the last time."""
        with self._lock:
            lanes = list(self._fresh)
            self._fresh.clear()
            return lanes

    def ready(self, lane: Lane) -> list[Event]:
        """Take an answer's ready events out."""
        with self._lock:
            events = lane.ready()
            held = sum(_size(event) for event in events)
            if held:
                self._held -= held
                self._lock.notify_all()
            return events

    def wait(self, lane: Lane, timeout: float | None) -> bool:
        """Wait until the answer has events or nothing left to decode; False after `timeout`."""

        def there() -> bool:
            return not lane.slots or lane.slots[0].done or bool(lane.slots[0].events)

        with self._lock:
            self._drained = lane  # its results may pass the room, or nobody would move
            self._lock.notify_all()
            found = self._lock.wait_for(there, timeout)
            self._drained = None
            return found

    def backlog(self) -> int:
        """Decodings that wait or run, previews that wait left out."""
        with self._lock:
            return len(self._sounds) + len(self._pictures) + self._running

    @property
    def closed(self) -> bool:
        """Whether the threads are to end."""
        return self._closed

    def close(self) -> None:
        """Let the threads end."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()

    # The decoding threads' side

    def run(self, codecs: Codecs) -> None:
        """Decode until closed."""
        while (jobs := self._take()) is not None:
            try:
                events = decode(codecs, jobs)
            except Exception as error:
                events = self._one_by_one(codecs, jobs, error)
            self._give(jobs, events)

    def _one_by_one(
        self, codecs: Codecs, jobs: Sequence[Job], error: Exception
    ) -> list[list[Event]]:
        """After a failure together, each on its own, so that only those at fault fail."""
        out: list[list[Event]] = []
        for job in jobs:
            try:
                if len(jobs) == 1:
                    raise error
                out += decode(codecs, [job])
            except Exception as fault:
                out.append([])
                if isinstance(job, Preview):
                    continue  # the picture itself will tell
                self.fail(job.lane, " ".join(f"{type(fault).__name__}: {fault}".split())[:300])
        return out

    def _take(self) -> list[Job] | None:
        """The next work, waited for: one sound, or pictures of one size, or one preview."""
        with self._lock:
            while not self._closed:
                free = self._held <= self._room or self._drained is not None
                if free and (jobs := self._next()):
                    self._running += 1
                    return jobs
                self._lock.wait()
            return None

    def _next(self) -> list[Job]:
        if self._sounds:
            sound = self._sounds.popleft()
            sound.taken, sound.waiting, sound.last = sound.waiting, [], sound.closing
            sound.codes += sound.taken
            return [sound]
        if self._pictures:
            shape = self._pictures[0].codes_hw.shape
            same = [p for p in self._pictures if p.codes_hw.shape == shape][:MOST_PICTURES]
            self._pictures = deque(p for p in self._pictures if p not in same)
            return list(same)
        if self._previews:
            return [self._previews.pop(next(iter(self._previews)))]
        return []

    def _give(self, jobs: Sequence[Job], events: list[list[Event]]) -> None:
        with self._lock:
            self._running -= 1
            for job, made in zip(jobs, events, strict=True):
                if not job.lane.dead:
                    job.slot.events += made
                    self._held += sum(_size(event) for event in made)
                    self._fresh[job.lane] = None
                if isinstance(job, Sound):
                    job.queued = False
                    job.packets += any(event["type"] == "audio_delta" for event in made)
                    job.slot.done = any(event["type"] == "audio" for event in made)
                    self._queue(job)
                else:
                    job.slot.done = True
            self._lock.notify_all()

    def _queue(self, sound: Sound) -> None:
        if not (sound.queued or sound.slot.done or sound.lane.dead) and sound.due():
            sound.queued = True
            self._sounds.append(sound)
            self._lock.notify_all()

    def _skip_preview(self, lane: Lane) -> None:
        if (waiting := self._previews.pop(lane, None)) is not None:
            waiting.slot.done = True

    def _fail(self, lane: Lane, message: str) -> None:
        self._bury(lane)
        told: deque[Slot] = deque()
        while lane.slots:
            told.append(lane.slots.popleft())
            if not told[-1].done:  # what it has given so far may be seen, nothing behind it
                break
        self._held -= sum(_size(event) for slot in lane.slots for event in slot.events)
        lane.slots = told
        for slot in told:
            slot.done = True
        lane.slots.append(Slot(deque([{"type": "error", "message": message}]), done=True))
        self._fresh[lane] = None
        self._lock.notify_all()

    def _bury(self, lane: Lane) -> None:
        lane.dead = True
        self._previews.pop(lane, None)
        self._pictures = deque(p for p in self._pictures if p.lane is not lane)
        self._sounds = deque(s for s in self._sounds if s.lane is not lane)


def decode(codecs: Codecs, jobs: Sequence[Job]) -> list[list[Event]]:
    """The events of each job; several are pictures of one size. Raises what the codec raises."""
    first = jobs[0]
    if isinstance(first, Sound):
        return [_sound(codecs, first)]
    if isinstance(first, Preview):
        rgb_HW3 = _so_far(codecs, first)
        event = {"type": "image_preview", "rows": len(first.codes_rw), "image": rgb_HW3}
        return [[] if rgb_HW3 is None else [event]]
    pictures = [job for job in jobs if isinstance(job, Picture)]
    rgb_BHW3 = codecs.decode_images(np.stack([picture.codes_hw for picture in pictures]))
    return [
        [
            {
                "type": "image",
                **({} if rgb_BHW3 is None else {"image": rgb_BHW3[n].copy()}),
                "codes": picture.codes_hw,
            }
        ]
        for n, picture in enumerate(pictures)
    ]


def _so_far(codecs: Codecs, preview: Preview) -> Pixels | None:
    """The rows that are there, decoded with the last one once more below them, and under those the
    mean colour of the last row: [H, W, 3], or None without a codec."""
    codes_rw = preview.codes_rw
    rgb = codecs.decode_images(np.concatenate([codes_rw, codes_rw[-1:]])[None])
    if rgb is None:
        return None
    stride = rgb.shape[1] // (len(codes_rw) + 1)
    done = len(codes_rw) * stride
    out = np.empty((preview.height * stride, *rgb.shape[2:]), dtype=np.uint8)
    out[:done] = rgb[0, :done]
    out[done:] = rgb[0, done - stride : done].mean((0, 1))
    return out


def _sound(codecs: Codecs, sound: Sound) -> list[Event]:
    """A packet of a sound, and the whole of it once its last code is there."""
    codes_N = np.array(sound.codes, dtype=np.int64)
    if not sound.live:
        samples = codecs.decode_audio(codes_N)
        return [
            {"type": "audio", **({} if samples is None else {"audio": samples}), "codes": codes_N}
        ]
    if sound.stream is None and (codec := codecs.audio) is not None:
        sound.stream = codec.stream()
    new: list[Samples] = []
    with torch.inference_mode():
        if sound.stream is not None and sound.taken:
            new.append(sound.stream.push(torch.tensor(sound.taken)))
        if sound.stream is not None and sound.last:
            new.append(sound.stream.flush())
    new = [np.asarray(samples, dtype=np.float32) for samples in new if len(samples)]
    sound.deltas += new
    events: list[Event] = [{"type": "audio_delta", "audio": samples} for samples in new]
    if sound.last:
        whole = np.concatenate(sound.deltas) if sound.deltas else np.zeros(0, np.float32)
        audio = {} if sound.stream is None else {"audio": whole}
        events.append({"type": "audio", **audio, "codes": codes_N})
    return events


def _size(event: Event) -> int:
    """Bytes of decoded media in an event."""
    return sum(value.nbytes for value in event.values() if isinstance(value, np.ndarray))
