"""What a client may send to `/v1/chat/completions`, as types. OpenAI's names, and ours beside them.

What changes nothing here is taken and passed over; what would change the answer and cannot be had is
refused by `refuse_unsupported`, and so is a name that nobody knows. Knows no engine.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from m27.serve.errors import bad

Medium = Literal["text", "image", "audio"]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.\-]{1,64}$")]
Json = dict[str, Any]
MOST_MESSAGES, MOST_PARTS = 4_096, 1_024  # that are looked at; the server's own limits are lower


class Strict(BaseModel):
    """Unknown names are an error; numbers are numbers."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)


class Loose(BaseModel):
    """Unknown names are passed over: what a client keeps of an answer has more than we read."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, hide_input_in_errors=True)


class TextPart(Loose):
    """A part of words."""

    type: Literal["text"]
    text: str


class ImageUrl(Loose):
    """A data URL of a PNG, JPEG, WebP, GIF or BMP. `detail` changes nothing: a picture is 64 codes."""

    url: str
    detail: Literal["auto", "low", "high", "original"] | None = None


class ImagePart(Loose):
    """A part that is a picture."""

    type: Literal["image_url"]
    image_url: ImageUrl


class InputAudio(Loose):
    """A WAV, FLAC, OGG or MP3 as base64."""

    data: str
    format: Literal["wav", "mp3", "flac", "ogg"] = "wav"


class AudioPart(Loose):
    """A part that is a sound."""

    type: Literal["input_audio"]
    input_audio: InputAudio


Part = Annotated[TextPart | ImagePart | AudioPart, Field(discriminator="type")]


class CalledFunction(Loose):
    """What was called; `arguments` are JSON as text."""

    name: str = Field(max_length=64)
    arguments: str


class ToolCall(Loose):
    """A call that an earlier answer asked for."""

    id: str = Field(max_length=256)
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Loose):
    """One turn. "developer" is the same as "system". An assistant's may have `tool_calls`."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[Part], Field(max_length=MOST_PARTS)] | None = None
    tool_calls: list[ToolCall] | None = Field(None, max_length=64)
    tool_call_id: str | None = None
    name: str | None = None


class AudioOut(Loose):
    """How sounds are written. There is one voice: `voice` changes nothing."""

    format: Literal["wav", "pcm16"] = "wav"
    voice: Any = None


class StreamOptions(Loose):
    """`include_usage`: one more chunk, the last, says what the answer took."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class JsonSchema(Loose):
    """A JSON schema, by whatever name."""

    name: str | None = None
    description: str | None = None
    schema_: Json = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Loose):
    """What the text obeys: nothing, any JSON object, or a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Function(Loose):
    """A function that may be called. Its `parameters` are a JSON schema."""

    name: Name
    description: str | None = None
    parameters: Json | None = None
    strict: bool | None = None


class Tool(Loose):
    """A tool; functions are the only ones."""

    type: Literal["function"]
    function: Function


class NamedFunction(Loose):
    """A function by name."""

    name: Name


class NamedTool(Loose):
    """The tool that is to be called."""

    type: Literal["function"]
    function: NamedFunction


class ChatRequest(Strict):
    """A conversation to be answered. The second block are extensions of ours; the third changes
    nothing or is refused where it would change the answer."""

    messages: list[Message] = Field(min_length=1, max_length=MOST_MESSAGES)
    model: str | None = Field(None, max_length=256)
    modalities: list[Medium] | None = Field(None, min_length=1, max_length=3)
    audio: AudioOut | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_completion_tokens: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | Annotated[list[str], Field(max_length=64)] | None = None
    n: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = Field(None, max_length=64)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None

    guidance: float | None = Field(None, ge=0, le=100)
    max_images: int | None = Field(None, ge=0, le=64)
    max_sounds: int | None = Field(None, ge=0, le=64)
    plan: list[Medium] | None = Field(None, min_length=1, max_length=64)
    adapter: str | None = Field(None, max_length=128)
    top_k: int | None = Field(None, ge=0, le=1_000_000)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    priority: int | None = Field(None, ge=-100, le=100)
    ignore_eos: bool | None = None

    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    prediction: Any = None
    reasoning_effort: Any = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: Json | None = None
    verbosity: str | None = None
    web_search_options: Any = None
    functions: Any = None
    function_call: Any = None


def refuse_unsupported(body: ChatRequest) -> None:
    """Raise ApiError for what OpenAI's API has, would change the answer, and is not to be had."""
    instead = {"frequency_penalty": "repetition_penalty", "presence_penalty": "repetition_penalty"}
    for name in ("frequency_penalty", "presence_penalty", "logit_bias", "web_search_options",
                 "functions", "function_call"):  # fmt: skip
        if getattr(body, name):
            advice = f"; there is {instead[name]}" if name in instead else ""
            advice = "; use tools" if name.startswith("function") else advice
            raise bad(f"{name} is not supported{advice}", name, "unsupported_parameter")
    if body.verbosity not in (None, "medium"):
        raise bad("verbosity is not supported", "verbosity", "unsupported_parameter")
    if body.top_logprobs is not None and not body.logprobs:
        raise bad("top_logprobs needs logprobs", "top_logprobs")
    if body.stream_options is not None and not body.stream:
        raise bad("stream_options needs stream", "stream_options")
