"""`/v1/chat/completions`: a body → a request to the engine → an answer, whole or streamed."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from m27.infer.request import Request
from m27.serve import documents
from m27.serve.answer import Asked, completion
from m27.serve.errors import bad, from_engine
from m27.serve.schema import ChatRequest, refuse_unsupported
from m27.serve.server import Server
from m27.serve.stream import chunks
from m27.serve.ticket import Ticket
from m27.serve.tools import Calling, calling, told


def router(server: Server) -> APIRouter:
    """The route over a server."""
    routes = APIRouter()

    @routes.post("/v1/chat/completions", **documents.chat())
    async def chat_completions(request: HttpRequest) -> Response:
        """Answer a conversation with text, pictures and sounds."""
        async with server.bodies.json(request, ChatRequest) as body:
            refuse_unsupported(body)
            streamed = bool(body.stream)
            ticket, asked = await server.within(request, start(server, request, body))
        del body  # what it holds of media is not kept while the answer is written
        if streamed:
            source, ping = chunks(ticket, asked), server.settings.ping_seconds
            return server.stream(request, ticket, source, ping=ping)
        try:
            return JSONResponse(await server.within(request, completion(ticket, asked)))
        finally:
            ticket.leave()

    return routes


async def start(server: Server, request: HttpRequest, body: ChatRequest) -> tuple[Ticket, Asked]:
    """Media in, and the request put to the engine. Raises ApiError."""
    tenant, tools = server.tenant(request), calling(body)
    options = engine_options(server, body, tools)
    messages = await server.intake.messages(body.messages, tenant)
    if tools.functions:
        text = await asyncio.to_thread(told, tools.functions)
        if len(text.encode("utf-8", "replace")) > server.settings.text_bytes:
            raise bad(f"tools: more than {server.settings.text_bytes} bytes", "tools", "too_long")
        messages = with_tools(messages, text)
    try:
        wanted = Request(messages, tenant=tenant, **options)
    except ValueError as error:
        raise from_engine(error) from None
    ticket = await server.ask(wanted, live=bool(body.stream))
    include = body.stream_options is not None and bool(body.stream_options.include_usage)
    audio = body.audio.format if body.audio is not None else None
    asked = server.asked(
        request, calling=tools, logprobs=wanted.logprobs, usage=include, audio=audio
    )
    asked.model = wanted.adapter or asked.model
    return ticket, asked


def engine_options(server: Server, body: ChatRequest, tools: Calling) -> dict[str, Any]:
    """The fields of `Request` besides messages and tenant. Raises ApiError."""
    settings = server.settings
    if (body.n or 1) > settings.answers:
        raise bad(f"n is {body.n}; {settings.answers} is the most", "n")
    most = body.max_completion_tokens or body.max_tokens or settings.default_tokens
    schema = tools.schema or _schema(body)
    media = _media(server, body, schema is not None)
    penalty = body.repetition_penalty
    if penalty is None and body.temperature == 0:
        penalty = 1.0  # who asks for the likeliest answer gets that, as of every other server
    options: dict[str, Any] = {
        "modalities": media, "schema": schema, "n": body.n or 1,
        "max_tokens": min(most, settings.answer_tokens), "temperature": body.temperature,
        "top_p": body.top_p, "top_k": body.top_k, "min_p": body.min_p,
        "repetition_penalty": penalty, "adapter": _adapter(server, body),
        "priority": min(body.priority or 0, settings.priority),
        "seed": None if body.seed is None else body.seed % 2**63,
        "stop": (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        "logprobs": (body.top_logprobs or 0) if body.logprobs else None,
    }  # fmt: skip
    plan = tuple(body.plan) if body.plan else None
    if plan is None and body.audio is not None and schema is None:
        if "audio" not in media:
            raise bad("audio needs modalities with audio", "audio")
        # Who asks in OpenAI's way for a voice wants one in every answer.
        plan = ("text", "audio") if "text" in media else ("audio",)
        options["max_text"] = max(1, options["max_tokens"] // 4)
    if plan is not None:
        options["plan"] = plan
    for name, medium in (("max_images", "image"), ("max_sounds", "audio")):
        if (given := getattr(body, name)) is not None:
            options[name] = given
        elif plan is not None:
            options[name] = plan.count(medium)
    if body.guidance is not None:
        options["guidance"] = body.guidance
    if body.ignore_eos:
        if schema is not None or plan is not None:
            why = "ignore_eos: JSON, calls and plans end where they are whole"
            raise bad(why, "ignore_eos")
        options["min_text"] = options["max_tokens"]
    return options


def _media(server: Server, body: ChatRequest, schema: bool) -> tuple[str, ...]:
    if schema:
        if body.modalities and body.modalities != ["text"]:
            raise bad("JSON and calls are text alone: modalities must be text", "modalities")
        if body.plan and set(body.plan) != {"text"}:
            raise bad("JSON and calls are text alone: no plan can be kept to", "plan")
        return ("text",)
    media = tuple(dict.fromkeys(body.modalities)) if body.modalities else server.media
    missing = [medium for medium in media if medium not in server.media]
    if missing:
        raise bad(f"this model produces no {missing[0]}", "modalities")
    return media


def _schema(body: ChatRequest) -> dict[str, Any] | str | None:
    form = body.response_format
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return "json"
    if form.json_schema is None:
        raise bad("response_format needs json_schema", "response_format")
    return form.json_schema.schema_


def _adapter(server: Server, body: ChatRequest) -> str | None:
    named = server.model(body.model)
    if body.adapter is None:
        return named
    if body.adapter not in server.adapters:
        raise bad(f"no adapter is called {body.adapter!r}", "adapter")
    return body.adapter


def with_tools(messages: list[dict[str, Any]], told: str) -> list[dict[str, Any]]:
    """The conversation with what is told of the functions in its system message."""
    text = {"type": "text", "text": told}
    if messages[0]["role"] == "system":
        first = messages[0]["content"]
        between = {"type": "text", "text": "\n\n"}
        return [{"role": "system", "content": [*first, between, text]}, *messages[1:]]
    return [{"role": "system", "content": [text]}, *messages]
