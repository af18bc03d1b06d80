"""What a server and the process of its engine say to each other: JSON, and the bytes of arrays behind it.

A frame is three numbers (bytes of JSON, bytes behind it, how many marks), the JSON, the bytes. What JSON
has no word for is marked in it, as a dict with the one key "$": an array by dtype, shape and place, bytes,
a usage. No dict of a client's is ever in a frame (schemas go as text), so none can be taken for a mark; and
no pickles. Whatever cannot be read raises WireError, and nothing else.

Knows requests and events as data; no socket and no process.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from m27.infer.request import Event, Request, Usage
from m27.serve.errors import ApiError

_HEAD = struct.Struct("<III")
_DTYPES = frozenset("uint8 int32 int64 float32 float64".split())
_MOST_JSON, _MOST_BYTES = 64 << 20, 512 << 20
_ALIGNED = 8
_FIELDS = tuple(field.name for field in fields(Request) if field.init)
_TUPLES = frozenset({"modalities", "plan", "image_grid", "stop"})
_USAGE = tuple(field.name for field in fields(Usage))


class WireError(ValueError):
    """Bytes that are no frame, or a frame that says what nobody says."""


def frame(value: Any) -> bytes:
    """A value as bytes: what JSON has, arrays, bytes, usages, numbers of numpy."""
    pieces: list[bytes] = []
    place = marks = 0

    def mark(other: Any) -> Any:
        nonlocal place, marks
        if isinstance(other, np.generic):
            return other.item()
        marks += 1
        if isinstance(other, Usage):
            return {"$": ["usage", [getattr(other, name) for name in _USAGE]]}
        if isinstance(other, np.ndarray) and other.dtype.name in _DTYPES:
            data, what = other.tobytes(), ["array", other.dtype.name, list(other.shape), place]
        elif isinstance(other, bytes | bytearray):
            data, what = bytes(other), ["bytes", place, len(other)]
        else:
            raise WireError(f"{type(other).__name__} has no form here")
        pieces.append(data.ljust(-(-len(data) // _ALIGNED) * _ALIGNED, b"\0"))
        place += len(pieces[-1])
        return {"$": what}

    text = json.dumps(value, default=mark, separators=(",", ":")).encode("ascii")
    return b"".join((_HEAD.pack(len(text), place, marks), text, *pieces))


class Frames:
    """Values out of bytes as they come, whatever pieces they come in."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """The values that are whole now. Raises WireError."""
        self._data += data
        while len(self._data) >= _HEAD.size:
            text, behind, marks = _HEAD.unpack_from(self._data)
            if text > _MOST_JSON or behind > _MOST_BYTES:
                raise WireError(f"a frame of {text} and {behind} bytes")
            begin, end = _HEAD.size + text, _HEAD.size + text + behind
            if len(self._data) < end:
                return
            value = _read(bytes(self._data[_HEAD.size : begin]), self._data[begin:end], marks)
            del self._data[:end]
            yield value


def _read(text: bytes, behind: bytearray, marks: int) -> Any:
    def unmark(found: dict[str, Any]) -> Any:
        return _marked(found["$"], behind) if len(found) == 1 and "$" in found else found

    try:
        return json.loads(text, object_hook=unmark if marks else None)
    except WireError:
        raise
    except (ValueError, TypeError, RecursionError) as error:
        raise WireError(f"no frame: {error}") from None


def _marked(what: Any, behind: bytearray) -> Any:
    match what:
        case ["array", str(dtype), [*shape], int(place)] if dtype in _DTYPES:
            if not all(isinstance(side, int) and side >= 0 for side in shape) or place < 0:
                raise WireError("an array without a shape")
            count = 1
            for side in shape:
                count *= side
            if place + count * np.dtype(dtype).itemsize > len(behind):
                raise WireError("an array beyond its frame")
            return np.frombuffer(behind, dtype, count, place).reshape(shape) if count else np.zeros(shape, dtype)
        case ["bytes", int(place), int(length)] if place >= 0 and 0 <= length <= len(behind) - place:
            return bytes(behind[place : place + length])
        case ["usage", [*values]] if len(values) == len(_USAGE):
            for name, found in zip(_USAGE, values, strict=True):
                if not isinstance(found, str if name == "finish_reason" else int):
                    raise WireError("a usage without its counts")
            return Usage(*values)
    raise WireError("a mark that nobody knows")


# Requests, events and errors as values

Json = dict[str, Any]


def request_out(request: Request) -> Json:
    """A request; its schema as text."""
    value = {name: getattr(request, name) for name in _FIELDS}
    value["messages"] = list(value["messages"])
    if isinstance(schema := value["schema"], Mapping):
        value["schema"] = json.dumps(schema)
    elif schema is not None:
        value["schema"] = json.dumps(str(schema))
    return value


def request_in(value: Json) -> Request:
    """The request of `request_out`. Raises WireError, and RequestError where it is out of range."""
    try:
        given: dict[str, Any] = {
            name: tuple(item) if name in _TUPLES and item is not None else item
            for name, item in value.items()
        }
        if given.get("schema") is not None:
            given["schema"] = json.loads(given["schema"])
        return Request(**given)
    except (TypeError, AttributeError) as error:
        raise WireError(f"no request: {error}") from None


def event_out(event: Event) -> Event | str:
    """An event; one that is plain text, of which each step brings many, as that text."""
    return event["text"] if len(event) == 2 and event["type"] == "text" else event


def event_in(value: Any) -> Event:
    """The event of `event_out`. Raises WireError."""
    if type(value) is str:
        return {"type": "text", "text": value}
    if not isinstance(value, dict) or not isinstance(kind := value.get("type"), str):
        raise WireError("an event without a type")
    wanted = _WANTED.get(kind)
    if wanted is None or not all(isinstance(value.get(name), type_) for name, type_ in wanted):
        raise WireError("an event that nobody knows")
    if not isinstance(value.get("index", 0), int):
        raise WireError("an event of no answer")
    try:
        if kind == "logprobs":
            value["top"] = [(int(id), float(logprob)) for id, logprob in value["top"]]
        elif kind == "image_begin":
            height, width = value["grid"]
            value["grid"] = (int(height), int(width))
    except (TypeError, ValueError) as error:
        raise WireError(f"no event: {error}") from None
    return value


_WANTED: dict[str, tuple[tuple[str, type], ...]] = {
    "text": (("text", str),),
    "logprobs": (("id", int), ("logprob", float), ("top", list)),
    "done": (("usage", Usage), ("seconds", float), ("ids", list)),
    "error": (("message", str),),
    "image_begin": (("grid", list),),
    "image_preview": (("rows", int), ("image", np.ndarray)),
    "image": (("codes", np.ndarray),),
    "audio_begin": (),
    "audio_delta": (("audio", np.ndarray),),
    "audio": (("codes", np.ndarray),),
}


def error_out(error: ApiError) -> list[Any]:
    """A refusal as a frame holds it; `error_in` reads it."""
    return [error.status, error.message, error.code, error.param, error.retry_after]


def error_in(value: Any) -> ApiError:
    """The refusal of `error_out`. Raises WireError."""
    match value:
        case [int(status), str(message), str() | None as code, str() | None as param, after] if (
            after is None or isinstance(after, int | float)
        ) and 400 <= status <= 599:
            return ApiError(status, message, code=code, param=param, retry_after=after)
    raise WireError("no refusal")


