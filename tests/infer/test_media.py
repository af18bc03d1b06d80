"""media.py: the events of plain decoding, in order, from threads that hold nobody up."""

import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from m27.infer.media import MediaWorker
from m27.infer.stops import Stops
from m27.language.grammar import Grammar
from m27.language.processor import Processor
from tests import tiny

V = tiny.VOCABULARY
WAIT = 20.0


class Gate(tiny.TinyImageCodec):
    """An image codec that waits for `open`, notes how many it was given, and fails at code 13."""

    def __init__(self) -> None:
        self.open, self.batches = threading.Event(), list[int]()
        self.open.set()

    def decode(self, codes_Bhw: Tensor) -> Tensor:
        assert self.open.wait(WAIT)
        self.batches.append(len(codes_Bhw))
        if (codes_Bhw == 13).any():
            raise RuntimeError("no such\ncolour")
        return super().decode(codes_Bhw)


class Late(tiny.TinyAudioCodec):
    """A stream that holds back three codes, and counts the calls."""

    calls = 0

    def stream(self) -> "Late":
        other = Late()
        other.held = torch.zeros(0, dtype=torch.int64)
        return other

    def push(self, codes_N: Tensor) -> Any:
        Late.calls += 1
        self.held = torch.cat([self.held, codes_N])
        ready, self.held = self.held[:-3], self.held[-3:]
        return super().push(ready)

    def flush(self) -> Any:
        return super().push(self.held)


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def worker(gate: Gate) -> Iterator[MediaWorker[int]]:
    made: MediaWorker[int] = MediaWorker(Processor(tiny.TOKENIZER, V, gate, Late()))
    yield made
    gate.open.set()
    made.close()


def picture(codes: list[int], height: int, width: int) -> list[int]:
    spelled = [V.image[code] for code in codes]
    return [V.image_begin, V.heights[height - 1], V.widths[width - 1], *spelled, V.image_end]


def sound(codes: list[int]) -> list[int]:
    return [V.audio_begin, *(V.audio[code] for code in codes), V.audio_end]


def text(words: str) -> list[int]:
    return tiny.processor().encode_text(words)


def until(worker: MediaWorker[int], count: int) -> list[tuple[int, dict[str, Any]]]:
    """Poll until so many events are there."""
    events, end = list[tuple[int, dict[str, Any]]](), time.monotonic() + WAIT
    while len(events) < count and time.monotonic() < end:
        events += worker.poll()
        time.sleep(0.001)
    return events


def told(events: list[dict[str, Any]]) -> list[Any]:
    """Events in a form to compare: deltas of a part joined, previews left out."""
    out: list[Any] = []
    for event in events:
        kind = event["type"]
        if kind == "image_preview":
            continue
        if kind in ("text", "audio_delta") and out and out[-1][0] == kind:
            out[-1][1] += event["text"] if kind == "text" else event["audio"].tolist()
            continue
        held = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in event.items()}
        out.append(
            [kind, held.get("text", held.get("audio")), held.get("image"), held.get("codes")]
        )
    return out


def random_answer(rng: random.Random) -> list[int]:
    grammar = Grammar(V, max_images=2, max_sounds=2, image_grid=None, max_audio_codes=12)
    grammar.budget(200)
    ids: list[int] = []
    while not grammar.done():
        spans = grammar.allowed()
        start, stop = spans[-1] if rng.random() < 0.3 else rng.choice(spans)
        if start in V.heights or start in V.widths:
            stop = min(stop, start + 3)
        token = rng.randrange(start, stop)
        while token == V.image[13]:
            token = rng.randrange(start, stop)
        grammar.advance(token)
        ids.append(token)
    return ids


def test_many_answers_at_once_give_each_the_events_of_plain_decoding() -> None:
    rng = random.Random(0)
    processor = Processor(tiny.TOKENIZER, V, Gate(), Late())
    made: MediaWorker[int] = MediaWorker(processor, previews=1, threads=2)
    answers = {key: random_answer(rng) for key in range(40)}
    left, got = {key: list(ids) for key, ids in answers.items()}, {key: [] for key in answers}
    for key in answers:
        made.open(key, live=key % 4 != 0)
    while left:
        key = rng.choice(list(left))
        size = rng.randint(1, 9)
        assert made.push(key, left[key][:size])
        left[key] = left[key][size:]
        if not left[key]:
            made.finish(key)
            del left[key]
        for owner, event in made.poll():
            got[owner].append(event)
    for key, ids in answers.items():
        got[key] += made.drain(key, WAIT)
        plain = Processor(tiny.TOKENIZER, V, Gate(), Late()).stream()
        expected = [event for token in ids for event in plain.push(token)] + plain.finish()
        if key % 4 == 0:
            expected = [event for event in expected if event["type"] != "audio_delta"]
        assert told(got[key]) == told(expected)
        made.open(key)  # the key is free again
    assert made.backlog() == 0
    made.close()


def test_text_of_others_does_not_wait_for_a_picture(worker: MediaWorker[int], gate: Gate) -> None:
    gate.open.clear()
    worker.open(1)
    worker.open(2)
    worker.push(1, text("a") + picture([1, 2], 1, 2) + text("b"))
    worker.push(2, text("c"))
    kinds = [(key, event["type"], event.get("text")) for key, event in worker.poll()]
    assert kinds == [(1, "text", "a"), (1, "image_begin", None), (2, "text", "c")]
    assert worker.poll() == []
    worker.put(1, {"type": "done"})
    assert worker.backlog() == 1
    with pytest.raises(TimeoutError):
        worker.drain(1, 0.02)
    gate.open.set()
    assert [event["type"] for event in worker.drain(1, WAIT)] == ["image", "text", "done"]


def test_pictures_that_wait_are_decoded_together(worker: MediaWorker[int], gate: Gate) -> None:
    gate.open.clear()
    for key in range(5):
        worker.open(key, live=False)
        worker.push(key, picture([key, key], 2, 1))
    gate.open.set()
    for key in range(5):
        (_, event) = worker.drain(key, WAIT)
        assert event["codes"].tolist() == [[key], [key]]
        assert event["image"][0, 0, 0] == round(key / 15 * 255)
    assert sum(gate.batches) == 5 and len(gate.batches) <= 3


def test_a_fault_of_the_codec_is_that_answers_alone(worker: MediaWorker[int], gate: Gate) -> None:
    gate.open.clear()
    for key, code in enumerate((1, 13, 3)):
        worker.open(key, live=False)
        worker.push(key, text("x") + picture([code], 1, 1) + text("y") + picture([2], 1, 1))
        worker.finish(key)
    gate.open.set()
    wrong = worker.drain(1, WAIT)
    assert [event["type"] for event in wrong] == ["text", "image_begin", "error"]
    assert wrong[-1]["message"] == "RuntimeError: no such colour"
    for key in (0, 2):
        kinds = [event["type"] for event in worker.drain(key, WAIT)]
        assert kinds == ["text", "image_begin", "image", "text", "image_begin", "image"]


def test_an_answer_that_failed_takes_no_more(worker: MediaWorker[int]) -> None:
    worker.open(1)
    worker.push(1, picture([13], 1, 1))
    assert worker.drain(1, WAIT)[-1]["type"] == "error"
    assert not worker.push(1, text("more"))
    assert worker.poll() == []
    worker.open(2)
    assert not worker.push(2, [V.image_end])  # ids that no grammar lets through
    ((_, event),) = worker.poll()
    assert event["type"] == "error" and "expected text" in event["message"]


def test_cancel_drops_what_waits(worker: MediaWorker[int], gate: Gate) -> None:
    gate.open.clear()
    worker.open(0)
    worker.push(0, picture([1], 1, 1))  # taken at once, and held by the gate
    while worker.backlog() != 1 or worker._jobs._pictures:
        time.sleep(0.001)
    for key in (1, 2):
        worker.open(key)
        worker.push(key, picture([key], 1, 1) + sound([1, 2]) + text("z"))
    worker.poll()
    for key in (0, 1, 2):
        worker.cancel(key)
    assert worker.backlog() == 1  # the one under way
    gate.open.set()
    worker.open(3)
    worker.push(3, picture([3], 1, 1))
    assert worker.drain(3, WAIT)[-1]["codes"].tolist() == [[3]]
    assert gate.batches == [1, 1]
    assert worker.poll() == []
    assert not worker.push(1, text("a"))


def test_previews_show_the_rows_so_far(worker: MediaWorker[int]) -> None:
    codes = [0, 0, 3, 3, 6, 9, 12, 12, 15, 15]
    ids = picture(codes, 5, 2)
    worker.open(1)
    worker.push(1, ids[: 3 + 6])
    ((_, begin), (_, preview)) = until(worker, 2)
    assert begin["grid"] == (5, 2)
    assert (preview["type"], preview["rows"]) == ("image_preview", 2)
    rgb = preview["image"]
    assert rgb.shape == (80, 32, 3)
    assert (rgb[:16] == 0).all() and (rgb[16:] == round(3 / 15 * 255)).all()
    worker.push(1, ids[9:])
    assert worker.drain(1, WAIT)[-1]["image"].shape == (80, 32, 3)


def test_previews_give_way(worker: MediaWorker[int], gate: Gate) -> None:
    gate.open.clear()
    worker.open(1)
    worker.open(2)
    worker.push(1, picture([1], 1, 1))
    worker.push(2, picture([2] * 12, 6, 2))
    gate.open.set()
    kinds = [event["type"] for event in worker.drain(2, WAIT)]
    assert kinds == ["image_begin", "image"]
    assert gate.batches == [1, 1]


def test_sound_comes_in_packets_that_grow(worker: MediaWorker[int]) -> None:
    worker.open(1)
    Late.calls, deltas = 0, list[int]()
    for token in sound([5] * 60):
        worker.push(1, [token])
        deadline = time.monotonic() + WAIT
        while worker.backlog() and time.monotonic() < deadline:
            time.sleep(0.0002)
        deltas += [len(e["audio"]) // tiny.HOP for _, e in worker.poll() if "delta" in e["type"]]
    assert deltas[:5] == [1, 4, 8, 16, 16]  # the first as soon as the codec can
    assert sum(deltas) == 60
    assert Late.calls == 4 + 1 + 1 + 2 + 1
    worker.finish(1)
    assert worker.drain(1, WAIT) == []


def test_decoding_pauses_while_nobody_fetches() -> None:
    made: MediaWorker[int] = MediaWorker(tiny.processor(), room=1000)
    for key in range(4):
        made.open(key, live=False)
        made.push(key, picture([key, key], 1, 2))
        time.sleep(0.02)
    time.sleep(0.1)
    assert made.backlog() == 3  # the first fills the room
    assert made.drain(3, WAIT)[-1]["codes"].tolist() == [[3, 3]]  # who waits is served all the same
    assert len(until(made, 6)) == 6
    assert made.backlog() == 0
    made.close()


def test_stop_strings_are_not_shown(worker: MediaWorker[int]) -> None:
    worker.open(1, stops=Stops(["STOP"]))
    assert worker.push(1, text("go ST"))
    assert [event["text"] for _, event in worker.poll()] == list("go ")
    assert worker.push(1, picture([1], 1, 1) + text("ST"))
    assert not worker.push(1, text("OPand more"))
    worker.finish(1)
    events = worker.drain(1, WAIT)
    assert [event["type"] for event in events] == ["text", "image_begin", "image"]
    assert events[0]["text"] == "ST"


def test_without_codecs_codes_remain() -> None:
    made: MediaWorker[str] = MediaWorker(Processor(tiny.TOKENIZER, V))
    made.open("a")
    with pytest.raises(ValueError, match="in use"):
        made.open("a")
    made.push("a", picture([1, 2, 3, 4], 4, 1) + sound([1, 2]) + [V.turn_end])
    made.finish("a")
    events = made.drain("a", WAIT)
    assert [event["type"] for event in events] == ["image_begin", "image", "audio_begin", "audio"]
    assert "image" not in events[1] and "audio" not in events[3]
    assert events[3]["codes"].tolist() == [1, 2]
    made.close()


def test_the_threads_of_others_stay_as_they_are() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    made: MediaWorker[int] = MediaWorker(tiny.processor(), preload=True)
    made.open(1)
    made.push(1, picture([1], 1, 1))
    made.drain(1, WAIT)
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert torch.get_num_threads() == later[0] == 2
    made.close()
    torch.set_num_threads(before)
