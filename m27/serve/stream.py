"""An answer as it is produced: the engine's events → `chat.completion.chunk`s over SSE.

Text comes as `delta.content`; a picture or a sound as `delta.part` with the events begun, progress or
packet, and done (`docs/serve.md`). Knows events and the form; no route.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

from m27.codec.media import SAMPLE_RATE
from m27.infer.request import Event
from m27.serve import parts, tools
from m27.serve.answer import Asked, Meter, audio_id, call_json, usage_json
from m27.serve.errors import ApiError, from_engine
from m27.serve.ticket import Ticket

Json = dict[str, Any]
_log = logging.getLogger("m27.serve")
_encode = json.JSONEncoder(ensure_ascii=False).encode
DONE = b"data: [DONE]\n\n"
_STRIDE = 16  # pixels of a picture by each code, along a side


class Choice:
    """One answer of a stream: which part is open, what is held back."""

    def __init__(self, index: int, asked: Asked) -> None:
        self.index, self._asked = index, asked
        self._part = -1  # the number of the part that is open, or was last
        self._open = ""  # its medium
        self._grid = (0, 0)
        self._scored: list[Json] = []
        self._held = ""  # text that may turn out to be a call
        self._holding = asked.calling.watched or self._one_of_several
        self._called = False

    @property
    def _one_of_several(self) -> bool:
        return self._asked.calling.schema is not None and self._asked.calling.forced is None

    def deltas(self, event: Event) -> list[Json]:
        """The deltas that an event brings, each {"delta", "logprobs"?, "finish_reason"?}. Writes
        pictures and sounds, so not for the event loop's thread."""
        kind = event["type"]
        if kind == "text":
            return self._text(event["text"])
        if kind == "logprobs":
            most = self._asked.logprobs or 0
            if entry := parts.logprob(self._asked.processor, event, most):
                self._scored.append(entry)
            return []
        if kind == "done":
            return self._end(event["usage"].finish_reason)
        held = self._let_go()
        if kind in ("image", "audio"):
            self._asked.encoder.remember(event, self._asked.tenant)
        if "image" not in event and "audio" not in event and kind in ("image", "audio"):
            raise ApiError(500, f"the model has no {kind} codec", code="no_codec")
        part = getattr(self, f"_{kind}")(event)
        delta: Json = {"part": part}
        if kind == "audio_delta" and self._asked.audio is not None:
            delta["audio"] = {"id": audio_id(self._asked), "data": part["audio"]["data"]}
        return [*held, {"delta": delta}]

    def _text(self, text: str) -> list[Json]:
        calling = self._asked.calling
        if calling.forced is not None:
            return self._arguments(text)
        if self._holding:
            self._held += text
            if self._one_of_several or tools.may_become_call(self._held):
                return []
            self._holding = False
            text, self._held = self._held, ""
        if self._open != "text":
            self._open, self._part = "text", self._part + 1
        return [{"delta": {"content": text}, **self._logprobs()}]

    def _arguments(self, text: str) -> list[Json]:
        """A piece of the arguments of the one function that is called."""
        call: Json = {"index": 0, "function": {"arguments": text}}
        if not self._called:
            self._called = True
            call = {"index": 0, **call_json(self._asked.calling.forced or "", text)}
        return [{"delta": {"tool_calls": [call]}, **self._logprobs()}]

    def _let_go(self) -> list[Json]:
        """What was held back turns out to be plain text."""
        self._holding = False
        text, self._held = self._held, ""
        return self._text(text) if text else []

    def _end(self, finish: str) -> list[Json]:
        out: list[Json] = []
        calling = self._asked.calling
        if self._holding and (read := tools.read_call(self._held, calling.functions)):
            self._called = True
            out.append({"delta": {"tool_calls": [{"index": 0, **call_json(*read)}]}})
        elif self._held:
            out += self._let_go()
        elif calling.forced is not None and not self._called:
            out += self._arguments("")
        finish = "tool_calls" if self._called and finish == "stop" else finish
        return [*out, {"delta": {}, **self._logprobs(), "finish_reason": finish}]

    def _logprobs(self) -> Json:
        if not self._scored:
            return {}
        scored, self._scored = self._scored, []
        return {"logprobs": {"content": scored, "refusal": None}}

    def _image_begin(self, event: Event) -> Json:
        self._open, self._part, self._grid = "image", self._part + 1, event["grid"]
        height, width = (side * _STRIDE for side in self._grid)
        return self._of("image", "begun", width=width, height=height)

    def _image_preview(self, event: Event) -> Json:
        height, width = self._grid
        url = parts.preview_url(event["image"])
        codes = event["rows"] * width
        return self._of("image", "progress", codes=codes, of=height * width, image_url=url)

    def _image(self, event: Event) -> Json:
        return self._of("image", "done", image_url=parts.image_url(event["image"]))

    def _audio_begin(self, event: Event) -> Json:
        self._open, self._part = "audio", self._part + 1
        return self._of("audio", "begun", sample_rate=SAMPLE_RATE)

    def _audio_delta(self, event: Event) -> Json:
        return self._of("audio", "packet", audio=parts.packet(event["audio"]))

    def _audio(self, event: Event) -> Json:
        seconds = round(len(event["audio"]) / SAMPLE_RATE, 3)
        return self._of("audio", "done", input_audio=parts.input_audio(event["audio"]), seconds=seconds)

    def _of(self, kind: str, event: str, **more: Any) -> Json:
        return {"type": kind, "event": event, "index": self._part, **more}


class Frame:
    """Deltas of one choice as SSE messages. What is the same in all of them is encoded once: a
    token of plain text, of which each step brings one for every stream, costs its own letters."""

    def __init__(self, asked: Asked, index: int) -> None:
        self._asked, self._index = asked, index
        whole = self._whole({"delta": {"content": ""}})
        self._before, _, self._after = whole.rpartition(b'""')

    def __call__(self, delta: Json) -> bytes:
        """One message."""
        inner = delta["delta"]
        if len(delta) == 1 and len(inner) == 1 and isinstance(text := inner.get("content"), str):
            return self._before + _encode(text).encode("utf-8") + self._after
        return self._whole(delta)

    def _whole(self, delta: Json) -> bytes:
        choice = {"index": self._index, "logprobs": None, "finish_reason": None, **delta}
        usage = {"usage": None} if self._asked.usage else {}
        return sse({**_head(self._asked), "choices": [choice], **usage})


async def chunks(ticket: Ticket, asked: Asked) -> AsyncIterator[bytes]:
    """The SSE messages of an answer, those that are due together in one piece, `[DONE]` last. One
    that fails says so in a message."""
    meter = Meter(asked)
    choices = [Choice(index, asked) for index in range(ticket.request.n)]
    frames = [Frame(asked, choice.index) for choice in choices]
    # Who speaks goes out with the first words: a piece less to send, and to be woken by.
    due = [frame({"delta": {"role": "assistant", "content": ""}}) for frame in frames]
    try:
        async for batch in ticket.batches():
            for event in batch:
                meter.see(event)
                index = event.get("index", 0)
                if event["type"] in ("text", "logprobs", "done"):
                    deltas = choices[index].deltas(event)
                else:
                    deltas = await asyncio.to_thread(choices[index].deltas, event)
                due += map(frames[index], deltas)
            if due and ticket.left:  # the last ones go with the end
                yield b"".join(due)
                due.clear()
        if asked.usage:
            due.append(sse({**_head(asked), "choices": [], "usage": usage_json(meter.usages)}))
    except Exception as error:
        if not isinstance(error, ApiError):
            _log.error("an answer could not be written", exc_info=error)
        told = from_engine(error)
        asked.facts["error"] = told.message
        asked.metrics.refused(told.reason)
        due.append(sse(told.to_json()))
    yield b"".join([*due, DONE])


def sse(value: Json) -> bytes:
    """One message of a stream."""
    return b"data: " + _encode(value).encode("utf-8") + b"\n\n"


def _head(asked: Asked) -> Json:
    return {
        "id": asked.id, "object": "chat.completion.chunk", "created": asked.created,
        "model": asked.model,
    }  # fmt: skip
