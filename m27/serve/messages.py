"""A client's messages → the model's: text as it is, media through the gate and then to codes.

Nothing of a client's reaches the processor but text, and codes that our own codecs made: a part here
is never a path, never bytes and never a control id. Knows the gate and the encoder; no route.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any

from m27.infer.encode import Encoder
from m27.language.codecs import Pixels, Samples
from m27.language.template import MessageError
from m27.serve.errors import ApiError, bad, from_engine
from m27.serve.gate import Gate, MediaRefused
from m27.serve.metrics import Metrics
from m27.serve.schema import AudioPart, ImagePart, Message, TextPart
from m27.serve.settings import Settings
from m27.serve.tools import spelled

Part = dict[str, Any]
SIZE = (128, 128)  # pixels (height, width) in which the model is shown every picture
_FEW = 2  # pictures of a request that the engine turns into codes itself, between two steps
_CONCURRENT = 4  # media of one request that are decoded at once


@dataclass
class Intake:
    """The way in for media: `gate` decodes what strangers wrote, `encoder` makes codes of it. `pixels`: a
    message's pictures, where there are few, are left to the engine as they are."""

    gate: Gate
    encoder: Encoder
    settings: Settings
    metrics: Metrics
    pixels: bool = False

    async def picture(self, decoding: Awaitable[Pixels], tenant: str, where: str) -> Part:
        """An image part from what the gate gives. Raises ApiError."""
        return await self._part("image", decoding, tenant, where)

    async def sound(self, decoding: Awaitable[Samples], tenant: str, where: str) -> Part:
        """An audio part from what the gate gives. Raises ApiError."""
        return await self._part("audio", decoding, tenant, where)

    async def _part(
        self, kind: str, decoding: Awaitable[Any], tenant: str, where: str, pixels: bool = False
    ) -> Part:
        try:
            with self.metrics.timed("decode", kind):
                array = await decoding
        except MediaRefused as error:
            after = 2.0 if error.status in (429, 503) else None
            raise ApiError(
                error.status, f"{where}: {error}", code=error.code, param=where, retry_after=after
            ) from None
        if pixels:
            known = self.encoder.known(kind, array, tenant)
            return {"type": kind, kind: array} if known is None else {"type": kind, "codes": known}
        encode = self.encoder.image if kind == "image" else self.encoder.audio
        with self.metrics.timed("encode", kind):
            try:
                codes = await asyncio.wrap_future(encode(array, tenant))
            except MessageError as error:
                raise bad(f"{where}: {str(error).rpartition(': ')[2]}", where) from None
        return {"type": kind, "codes": codes}

    async def messages(self, messages: Sequence[Message], tenant: str) -> list[dict[str, Any]]:
        """The conversation in the model's form. Raises ApiError that names message and part."""
        pixels = self._check(messages) <= _FEW and self.pixels
        slots = asyncio.Semaphore(_CONCURRENT)
        tasks: list[asyncio.Task[Part]] = []
        out: list[dict[str, Any]] = []
        try:
            async with asyncio.TaskGroup() as group:
                for number, message in enumerate(messages):
                    parts: list[Any] = []
                    for k, part in enumerate(_parts(message, number)):
                        where = f"messages[{number}].content[{k}]"
                        if isinstance(part, TextPart):
                            parts.append({"type": "text", "text": part.text})
                        else:
                            task = group.create_task(self._media(part, tenant, where, slots, pixels))
                            tasks.append(task)
                            parts.append(task)
                    role = "system" if message.role == "developer" else message.role
                    out.append({"role": role, "content": parts})
        except ExceptionGroup as group_of_errors:  # the first is told, the rest were cancelled
            raise from_engine(group_of_errors.exceptions[0]) from None
        for message_out in out:
            content = message_out["content"]
            message_out["content"] = [p.result() if isinstance(p, asyncio.Task) else p for p in content]
        return out

    async def _media(
        self, part: ImagePart | AudioPart, tenant: str, where: str, slots: asyncio.Semaphore, pixels: bool
    ) -> Part:
        async with slots:
            if isinstance(part, ImagePart):
                decoding = self.gate.picture(part.image_url.url, SIZE)
                return await self._part("image", decoding, tenant, where, pixels)
            audio = part.input_audio
            return await self.sound(self.gate.sound(audio.data, audio.format), tenant, where)

    def _check(self, messages: Sequence[Message]) -> int:
        """Limits that need no decoding; how many media there are. Raises ApiError."""
        settings, text, media = self.settings, 0, 0
        if len(messages) > settings.messages:
            raise bad(f"{len(messages)} messages; {settings.messages} is the most", "messages")
        for number, message in enumerate(messages):
            for part in _parts(message, number):
                if isinstance(part, TextPart):
                    text += len(part.text.encode("utf-8", "replace"))
                else:
                    media += 1
        if text > settings.text_bytes:
            why = f"{text} bytes of text; {settings.text_bytes} is the most"
            raise bad(why, "messages", "too_long")
        if media > settings.media:
            why = f"{media} pictures and sounds; {settings.media} is the most"
            raise bad(why, "messages", "too_many_media")
        return media


def _parts(message: Message, number: int) -> list[TextPart | ImagePart | AudioPart]:
    """The parts of a message, its calls spelled out behind them."""
    content = message.content
    parts = [TextPart(type="text", text=content)] if isinstance(content, str) else content or []
    if message.tool_calls and message.role == "assistant":
        return [*parts, TextPart(type="text", text=spelled(message.tool_calls))]
    if content is None:
        raise bad(f"messages[{number}].content is missing", "messages", "invalid_message")
    return list(parts)
