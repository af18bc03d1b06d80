"""Pictures and sounds of an answer as JSON: data URLs, base64, and the words of log probabilities.

The forms are those in which a client may send them back. Knows arrays and ids; no request.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from m27.codec.media import SAMPLE_RATE, Pixels, Samples, png_bytes, wav_bytes
from m27.infer.request import Event
from m27.language.processor import Processor

Json = dict[str, Any]
_PREVIEW_QUALITY = 70


def data_url(kind: str, data: bytes) -> str:
    """Bytes as a data URL."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def image_url(rgb_HW3: Pixels) -> Json:
    """uint8 [H, W, 3] → {"url"}, a PNG."""
    return {"url": data_url("image/png", png_bytes(rgb_HW3))}


def preview_url(rgb_HW3: Pixels) -> Json:
    """uint8 [H, W, 3] → {"url"}, a small JPEG."""
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(rgb_HW3)).save(out, "JPEG", quality=_PREVIEW_QUALITY)
    return {"url": data_url("image/jpeg", out.getvalue())}


def input_audio(samples_T: Samples) -> Json:
    """float32 [T] → {"data", "format"}, a WAV."""
    return {"data": base64.b64encode(wav_bytes(samples_T)).decode("ascii"), "format": "wav"}


def pcm16(samples_T: Samples) -> bytes:
    """float32 [T] → 16-bit little-endian samples, mono, at 16 kHz."""
    return np.round(np.clip(samples_T, -1.0, 1.0) * 32767.0).astype("<i2").tobytes()


def packet(samples_T: Samples) -> Json:
    """A piece of a sound: {"data", "format", "sample_rate"}."""
    data = base64.b64encode(pcm16(samples_T)).decode("ascii")
    return {"data": data, "format": "pcm16", "sample_rate": SAMPLE_RATE}


def part(event: Event) -> Json:
    """A whole part of an answer as it is accepted as input. KeyError where it was not decoded."""
    if event["type"] == "text":
        return {"type": "text", "text": event["text"]}
    if event["type"] == "image":
        return {"type": "image_url", "image_url": image_url(event["image"])}
    return {"type": "input_audio", "input_audio": input_audio(event["audio"])}


def logprob(processor: Processor, event: Event, most: int) -> Json | None:
    """An event of log probabilities in OpenAI's form; None for an id that is no text."""
    if processor.vocabulary.kind(event["id"]) != "text":
        return None
    top = [_token(processor, id, value) for id, value in event["top"][:most]]
    return {**_token(processor, event["id"], event["logprob"]), "top_logprobs": top}


def _token(processor: Processor, id: int, value: float) -> Json:
    vocabulary = processor.vocabulary
    kind = vocabulary.kind(id)
    if kind == "text":
        data = processor.spelling[id]
    elif kind in ("image", "audio"):
        first = vocabulary.image.start if kind == "image" else vocabulary.audio.start
        data = f"<|{kind[0]}{id - first}|>".encode()
    else:
        names = {number: name for name, number in vocabulary.control.items()}
        data = names.get(id, "").encode()
    return {
        "token": data.decode("utf-8", "replace"), "logprob": max(float(value), -9999.0),
        "bytes": list(data),
    }  # fmt: skip
