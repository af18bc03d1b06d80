"""`/v1/audio/speech`, `/v1/audio/sounds` and `/v1/audio/transcriptions`: sounds out, and words from them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response

from m27.codec.media import SAMPLE_RATE, wav_bytes
from m27.infer.request import Request
from m27.serve import documents, parts, phrases
from m27.serve.answer import Meter, gather, usage_json
from m27.serve.body import fields_of, file_of
from m27.serve.errors import ApiError, bad, from_engine
from m27.serve.media_schema import SoundRequest, SpeechRequest, Spoken, TranscriptionRequest
from m27.serve.messages import SIZE
from m27.serve.server import Server
from m27.serve.stream import sse
from m27.serve.ticket import Ticket

CODES_A_SECOND = 40
_WORDS = 256  # tokens that a transcript may take


def router(server: Server) -> APIRouter:
    """The routes over a server."""
    routes = APIRouter()

    @routes.post("/v1/audio/speech", **documents.sounds({documents.JSON: SpeechRequest}))
    async def speech(request: HttpRequest) -> Response:
        """Speak words; the sound is sent while it is made."""
        async with server.bodies.json(request, SpeechRequest) as body:
            pass
        content = [{"type": "text", "text": phrases.ASKS["speak"].format(text=body.input)}]
        return await sound(server, request, body, content, server.settings.sound_seconds)

    @routes.post("/v1/audio/sounds", **documents.sounds({documents.JSON: SoundRequest}))
    async def sounds(request: HttpRequest) -> Response:
        """Make the sound of words or of a picture; it is sent while it is made."""
        async with server.bodies.json(request, SoundRequest) as body:
            if (body.prompt is None) == (body.image is None):
                raise bad("give prompt or image, one of them", "prompt")
            content: list[dict[str, Any]] = []
            if body.image is not None:
                decoding = server.intake.gate.picture(body.image, SIZE)
                tenant = server.tenant(request)
                shown = server.intake.picture(decoding, tenant, "image")
                content.append(await server.within(request, shown))
                content.append({"type": "text", "text": phrases.ASKS["sound_for_picture"]})
            else:
                text = phrases.ASKS["sound_for_text"].format(text=body.prompt)
                content.append({"type": "text", "text": text})
        most = server.settings.sound_seconds
        return await sound(server, request, body, content, min(body.seconds or 10.0, most))

    @routes.post("/v1/audio/transcriptions", **documents.transcript())
    async def transcriptions(request: HttpRequest) -> Response:
        """Write down what is said."""
        async with server.bodies.form(request) as form:
            body = fields_of(form, TranscriptionRequest, files=("file",))
            data = await file_of(form, "file").read()
        decoding = server.intake.gate.sound_bytes(data)
        shown = server.intake.sound(decoding, server.tenant(request), "file")
        heard = await server.within(request, shown)
        return await transcript(server, request, body, heard)

    return routes


async def sound(
    server: Server,
    request: HttpRequest,
    body: Spoken,
    content: list[dict[str, Any]],
    seconds: float,
) -> Response:
    """One sound for one message, sent as it is made. Raises ApiError before it begins."""
    if "audio" not in server.media:
        raise bad("this model produces no sounds", "model", "no_codec")
    codes = max(1, round(seconds * CODES_A_SECOND))
    ticket = await server.within(
        request,
        _ask(
            server, request, content, modalities=("audio",), plan=("audio",), max_audio_codes=codes,
            max_tokens=codes + 8, adapter=server.model(body.model), **body.options(),
        ),
    )  # fmt: skip
    kind = body.response_format or "wav"
    source = _samples(ticket, Meter(server.asked(request)), header=kind == "wav")
    media_type = "audio/wav" if kind == "wav" else f"audio/pcm;rate={SAMPLE_RATE}"
    return server.stream(request, ticket, source, media_type=media_type)


async def _ask(
    server: Server, request: HttpRequest, content: list[dict[str, Any]], live: bool = True, **options: Any
) -> Ticket:
    messages = [{"role": "user", "content": content}]
    try:
        wanted = Request(messages, tenant=server.tenant(request), **options)
    except ValueError as error:
        raise from_engine(error) from None
    return await server.ask(wanted, live)


async def _samples(ticket: Ticket, meter: Meter, header: bool) -> AsyncIterator[bytes]:
    """16-bit samples as they are decoded, behind the head of a WAV whose length is left open."""
    if header:
        yield wav_head()
    async for event in ticket:
        meter.see(event)
        if event["type"] == "audio_delta":
            yield await asyncio.to_thread(parts.pcm16, event["audio"])


def wav_head() -> bytes:
    """The 44 bytes before the samples, as of a sound that goes on for as long as a WAV can."""
    head = wav_bytes(np.zeros(0, np.float32))[:44]
    endless = (0xFFFFFFFF).to_bytes(4, "little")
    return head[:4] + endless + head[8:40] + endless


async def transcript(
    server: Server, request: HttpRequest, body: TranscriptionRequest, heard: dict[str, Any]
) -> Response:
    """The words of a sound: as JSON, as plain text, or streamed as OpenAI's events."""
    content = [heard, {"type": "text", "text": phrases.ASKS["transcribe"]}]
    ticket = await server.within(
        request,
        _ask(
            server, request, content, live=bool(body.stream), modalities=("text",), max_tokens=_WORDS,
            adapter=server.model(body.model), temperature=body.temperature or 0.0,
        ),
    )  # fmt: skip
    meter = Meter(server.asked(request))
    if body.stream:
        ping = server.settings.ping_seconds
        return server.stream(request, ticket, _words(ticket, meter), ping=ping)
    try:
        response = await server.within(request, gather(ticket, meter))
    finally:
        ticket.leave()
    if body.response_format == "text":
        return PlainTextResponse(response.text + "\n")
    usage = usage_json(meter.usages)
    tokens = {"type": "tokens", "input_tokens": usage["prompt_tokens"],
              "output_tokens": usage["completion_tokens"], "total_tokens": usage["total_tokens"]}  # fmt: skip
    return JSONResponse({"text": response.text, "usage": tokens})


async def _words(ticket: Ticket, meter: Meter) -> AsyncIterator[bytes]:
    text = ""
    try:
        async for event in ticket:
            meter.see(event)
            if event["type"] == "text":
                text += event["text"]
                yield sse({"type": "transcript.text.delta", "delta": event["text"]})
        yield sse({"type": "transcript.text.done", "text": text})
    except ApiError as error:
        yield sse(error.to_json())
