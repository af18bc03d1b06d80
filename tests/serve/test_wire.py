"""What goes between the server's process and the engine's: it comes out as it went in, or not at all."""

import json
from typing import Any

import numpy as np
import pytest

from m27.infer.request import Request, RequestError, Usage
from m27.serve import wire
from m27.serve.errors import ApiError
from m27.serve.wire import Frames, WireError, frame

PICTURE = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
SOUND = np.linspace(-1, 1, 11).astype(np.float32)
CODES = np.arange(6, dtype=np.int64).reshape(2, 3)
EVENTS: list[dict[str, Any]] = [
    {"type": "text", "text": 'ab "\\ \u20ac \ud800 \x00'},
    {"type": "text", "text": "x", "index": 3},
    {"type": "logprobs", "id": 7, "logprob": -0.1, "top": [(7, -0.1), (9, float("-inf"))]},
    {"type": "image_begin", "grid": (2, 3)},
    {"type": "image_preview", "rows": 1, "image": PICTURE},
    {"type": "image", "image": PICTURE, "codes": CODES},
    {"type": "image", "codes": CODES, "index": 1},
    {"type": "audio_begin"},
    {"type": "audio_delta", "audio": SOUND},
    {"type": "audio", "audio": SOUND, "codes": CODES[0]},
    {"type": "audio", "audio": np.zeros(0, np.float32), "codes": np.zeros(0, np.int64)},
    {"type": "error", "message": "why"},
    {"type": "done", "usage": Usage(1, 2, 3, 4, 2**62, "length", 5), "seconds": 1.5, "ids": [1, 2]},
]


def same(a: Any, b: Any) -> bool:
    """Equal to the last bit, types and dtypes included."""
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and bool(a == b) and repr(a) == repr(b)


def through(value: Any, pieces: int = 1 << 20) -> Any:
    data, frames = frame(value), Frames()
    (found,) = [v for k in range(0, len(data), pieces) for v in frames.feed(data[k : k + pieces])]
    return found


@pytest.mark.parametrize("event", EVENTS, ids=lambda e: e["type"])
def test_an_event_comes_out_as_it_went_in(event: dict[str, Any]) -> None:
    assert same(wire.event_in(through(wire.event_out(event), 7)), event)


def test_all_events_of_a_step_in_one_frame() -> None:
    told = through({"told": [(k, wire.event_out(event)) for k, event in enumerate(EVENTS)]})["told"]
    assert [key for key, _ in told] == list(range(len(EVENTS)))
    assert all(same(wire.event_in(found), event) for (_, found), event in zip(told, EVENTS, strict=True))


def test_a_request_comes_out_as_it_went_in() -> None:
    given: dict[str, Any] = {
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [
                {"type": "text", "text": '{"$": ["usage", []]}'}, {"type": "image", "codes": CODES},
                {"type": "image", "image": PICTURE, "size": (128, 128), "letterbox": True},
                {"type": "audio", "audio": SOUND}, {"type": "image", "bytes": b"\x00png"},
            ]},
        ],
        "modalities": ("image", "text"), "plan": ("text", "image", "text"), "max_tokens": 77, "max_text": 9,
        "min_text": 2, "max_images": 3, "max_sounds": 1, "image_grid": (4, 8), "min_audio_codes": 2,
        "max_audio_codes": 100, "guidance": 1.5, "seed": 2**63 - 1, "temperature": 0.1 + 0.2, "top_k": 5,
        "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.3, "n": 4, "stop": ("a", "b"), "logprobs": 0,
        "adapter": "ä", "priority": -3, "tenant": "t", "speculate": True, "picture_window": 8,
    }  # fmt: skip
    assert set(given) == set(wire._FIELDS) - {"schema"}  # a field that is new is to be in here
    found = wire.request_in(through(wire.request_out(Request(**given))))
    for name, value in given.items():
        if name == "messages":  # lists stand for tuples there
            value[1]["content"][2]["size"] = [128, 128]
        assert same(getattr(found, name), value), name
    assert found.sampling == Request(**given).sampling


@pytest.mark.parametrize("schema", ["json", {"$": ["array", "uint8", [9], 0]}, {"type": "object", "$": {}}])
def test_a_schema_is_never_taken_for_a_mark(schema: Any) -> None:
    asked = Request([{"role": "user", "content": "x", "codes": CODES}], modalities=("text",), schema=schema)
    assert wire.request_in(through(wire.request_out(asked))).schema == schema


def test_a_request_out_of_range_is_refused_as_everywhere() -> None:
    value = through(wire.request_out(Request([{"role": "user", "content": "x"}])))
    with pytest.raises(RequestError, match="max_tokens"):
        wire.request_in(value | {"max_tokens": 0})
    with pytest.raises(WireError):
        wire.request_in(value | {"more": 1})


def test_a_refusal_comes_out_as_it_went_in() -> None:
    for error in (ApiError(429, "full", code="queue_full", retry_after=2.5), ApiError(400, "no", param="p")):
        found = wire.error_in(through(wire.error_out(error)))
        assert (found.status, found.to_json(), found.headers()) == (error.status, error.to_json(), error.headers())


@pytest.mark.parametrize(
    "mark",
    [
        ["array", "uint8", [9, 9], 0], ["array", "uint8", [-1], 0], ["array", "uint8", [2], -1],
        ["array", "object", [1], 0], ["array", "uint8", ["2"], 0], ["array", "int64", [2**62], 0],
        ["array", "uint8", 3, 0], ["bytes", 0, 99], ["bytes", -1, 1], ["usage", [1]],
        ["usage", [1, 2, 3, 4, 5, 6, 7]], ["usage", ["a"] * 7], ["more"], [], 7, None,
    ],
)  # fmt: skip
def test_a_wrong_mark_is_no_frame(mark: Any) -> None:
    text = json.dumps({"told": [[1, {"type": "image", "image": {"$": mark}}]]}).encode()
    with pytest.raises(WireError):
        list(Frames().feed(wire._HEAD.pack(len(text), 8, 1) + text + bytes(8)))


@pytest.mark.parametrize(
    "event",
    [
        7, None, [], {}, {"type": 3}, {"type": "other"}, {"type": "text"}, {"type": "text", "text": 1},
        {"type": "done", "usage": {}, "seconds": 1.0, "ids": []}, {"type": "image", "image": "x"},
        {"type": "logprobs", "id": 1, "logprob": 0.0, "top": [3]}, {"type": "image_begin", "grid": [1]},
        {"type": "text", "text": "x", "index": "0"},
    ],
)  # fmt: skip
def test_a_wrong_event_is_none(event: Any) -> None:
    with pytest.raises(WireError):
        wire.event_in(event)


def test_bytes_that_are_changed_are_a_value_or_no_frame() -> None:
    """Whatever one byte is changed to, nothing but WireError is raised."""
    rng = np.random.default_rng(1)
    data = frame({"told": [(k, wire.event_out(event)) for k, event in enumerate(EVENTS)]})
    for _ in range(3000):
        broken = bytearray(data)
        broken[rng.integers(min(len(data), 4000))] = rng.integers(256)
        try:
            for value in Frames().feed(bytes(broken)):
                for entry in value["told"] if isinstance(value, dict) and "told" in value else ():
                    wire.event_in(entry[1] if isinstance(entry, list) and len(entry) == 2 else None)
        except WireError:
            continue


def test_what_has_no_form_is_said() -> None:
    for value in (object(), np.zeros(3, np.complex128), np.array([object()])):
        with pytest.raises(WireError):
            frame({"x": value})
    assert through({"x": np.float32(0.5), "y": np.int64(3)}) == {"x": 0.5, "y": 3}
