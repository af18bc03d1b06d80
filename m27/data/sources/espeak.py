"""eSpeak NG through ctypes: text → 16 kHz speech in many voices, and text → IPA phonemes. No root,
nothing installed.

The shared library and its voice data come from the PyPI package `espeakng-loader` 0.2.4 (GPL-3;
fetched and used to make data, never shipped). One process holds one synthesiser, as the library has
global state.

Shapes: T samples of one utterance.
"""

import ctypes
import functools
from dataclasses import dataclass

import numpy as np

from m27.codec.media import resample
from m27.data.registry import Package, fetch
from m27.data.sources.base import SourceError
from m27.data.sources.clips import RATE

PACKAGE = Package("pypi", "espeakng-loader", "0.2.4")
LICENCE = "GPL-3.0 (the program; its output is free)"

_SYNCHRONOUS, _UTF8, _CHARACTERS, _IPA = 2, 1, 1, 2
_DONE_OK, _RATE, _PITCH, _PITCH_RANGE = 0, 1, 3, 4
_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


@dataclass(frozen=True)
class Voice:
    """A language or accent, a variant (timbre), words a minute (80..450), pitch and its range
    (0..100).
    """

    language: str
    variant: str
    rate: int = 165
    pitch: int = 50
    spread: int = 50

    @property
    def name(self) -> str:
        """The name eSpeak knows the voice by, for example `en-us+f2`."""
        return f"{self.language}+{self.variant}" if self.variant else self.language


class _Library:
    """The loaded library, its sample rate, and the buffer that its callback fills."""

    def __init__(self) -> None:
        folder = fetch(PACKAGE) / "espeakng_loader"
        names = ("libespeak-ng.so", "libespeak-ng.dylib", "espeak-ng.dll")
        found = [folder / name for name in names if (folder / name).is_file()]
        if not found:
            raise SourceError(f"{folder}: no eSpeak NG library for this system")
        self.calls = ctypes.CDLL(str(found[0]))
        data = str(folder / "espeak-ng-data").encode()
        self.rate = int(self.calls.espeak_Initialize(_SYNCHRONOUS, 0, data, 1 << 15))
        if self.rate <= 0:
            raise SourceError(
                f"{folder}: eSpeak NG did not start (its voice data may be incomplete)"
            )
        self.pieces: list[np.ndarray] = []
        self._callback = _CALLBACK(self._receive)
        self.calls.espeak_SetSynthCallback(self._callback)
        self.calls.espeak_TextToPhonemes.restype = ctypes.c_char_p

    def _receive(self, wave: "ctypes._Pointer[ctypes.c_short]", count: int, _events: int) -> int:
        if wave and count > 0:
            self.pieces.append(
                np.ctypeslib.as_array(wave, shape=(count,)).astype(np.float32) / 32768
            )
        return _DONE_OK

    def voice(self, name: str) -> None:
        """Choose a voice; `SourceError` if there is none of that name."""
        if self.calls.espeak_SetVoiceByName(name.encode()) != 0:
            raise SourceError(f"eSpeak NG has no voice {name!r}")


@functools.cache
def _library() -> _Library:
    """The one library of this process, started at first use."""
    return _Library()


def speak(text: str, voice: Voice) -> np.ndarray:
    """Speech of `text` as float32 [T] at 16 kHz. `SourceError` for an unknown voice or a text that
    makes no sound.
    """
    library = _library()
    library.voice(voice.name)
    for parameter, value in (
        (_RATE, voice.rate),
        (_PITCH, voice.pitch),
        (_PITCH_RANGE, voice.spread),
    ):
        library.calls.espeak_SetParameter(parameter, value, 0)
    library.pieces.clear()
    raw = text.encode()
    status = library.calls.espeak_Synth(raw, len(raw) + 1, 0, _CHARACTERS, 0, _UTF8, None, None)
    library.calls.espeak_Synchronize()
    if status != 0 or not library.pieces:
        raise SourceError(f"eSpeak NG made no sound of {text!r}")
    return resample(np.concatenate(library.pieces), library.rate, RATE)


def phonemes(text: str, language: str = "en-us") -> str:
    """IPA of `text` with stress marks, clauses joined by spaces."""
    library = _library()
    library.voice(language)
    buffer = ctypes.create_string_buffer(text.encode())
    at = ctypes.c_void_p(ctypes.addressof(buffer))
    clauses = []
    while at.value:
        piece = library.calls.espeak_TextToPhonemes(ctypes.byref(at), _UTF8, _IPA)
        if piece:
            clauses.append(piece.decode().strip())
    return " ".join(clauses)
