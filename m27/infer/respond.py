"""The events of an answer gathered into a whole response. Plain data, no engine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from m27.infer.request import Event, Part, Response


class EngineError(RuntimeError):
    """A request that failed while it was answered; the message says why. The engine goes on."""


def collect(events: Iterable[Event]) -> Response:
    """The events of `Engine.stream` as one response, text deltas joined into parts.

    Where several answers were asked for, the first is the response, with the rest as its `others`.
    Raises EngineError for an event of type "error", and ValueError where "done" is missing.
    """
    content: dict[int, list[Part]] = {}
    scored: dict[int, list[Event]] = {}
    ended: dict[int, Event] = {}
    for event in events:
        kind, index = event["type"], event.get("index", 0)
        parts = content.setdefault(index, [])
        part: dict[str, Any] = {key: value for key, value in event.items() if key != "index"}
        if kind == "text" and parts and parts[-1]["type"] == "text":
            parts[-1]["text"] += event["text"]
        elif kind in ("text", "image", "audio"):
            parts.append(part)
        elif kind == "logprobs":
            scored.setdefault(index, []).append(part)
        elif kind == "error":
            raise EngineError(event["message"])
        elif kind == "done":
            ended[index] = event
    if not ended or ended.keys() != content.keys():
        raise ValueError("the stream of events ended without 'done'")
    made = [
        Response(content[index], done["usage"], done["seconds"], done["ids"], scored.get(index, ()))
        for index, done in sorted(ended.items())
    ]
    first = made[0]
    others = tuple(made[1:])
    return Response(first.content, first.usage, first.seconds, first.ids, first.logprobs, others)
