"""What is asked of the engine and what comes back. Plain data; knows no model and no tokenizer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

MEDIA = ("text", "image", "audio")

Message = dict[str, Any]  # {"role", "content": str | [part, …]}
Part = dict[str, Any]  # {"type": "text" | "image" | "audio", …}
Event = dict[str, Any]  # {"type": "text" | "image_begin" | "image" | "audio_begin" | … | "done", …}


class RequestError(ValueError):
    """A request that cannot be served; the message is one line that says why."""


class Refused(RequestError):  # noqa: N818 - it is an answer, and so called everywhere
    """A request that limits keep out. `reason`: "queue" (too many wait; try again in `retry_after`
    seconds), "cache" (it would not fit the cache alone) or "limit" (it is longer than allowed)."""

    def __init__(self, message: str, reason: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.reason, self.retry_after = reason, retry_after


@dataclass(frozen=True)
class Sampling:
    """How an id is chosen from logits. `temperature` 0 is greedy; `top_k` 0, `top_p` 1, `min_p` 0
    and `repetition_penalty` 1 change nothing."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    greedy: bool = field(init=False, repr=False, compare=False)  # the likeliest id, as it is

    def __post_init__(self) -> None:
        ranges = {
            "temperature": (self.temperature, 0.0, 100.0),
            "top_k": (self.top_k, 0, 1_000_000),
            "top_p": (self.top_p, 1e-6, 1.0),
            "min_p": (self.min_p, 0.0, 1.0),
            "repetition_penalty": (self.repetition_penalty, 0.01, 100.0),
        }
        for name, (value, low, high) in ranges.items():
            if not low <= value <= high:  # also false for not-a-number
                raise RequestError(f"{name} must lie between {low:g} and {high:g}, not {value:g}")
        greedy = self.temperature == 0.0 and self.repetition_penalty == 1.0
        object.__setattr__(self, "greedy", greedy)
        if 0.0 < self.temperature < 1e-4:  # the logits divided by it would not stay finite
            raise RequestError(f"temperature must be 0 or at least 1e-4, not {self.temperature:g}")


# Words want the likeliest reading (0.2 and 0.9 are what SmolLM2's card advises); a picture or a
# sound whose codes are each the likeliest is flat, so those are drawn at the model's own spread.
# Codes repeat by right (a blue sky), so only words are penalised for it.
DEFAULTS: Mapping[str, Sampling] = {
    "text": Sampling(temperature=0.2, top_p=0.9, repetition_penalty=1.1),
    "image": Sampling(temperature=1.0, top_p=0.95),
    "audio": Sampling(temperature=0.6, top_p=0.95),
}
# Of each medium, where a request does not say; words are never guided. Measured (docs/LOG.md, 2026-11-27): what is
# said is understood best with less than what draws best.
GUIDANCE: Mapping[str, float] = {"text": 1.0, "image": 2.5, "audio": 1.5}


@dataclass(frozen=True)
class Request:
    """One turn to be answered.

    `modalities`: the media the answer may hold. `plan`: a forced order of parts, such as
    ("text", "image", "text", "image"). `max_text`: tokens of text in a row; `min_text`: of
    an answer that has no plan, before its turn may end. `image_grid`: codes
    (rows, columns) of each picture, None for the model's choice; an audio code lasts 1/40 s.
    `temperature` … `repetition_penalty`: for every medium, where given; else `DEFAULTS` of each.
    `guidance`: classifier-free guidance of picture and sound spans (Ho & Salimans 2022); 1 is off, None
    what `GUIDANCE` has for each.
    `seed` None draws one.
    `n`: answers to the one prompt, each drawn anew; their events carry "index". `stop`: strings that
    end the answer and are not part of it. `logprobs`: for every id an event with its log probability
    and those of so many likeliest ids. `schema`: a JSON schema that the text obeys, or "json" for
    any object; such an answer is text alone. `adapter`: the name of one that the engine was given.
    `priority`: higher goes first; `tenant`: among whom the engine shares fairly, and who alone finds
    what is cached of its prompts. `speculate`: try ids ahead where words repeat; `picture_window`:
    compute so many codes of an open picture in a step, those tried ahead included (0 and 1: none
    are), which pays where a step costs little more for more tokens. The answer is the same with both.
    Raises `RequestError` on values outside their range.
    """

    messages: Sequence[Message]
    modalities: tuple[str, ...] = MEDIA
    plan: tuple[str, ...] | None = None
    max_tokens: int = 512
    max_text: int | None = None
    min_text: int = 0
    max_images: int = 8
    max_sounds: int = 4
    image_grid: tuple[int, int] | None = (8, 8)
    min_audio_codes: int = 1
    max_audio_codes: int = 400
    guidance: float | None = None
    seed: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    n: int = 1
    stop: Sequence[str] = ()
    logprobs: int | None = None
    schema: Mapping[str, Any] | str | None = None
    adapter: str | None = None
    priority: int = 0
    tenant: str = ""
    speculate: bool = False
    picture_window: int = 0
    sampling: Mapping[str, Sampling] = field(init=False, repr=False)
    guided: Mapping[str, float] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.modalities or any(m not in MEDIA for m in self.modalities):
            raise RequestError(f"modalities are some of text,image,audio, not {self.modalities}")
        wrong = [m for m in self.plan or () if m not in self.modalities]
        if wrong:
            raise RequestError(f"the plan asks for {wrong[0]}, which modalities does not allow")
        if self.max_tokens < 1:
            raise RequestError(f"max_tokens must be at least 1, not {self.max_tokens}")
        if self.guidance is not None and not 0.0 <= self.guidance <= 100.0:
            raise RequestError(f"guidance must lie between 0 and 100, not {self.guidance:g}")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise RequestError(f"seed must lie between 0 and 2**63, not {self.seed}")
        if not 1 <= self.n <= 128:
            raise RequestError(f"n must lie between 1 and 128, not {self.n}")
        if self.logprobs is not None and not 0 <= self.logprobs <= 100:
            raise RequestError(f"logprobs must lie between 0 and 100, not {self.logprobs}")
        if not 0 <= self.picture_window <= 64:
            why = f"picture_window must lie between 0 and 64, not {self.picture_window}"
            raise RequestError(why)
        if isinstance(self.stop, str) or not all(isinstance(s, str) and s for s in self.stop):
            raise RequestError("stop is a list of strings, none of them empty")
        if isinstance(self.schema, str) and self.schema != "json":
            raise RequestError(f"schema is a JSON schema or 'json', not {self.schema!r}")
        if self.min_text and self.schema is not None:
            raise RequestError("a schema says itself when its text is complete: min_text must be 0")
        if self.schema is not None and self.modalities != ("text",):
            raise RequestError(
                "an answer with a schema is text alone: modalities must be ('text',)"
            )
        given = {
            name: value
            for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
            if (value := getattr(self, name)) is not None
        }
        resolved = {medium: replace(default, **given) for medium, default in DEFAULTS.items()}
        object.__setattr__(self, "sampling", resolved)
        asked = self.guidance
        guided = {m: g if asked is None or m == "text" else asked for m, g in GUIDANCE.items()}
        object.__setattr__(self, "guided", guided)


@dataclass(frozen=True)
class Usage:
    """Tokens in and out; of those out, the codes of pictures and sounds. `seed`: the one used.
    `cached_tokens`: tokens of the prompt that were found computed."""

    prompt_tokens: int
    completion_tokens: int
    image_codes: int
    audio_codes: int
    seed: int
    finish_reason: str  # "stop": the model ended its turn; "length": max_tokens did
    cached_tokens: int = field(default=0, compare=False)

    def to_json(self) -> dict[str, int | str]:
        """The same as a dict, with `total_tokens`."""
        total = self.prompt_tokens + self.completion_tokens
        return {**self.__dict__, "total_tokens": total}


@dataclass(frozen=True)
class Response:
    """A whole answer: `content` parts in the order produced ({"type":"text","text"},
    {"type":"image","image": uint8 [H, W, 3], "codes": [h, w]}, {"type":"audio","audio": float32 [T]
    at 16 kHz, "codes": [N]}), `usage`, wall-clock `seconds`, and the `ids` produced. `others`: the
    further answers where `n` were asked for; `logprobs`: those events, in order."""

    content: list[Part]
    usage: Usage
    seconds: float
    ids: Sequence[int] = ()
    logprobs: Sequence[Event] = ()
    others: Sequence["Response"] = ()

    @property
    def text(self) -> str:
        """All text parts, joined."""
        return "".join(part["text"] for part in self.content if part["type"] == "text")
