"""The OpenAPI document: what each route takes, answers and refuses. Only described here, not checked.

Bodies are read by `m27.serve.body`, so that limits hold before a parser runs; FastAPI is told of them
here. Answers are described by the models below and are written by the routes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict
from pydantic.json_schema import models_json_schema
from starlette.responses import Response

from m27 import __version__
from m27.serve import media_schema, schema

Json = dict[str, Any]
WHY = {
    400: "The request is wrong, or asks for what is not supported.",
    401: "A key is needed.",
    403: "The Host or the origin is not allowed.",
    404: "There is no such model or page.",
    405: "The method is not allowed.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    415: "The body is of another type.",
    429: "Too much at once: try again after Retry-After seconds.",
    500: "The server failed.",
    503: "The engine cannot answer, or the server is stopping.",
    504: "The answer was not ready in time.",
}
EVERYWHERE = (400, 403, 405, 413, 500, 503)


class Answered(BaseModel):
    """What is sent; more may come."""

    model_config = ConfigDict(extra="allow")


class ErrorBody(Answered):
    """What went wrong, in one line."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(Answered):
    """An error in OpenAI's form."""

    error: ErrorBody


class Usage(Answered):
    """Tokens; `completion_tokens_details` has the codes of pictures and sounds, and `seed` the seed."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: Json
    completion_tokens_details: Json
    seed: int


class AnswerMessage(Answered):
    """`content` is a string where it is text alone, else typed parts in the order produced."""

    role: Literal["assistant"]
    content: str | list[schema.Part] | None


class Choice(Answered):
    """One of the answers."""

    index: int
    message: AnswerMessage
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(Answered):
    """An answer as a whole."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class Picture(Answered):
    """A picture as base64, or as a data URL."""

    b64_json: str | None = None
    url: str | None = None


class Pictures(Answered):
    """Pictures made."""

    created: int
    data: list[Picture]
    usage: Json


class Transcript(Answered):
    """What was said."""

    text: str


class Model(Answered):
    """A model, or an adapter of it."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class Models(Answered):
    """The model and its adapters."""

    object: Literal["list"]
    data: list[Model]


class Health(Answered):
    """"ok", or why not."""

    status: Literal["ok", "stuck", "dead", "closed", "draining"]


TAKEN: tuple[type[BaseModel], ...] = (
    schema.ChatRequest, media_schema.ImageRequest, media_schema.ImageEdit, media_schema.SpeechRequest,
    media_schema.TranscriptionRequest, media_schema.SoundRequest,
)  # fmt: skip
GIVEN: tuple[type[BaseModel], ...] = (
    Error, ChatCompletion, Pictures, Transcript, Model, Models, Health,
)  # fmt: skip
JSON, SSE = "application/json", "text/event-stream"
SOUND = {"audio/wav": {"schema": {"type": "string", "format": "binary"}},
         "audio/pcm": {"schema": {"type": "string", "format": "binary"}}}  # fmt: skip


def of(model: type[BaseModel]) -> Json:
    """A reference to a model's schema."""
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def route(
    given: Mapping[str, Any], *, takes: Mapping[str, type[BaseModel]] | None = None, more: Sequence[int] = ()
) -> Json:
    """What FastAPI is told of a route: `given` are the contents of a 200 by their type, `takes` those
    of the body, `more` the statuses besides those of every route."""
    statuses = [*EVERYWHERE, *more]
    refusals: dict[int | str, Json] = {
        status: {"description": WHY[status], "content": {JSON: {"schema": of(Error)}}}
        for status in sorted(set(statuses))
    }
    extra: Json = {}
    if takes is not None:
        content = {kind: {"schema": of(model)} for kind, model in takes.items()}
        extra["requestBody"] = {"required": True, "content": content}
    return {
        "responses": {200: {"description": "The answer.", "content": dict(given)}, **refusals},
        "response_class": _Nothing, "openapi_extra": extra,
    }  # fmt: skip


BODY = (401, 404, 408, 415, 429, 504)


class _Nothing(Response):
    """Adds no content type of its own to the document."""

    media_type = None


def chat() -> Json:
    """Of `/v1/chat/completions`."""
    given = {JSON: {"schema": of(ChatCompletion)}, SSE: {"schema": {"type": "string"}}}
    return route(given, takes={JSON: schema.ChatRequest}, more=BODY)


def pictures(takes: Mapping[str, type[BaseModel]]) -> Json:
    """Of the routes that make pictures."""
    return route({JSON: {"schema": of(Pictures)}}, takes=takes, more=BODY)


def sounds(takes: Mapping[str, type[BaseModel]]) -> Json:
    """Of the routes that make sounds."""
    return route(SOUND, takes=takes, more=BODY)


def transcript() -> Json:
    """Of `/v1/audio/transcriptions`."""
    given = {
        JSON: {"schema": of(Transcript)}, "text/plain": {"schema": {"type": "string"}},
        SSE: {"schema": {"type": "string"}},
    }  # fmt: skip
    takes = {"multipart/form-data": media_schema.TranscriptionRequest}
    return route(given, takes=takes, more=BODY)


def install(app: FastAPI) -> None:
    """Let `/openapi.json` be what is described here."""

    def openapi() -> Json:
        if app.openapi_schema is None:
            document = get_openapi(
                title="m27", version=__version__, routes=app.routes,
                description="Text, pictures and sounds in one answer, over OpenAI's API.",
            )  # fmt: skip
            _, taken = models_json_schema(
                [(model, "validation") for model in (*TAKEN, *GIVEN)],  # one form of each
                ref_template="#/components/schemas/{model}",
            )
            components = document.setdefault("components", {})
            components["schemas"] = taken["$defs"]
            components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            for path, methods in document["paths"].items():
                for method in methods.values():
                    method["responses"].pop("422", None)  # FastAPI's own; ours are 400
                    if path != "/health":
                        method["security"] = [{"key": []}, {}]
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
