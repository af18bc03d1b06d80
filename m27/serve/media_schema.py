"""What a client may send to the routes for pictures and sounds, as types. Knows no engine.

As in `schema`: OpenAI's names with ours beside them; what would change the answer and cannot be had is
refused, what changes nothing is passed over.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from m27.serve.errors import bad
from m27.serve.schema import Strict

PROMPT = 4_000  # characters
File = Field(None, json_schema_extra={"type": "string", "format": "binary", "default": None})


class Drawn(Strict):
    """How media are drawn; the same in every request that makes some."""

    model: str | None = Field(None, max_length=256)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    temperature: float | None = Field(None, ge=0, le=2)
    guidance: float | None = Field(None, ge=0, le=100)
    user: Any = None

    def options(self) -> dict[str, Any]:
        """As fields of an engine's request."""
        options: dict[str, Any] = {"temperature": self.temperature}
        if self.seed is not None:
            options["seed"] = self.seed % 2**63
        if self.guidance is not None:
            options["guidance"] = self.guidance
        return options


class Drawing(Drawn):
    """What both routes for pictures take. `size` in pixels, WIDTHxHEIGHT, multiples of 16; "auto" is
    128x128, what the shipped model was trained on."""

    prompt: str = Field(min_length=1, max_length=PROMPT)
    n: int | None = Field(None, ge=1)
    size: str | None = Field(None, pattern=r"^(auto|[0-9]{2,4}x[0-9]{2,4})$")
    response_format: Literal["b64_json", "url"] | None = None
    output_format: Literal["png", "jpeg"] | None = None
    output_compression: Any = None
    quality: Any = None
    style: Any = None
    moderation: Any = None
    background: Literal["auto", "opaque"] | None = None
    stream: Literal[False] | None = None
    partial_images: Any = None

    def grid(self, side: int) -> tuple[int, int]:
        """Codes (rows, columns) of the picture. Raises ApiError for a size that cannot be had."""
        if self.size in (None, "auto"):
            return 8, 8
        width, height = (int(number) for number in str(self.size).split("x"))
        if width % 16 or height % 16 or not 16 <= min(width, height) <= max(width, height) <= side:
            why = f"size: multiples of 16 from 16 to {side}, as 128x128, not {self.size}"
            raise bad(why, "size")
        return height // 16, width // 16


class ImageRequest(Drawing):
    """A picture from words."""


class ImageEdit(Drawing):
    """A picture from a picture and words. Sent as a form; `image` is the file."""

    image: Any = File
    mask: Any = None
    input_fidelity: Any = None
    stream: Any = None


class Spoken(Drawn):
    """How a sound is sent. `pcm` is 16-bit little-endian mono at 16 kHz."""

    response_format: Literal["wav", "pcm"] | None = None
    stream_format: Literal["audio"] | None = None


class SpeechRequest(Spoken):
    """Words to be spoken. There is one voice and one speed."""

    input: str = Field(min_length=1, max_length=PROMPT)
    voice: Any = None
    speed: Literal[1] | None = None


class SoundRequest(Spoken):
    """A sound for words (`prompt`), or for a picture (`image`: a data URL), of up to `seconds`."""

    prompt: str | None = Field(None, min_length=1, max_length=PROMPT)
    image: str | None = None
    seconds: float | None = Field(None, gt=0, le=3600)


class TranscriptionRequest(Strict):
    """Speech to be written down. Sent as a form; `file` is the sound. `language` changes nothing."""

    file: Any = File
    model: str | None = Field(None, max_length=256)
    language: str | None = None
    response_format: Literal["json", "text"] | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    stream: bool | None = None
    chunking_strategy: Any = None
    user: Any = None
