"""Flite (CMU) through ctypes: text → 16 kHz speech in four recorded voices. No root, nothing
installed.

The libraries come from the Debian package `libflite1`, unpacked; `libasound2` likewise where the
system has none, as flite is linked against it (no device is ever opened). Voices: `kal16`
(diphones), `awb`, `rms`, `slt` (clustergen).

Shapes: T samples of one utterance.
"""

import ctypes
import ctypes.util
import functools
from pathlib import Path

import numpy as np

from m27.codec.media import resample
from m27.data.registry import Package, fetch, pinned
from m27.data.sources.base import SourceError
from m27.data.sources.clips import RATE

VOICES = ("awb", "kal16", "rms", "slt")
LICENCE = "CMU flite licence (BSD-like)"
_SOUND_LIBRARY = Package("debian", "libasound2", "1.2.8-1+b1")


class _Wave(ctypes.Structure):
    """`cst_wave` of flite's `cst_wave.h`."""

    _fields_ = (
        ("type", ctypes.c_char_p),
        ("sample_rate", ctypes.c_int),
        ("num_samples", ctypes.c_int),
        ("num_channels", ctypes.c_int),
        ("samples", ctypes.POINTER(ctypes.c_short)),
    )


def _load(folder: Path, name: str) -> ctypes.CDLL:
    """Load one shared library of an unpacked package so that the next ones find its symbols."""
    found = sorted(folder.rglob(name))
    if not found:
        raise SourceError(f"{folder}: no {name}")
    try:
        return ctypes.CDLL(str(found[0].resolve()), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise SourceError(f"{found[0]}: cannot be loaded ({error})") from None


@functools.cache
def _library() -> ctypes.CDLL:
    """Flite with its English front end, loaded in the order in which the parts need each other."""
    folder = fetch(pinned("libflite1"))
    if ctypes.util.find_library("asound") is None:
        _load(fetch(_SOUND_LIBRARY), "libasound.so.2")
    flite = _load(folder, "libflite.so.1")
    for part in ("usenglish", "cmulex"):
        _load(folder, f"libflite_{part}.so.1")
    flite.flite_init()
    flite.flite_text_to_wave.restype = ctypes.POINTER(_Wave)
    flite.flite_text_to_wave.argtypes = (ctypes.c_char_p, ctypes.c_void_p)
    flite.delete_wave.argtypes = (ctypes.POINTER(_Wave),)
    return flite


@functools.cache
def _voice(name: str) -> int:
    """Address of one voice; `SourceError` for a name that is not in `VOICES`."""
    if name not in VOICES:
        raise SourceError(f"flite has no voice {name!r}: choose from {', '.join(VOICES)}")
    _library()
    part = _load(fetch(pinned("libflite1")), f"libflite_cmu_us_{name}.so.1")
    register = getattr(part, f"register_cmu_us_{name}")
    register.restype = ctypes.c_void_p
    return int(register(None))


def speak(text: str, voice: str) -> np.ndarray:
    """Speech of `text` as float32 [T] at 16 kHz. `SourceError` for an unknown voice or a text that
    makes no sound.
    """
    address = _voice(voice)
    flite = _library()
    wave = flite.flite_text_to_wave(text.encode(), address)
    if not wave or wave.contents.num_samples <= 0:
        raise SourceError(f"flite made no sound of {text!r}")
    samples = np.ctypeslib.as_array(wave.contents.samples, shape=(wave.contents.num_samples,))
    out = samples.astype(np.float32) / np.float32(32768)
    rate = int(wave.contents.sample_rate)
    flite.delete_wave(wave)
    return resample(out, rate, RATE)
