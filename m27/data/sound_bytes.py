"""Sounds in few bytes, for carrying: a transform coder in numpy and lzma alone, so that any machine reads it.

Lapped cosine transform of 20 ms, a loudness a band, steps that follow it, whole numbers through LZMA: about
25 kbit a second of 16 kHz sound, good enough to train codecs of half a kbit on. Each sound stands alone.
Source: the modified discrete cosine transform of Princen and Bradley (1986).

Shapes: T samples at 16 kHz, F frames, K coefficients a frame, B bands.
"""

from __future__ import annotations

import lzma
import struct
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]
HOP = 320
# Where bands begin, in coefficients of 25 Hz: narrow below, wide above, as the ear has it.
EDGES = np.array(
    [0, 4, 8, 12, 16, 20, 25, 30, 36, 42, 50, 58, 68, 80, 94, 110, 130, 154, 184, 220, 265, 320]
)
WIDTHS = np.diff(EDGES)
LOUD_STEP = 3.0  # dB between two loudnesses of a band
LOWEST = -96.0  # dB of full scale; what is below is nothing
# Step of the coefficients in units of their band's loudness, lowest band to highest.
COARSE = np.linspace(0.4, 1.8, len(WIDTHS)).astype(np.float32)
MASKED = 48.0  # dB below a frame's loudest band: no finer than there
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 18, "lc": 3, "lp": 0, "pb": 0}]


class SoundBytesError(ValueError):
    """Bytes that `pack` did not write."""


@lru_cache(maxsize=1)
def _basis() -> NDArray[np.float32]:
    """The windowed cosines ``[2 HOP, HOP]``; its own inverse, overlapped and added."""
    n, k = np.arange(2 * HOP)[:, None], np.arange(HOP)
    window = np.sin(np.pi * (n + 0.5) / (2 * HOP))
    cosines = np.cos(np.pi / HOP * (n + 0.5 + HOP / 2) * (k + 0.5))
    return (window * cosines * np.sqrt(2 / HOP)).astype(np.float32)


def _steps(loud_FB: NDArray[np.integer]) -> NDArray[np.float32]:
    """Loudness numbers → the step of each coefficient ``[F, K]``."""
    level = LOWEST + LOUD_STEP * loud_FB.astype(np.float32)
    floor = level.max(axis=1, keepdims=True) - MASKED
    decibels = np.maximum(level, floor)
    step = COARSE * 10 ** (decibels / 20)
    return np.repeat(step, WIDTHS, axis=1).astype(np.float32)


def pack(samples_T: Samples) -> bytes:
    """A sound in −1..1 as bytes; about 3 kB a second."""
    total = len(samples_T)
    frames = -(-total // HOP) + 1
    padded = np.zeros((frames + 1) * HOP, np.float32)
    padded[HOP : HOP + total] = samples_T
    blocks = np.lib.stride_tricks.sliding_window_view(padded, 2 * HOP)[::HOP]
    x_FK = blocks @ _basis()
    power = np.add.reduceat(x_FK**2, EDGES[:-1], axis=1) / WIDTHS
    level = 10 * np.log10(power + 1e-12)
    loud = np.clip(np.round((level - LOWEST) / LOUD_STEP), 0, 40).astype(np.uint8)
    step = _steps(loud)
    numbers = np.clip(np.round(x_FK / step), -127, 127).astype(np.int8)
    numbers[np.repeat(loud == 0, WIDTHS, axis=1)] = 0
    change = np.diff(loud.astype(np.int8), axis=0, prepend=np.int8(0)).astype(np.int8)
    # Signs folded away, so that small numbers are small bytes; a coefficient through time, then the next.
    folded = ((numbers.astype(np.int16) << 1) ^ (numbers.astype(np.int16) >> 15)).astype(np.uint8)
    body = change.T.tobytes() + folded.T.tobytes()
    return struct.pack("<I", total) + lzma.compress(body, lzma.FORMAT_RAW, filters=_FILTERS)


def unpack(data: bytes) -> Samples:
    """The sound of `pack`'s bytes, float32 [T]. Raises SoundBytesError."""
    try:
        (total,) = struct.unpack_from("<I", data)
        body = lzma.decompress(data[4:], lzma.FORMAT_RAW, filters=_FILTERS)
        frames, bands = -(-total // HOP) + 1, len(WIDTHS)
        raw = np.frombuffer(body, np.uint8)
        change = raw[: frames * bands].view(np.int8).reshape(bands, frames).T
        folded = raw[frames * bands :].reshape(HOP, frames).T.astype(np.int16)
    except (struct.error, lzma.LZMAError, ValueError) as error:
        raise SoundBytesError(f"not the bytes of a sound: {error}") from None
    loud = change.astype(np.int16).cumsum(axis=0)
    numbers = (folded >> 1) ^ -(folded & 1)
    x_FK = numbers.astype(np.float32) * _steps(loud)
    blocks = x_FK @ _basis().T
    out = np.zeros((frames + 1) * HOP, np.float32)
    out[: frames * HOP] += blocks[:, :HOP].reshape(-1)
    out[HOP:] += blocks[:, HOP:].reshape(-1)
    return np.clip(out[HOP : HOP + total], -1, 1)
