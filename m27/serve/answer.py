"""An answer as a whole: the engine's events → one `chat.completion`, and what every answer counts.

Knows events and OpenAI's form of an answer; no route, and not how a stream is written.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from m27.infer.encode import Encoder
from m27.infer.request import Event, Response, Usage
from m27.infer.respond import collect
from m27.language.processor import Processor
from m27.serve import parts, tools
from m27.serve.errors import ApiError
from m27.serve.metrics import Metrics
from m27.serve.ticket import Ticket
from m27.serve.tools import Calling

Json = dict[str, Any]
_KEPT_SECONDS = 3600


@dataclass
class Asked:
    """What an answer's form depends on. `began`: the request's head, by `time.perf_counter`."""

    model: str
    processor: Processor
    encoder: Encoder
    metrics: Metrics
    began: float
    facts: dict[str, Any]
    tenant: str = ""
    calling: Calling = field(default_factory=Calling)
    logprobs: int | None = None
    usage: bool = False
    audio: str | None = None  # the format of OpenAI's own `audio`, where asked for
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))


class Meter:
    """Watches an answer's events go by, and counts them."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._first: float | None = None
        self.usages: list[Usage] = []

    def see(self, event: Event) -> None:
        """Note one event."""
        now, asked = time.perf_counter(), self._asked
        if event["type"] == "done":
            self._end(event["usage"], now)
        elif self._first is None and event["type"] != "logprobs":
            self._first = now
            asked.metrics.observe("m27_time_to_first_token_seconds", now - asked.began)
            asked.facts["first_seconds"] = round(now - asked.began, 4)

    def _end(self, usage: Usage, now: float) -> None:
        self.usages.append(usage)
        metrics, text = self._asked.metrics, usage.completion_tokens
        text -= usage.image_codes + usage.audio_codes
        if len(self.usages) == 1:
            metrics.count("m27_tokens_total", usage.prompt_tokens, medium="prompt")
            metrics.count("m27_tokens_total", usage.cached_tokens, medium="prompt_cached")
        for medium, count in (("text", text), ("image", usage.image_codes), ("audio", usage.audio_codes)):
            if count:
                metrics.count("m27_tokens_total", count, medium=medium)
        if self._first is not None and usage.completion_tokens > 1:
            each = (now - self._first) / (usage.completion_tokens - 1)
            metrics.observe("m27_time_per_output_token_seconds", each)
        made = self._asked.facts.get("completion_tokens", 0) + usage.completion_tokens
        self._asked.facts |= {"prompt_tokens": usage.prompt_tokens, "completion_tokens": made}


def usage_json(usages: Iterable[Usage]) -> Json:
    """OpenAI's usage, with the codes of pictures and sounds, and the seed, beside it."""
    usages = list(usages)
    first = usages[0]
    made = sum(usage.completion_tokens for usage in usages)
    images = sum(usage.image_codes for usage in usages)
    sounds = sum(usage.audio_codes for usage in usages)
    return {
        "prompt_tokens": first.prompt_tokens,
        "completion_tokens": made,
        "total_tokens": first.prompt_tokens + made,
        "prompt_tokens_details": {"cached_tokens": first.cached_tokens},
        "completion_tokens_details": {
            "text_tokens": made - images - sounds, "image_codes": images, "audio_codes": sounds,
            "audio_tokens": sounds, "reasoning_tokens": 0,
        },
        "seed": first.seed,
    }  # fmt: skip


async def gather(ticket: Ticket, meter: Meter) -> Response:
    """All events of an answer as a response. Raises ApiError where it fails."""
    events: list[Event] = []
    async for event in ticket:
        meter.see(event)
        events.append(event)
    return collect(events)


async def completion(ticket: Ticket, asked: Asked) -> Json:
    """The answer as a `chat.completion`. Raises ApiError where it fails."""
    meter = Meter(asked)
    response = await gather(ticket, meter)
    answers = [response, *response.others]
    choices = await asyncio.to_thread(
        lambda: [_choice(answer, index, asked) for index, answer in enumerate(answers)]
    )
    return {
        "id": asked.id, "object": "chat.completion", "created": asked.created,
        "model": asked.model, "choices": choices,
        "usage": usage_json(answer.usage for answer in answers),
    }  # fmt: skip


def _choice(answer: Response, index: int, asked: Asked) -> Json:
    content = [_part(p, asked) for p in answer.content]
    finish = answer.usage.finish_reason
    message: Json = {"role": "assistant", "content": plain(content), "refusal": None}
    if call := _call(answer, asked.calling):
        message |= {"content": None, "tool_calls": [call]}
        finish = "tool_calls" if finish == "stop" else finish
    if asked.audio is not None:
        message["audio"] = _audio(answer, asked)
    logprobs = None
    if asked.logprobs is not None:
        scored = (parts.logprob(asked.processor, e, asked.logprobs) for e in answer.logprobs)
        logprobs = {"content": [entry for entry in scored if entry], "refusal": None}
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish}


def _part(event: Event, asked: Asked) -> Json:
    if event["type"] != "text":
        asked.encoder.remember(event, asked.tenant)
    try:
        return parts.part(event)
    except KeyError:
        raise ApiError(500, f"the model has no {event['type']} codec", code="no_codec") from None


def plain(content: list[Json]) -> str | list[Json]:
    """Content as a string where it is text alone."""
    if all(p["type"] == "text" for p in content):
        return "".join(p["text"] for p in content)
    return content


def _call(answer: Response, calling: Calling) -> Json | None:
    """The call that an answer is, if it is one."""
    if not calling.functions or any(p["type"] != "text" for p in answer.content):
        return None
    if calling.forced is not None:
        return call_json(calling.forced, answer.text)
    read = tools.read_call(answer.text, calling.functions)
    return None if read is None else call_json(*read)


def call_json(name: str, arguments: str) -> Json:
    """A tool call in OpenAI's form."""
    function = {"name": name, "arguments": arguments}
    return {"id": tools.call_id(), "type": "function", "function": function}


def _audio(answer: Response, asked: Asked) -> Json | None:
    """OpenAI's own form of the first sound, for clients that look there."""
    for event in answer.content:
        if event["type"] == "audio":
            if asked.audio == "pcm16":
                data = base64.b64encode(parts.pcm16(event["audio"])).decode("ascii")
            else:
                data = parts.input_audio(event["audio"])["data"]
            until = asked.created + _KEPT_SECONDS
            return {"id": audio_id(asked), "data": data, "expires_at": until, "transcript": answer.text}
    return None


def audio_id(asked: Asked) -> str:
    """What OpenAI's form calls the sound of an answer."""
    return f"audio_{asked.id.removeprefix('chatcmpl-')}"
