"""The stream decoder: whole characters, sounds as they grow, and the same answer as `decode`."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from m27.language.processor import Processor
from m27.language.stream import DecodeError


def events_of(processor: Processor, ids: list[int]) -> list[dict[str, Any]]:
    """All events of an answer."""
    decoder = processor.stream()
    return [e for token in ids for e in decoder.push(token)] + decoder.finish()


def test_a_character_over_several_ids_comes_whole(processor: Processor) -> None:
    ids = processor.encode_text("é😀")
    assert len(ids) == 6  # one id a byte
    decoder = processor.stream()
    deltas = [decoder.push(token) for token in ids]
    assert [d[0]["text"] if d else None for d in deltas] == [None, "é", None, None, None, "😀"]
    assert decoder.finish() == []


def test_half_a_character_is_replaced_where_the_text_ends(processor: Processor) -> None:
    v = processor.vocabulary
    half = processor.encode_text("😀")[:2]
    assert events_of(processor, half) == [{"type": "text", "text": "\ufffd"}]
    assert events_of(processor, [*half, v.turn_end]) == [{"type": "text", "text": "\ufffd"}]
    opened = events_of(processor, [*half, v.audio_begin, v.audio[0], v.audio_end])
    assert [e["type"] for e in opened][:2] == ["text", "audio_begin"]


def test_events_of_a_picture(processor: Processor) -> None:
    v = processor.vocabulary
    decoder = processor.stream()
    ids = [v.image_begin, v.heights[0], v.widths[1], v.image[0], v.image[15], v.image_end]
    events = [decoder.push(token) for token in ids]
    assert events[:2] == [[], []]
    assert events[2] == [{"type": "image_begin", "grid": (1, 2)}]
    assert events[3:5] == [[], []]
    (event,) = events[5]
    assert event["codes"].tolist() == [[0, 15]]
    assert event["image"][0, ::16, 0].tolist() == [0, 255]
    assert not decoder.done
    decoder.push(v.turn_end)
    assert decoder.done


def test_a_sound_is_heard_before_its_last_code(processor: Processor) -> None:
    v = processor.vocabulary
    decoder = processor.stream()
    assert decoder.push(v.audio_begin) == [{"type": "audio_begin"}]
    assert decoder.push(v.audio[7]) == []  # the codec holds one code back
    (delta,) = decoder.push(v.audio[0])
    assert delta["type"] == "audio_delta"
    assert delta["audio"].tolist() == [1.0] * 4
    rest, whole = decoder.push(v.audio_end)
    assert rest["audio"].tolist() == [-1.0] * 4
    assert whole["type"] == "audio"
    assert whole["codes"].tolist() == [7, 0]
    assert np.array_equal(whole["audio"], np.concatenate([delta["audio"], rest["audio"]]))
    # A second sound starts afresh.
    ids = [v.audio_begin, v.audio[7], v.audio_end]
    assert [e for t in ids for e in decoder.push(t)][-1]["audio"].tolist() == [1.0] * 4


@pytest.mark.parametrize("seed", range(20))
def test_stream_and_decode_agree(seed: int, processor: Processor) -> None:
    rng = random.Random(seed)
    content: list[dict[str, Any]] = []
    for _ in range(rng.randint(1, 6)):
        kind = rng.choice(["text", "image", "audio"])
        if kind == "text":
            text = "".join(rng.choice("hello w\n😀é") for _ in range(rng.randint(1, 9)))
            content.append({"type": "text", "text": text})
        elif kind == "image":
            codes = np.array([[rng.randrange(16) for _ in range(3)] for _ in range(2)])
            content.append({"type": "image", "codes": codes})
        else:
            codes = np.array([rng.randrange(8) for _ in range(rng.randint(1, 5))])
            content.append({"type": "audio", "codes": codes})
    encoded = processor.encode([{"role": "assistant", "content": content}])
    spoken = [i for i, loss in zip(encoded.ids, encoded.loss, strict=True) if loss]
    parts = processor.decode(spoken)
    events = events_of(processor, spoken)
    streamed = "".join(e["text"] for e in events if e["type"] == "text")
    assert streamed == "".join(p["text"] for p in parts if p["type"] == "text")
    media = [e for e in events if e["type"] in ("image", "audio")]
    for event, part in zip(media, [p for p in parts if p["type"] != "text"], strict=True):
        assert event.keys() == part.keys()
        assert all(np.array_equal(event[key], part[key]) for key in part)


def test_live_sound_needs_a_codec(codes_only: Processor) -> None:
    v = codes_only.vocabulary
    events = events_of(codes_only, [v.audio_begin, v.audio[1], v.audio_end])
    assert [set(e) for e in events] == [{"type"}, {"type", "codes"}]


def test_finish_inside_a_span(processor: Processor) -> None:
    decoder = processor.stream()
    decoder.push(processor.vocabulary.image_begin)
    with pytest.raises(DecodeError, match="inside a span"):
        decoder.finish()
