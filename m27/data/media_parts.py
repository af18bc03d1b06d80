"""The picture or sound of a part, as a file's bytes for other programs or as an array for other libraries.

Knows parts and files; no codes, no models and no network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m27.codec import media


def as_file(part: Mapping[str, Any]) -> tuple[str, bytes]:
    """(media type, bytes) of an image or audio part: as they are where it names a file or holds bytes, else PNG or WAV.

    Raises MediaError for a part of codes alone and for bytes of no known format, OSError for a file that is not there.
    """
    kind = part["type"]
    if part.get(kind) is not None:
        value = part[kind]
        return ("image/png", media.png_bytes(value)) if kind == "image" else ("audio/wav", media.wav_bytes(value))
    if part.get("bytes") is not None:
        data, name = bytes(part["bytes"]), "data"
    elif part.get("path") is not None:
        path = Path(part["path"])
        data, name = path.read_bytes(), path.name
    else:
        raise media.MediaError(f"an {kind} part of codes alone has no file that another model could read")
    found = media.media_type(data)
    if not found.startswith(kind):
        raise media.MediaError(f"{name}: is no {kind} of a known format", "unsupported_format")
    return found, data


def pixels(part: Mapping[str, Any]) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] of an image part. Raises as `as_file` does, and MediaError for a broken picture."""
    if part.get("image") is not None:
        return np.asarray(part["image"], np.uint8)
    return media.read_image(as_file(part)[1])


def heard(part: Mapping[str, Any]) -> NDArray[np.float32]:
    """float32 [T] at 16 kHz of an audio part. Raises as `as_file` does, and MediaError for a broken sound."""
    if part.get("audio") is not None:
        return np.asarray(part["audio"], np.float32)
    return media.read_audio(as_file(part)[1])


def square(rgb: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """A picture uint8 [H, W, 3] filling a frame of `side` by `side` pixels."""
    return media.fit_image(rgb, side, side)


def fingerprint(part: Mapping[str, Any]) -> str:
    """12 hex digits of the sha256 over what a part shows: its file's bytes, its array or its codes."""
    if part.get("codes") is not None:
        data = repr(part["codes"]).encode()
    elif part.get(part["type"]) is not None:
        value = np.ascontiguousarray(part[part["type"]])
        data = f"{value.shape}{value.dtype}".encode() + value.tobytes()
    elif part.get("bytes") is not None:
        data = bytes(part["bytes"])
    else:
        data = Path(part["path"]).read_bytes()
    return hashlib.sha256(data).hexdigest()[:12]


def thumbnail(part: Mapping[str, Any], most: int = 180) -> bytes:
    """An image part as a small PNG, its longer side `most` pixels at most. Raises as `pixels` does."""
    rgb = pixels(part)
    height, width = rgb.shape[:2]
    scale = min(1.0, most / max(height, width))
    small = (max(1, round(height * scale)), max(1, round(width * scale)))
    return media.png_bytes(media.fit_image(rgb, *small) if scale < 1 else rgb)


def sound_part(samples: NDArray[Any], rate: int) -> dict[str, Any]:
    """Samples [T] or [channels, T] at any rate as an audio part."""
    mono = samples.mean(0) if samples.ndim == 2 else samples
    return {"type": "audio", "bytes": media.wav_bytes(np.asarray(mono, np.float32), rate)}


def fitted(path: Path, height: int, width: int) -> NDArray[np.uint8]:
    """A picture's file as uint8 [height, width, 3], resized with antialiasing (Pillow, bicubic) to fill the frame.

    Raises MediaError, OSError where it cannot be read.
    """
    return media.fit_image(media.read_image(path), height, width)


def waveform(path: Path, seconds: float = 600.0) -> NDArray[np.float32]:
    """A sound's file as float32 [T] in -1..1, mono, 16 kHz. Raises MediaError, OSError where it cannot be read."""
    return media.read_audio(path, media.Limits(max_bytes=200_000_000, max_seconds=seconds))
