"""A tiny tokenizer, vocabulary and codecs, and the real tokenizer where it is at hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from m27.language.bytelevel import byte_characters
from m27.language.processor import Processor
from m27.language.vocabulary import BASE_CONTROL, Vocabulary, build_tokenizer

ROOT = Path(__file__).parents[2]
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "Ċ Ċ", "1 2"]
# SmolLM2 lacks these bytes as tokens; the tiny one lacks a few of them too.
MISSING = (0x04, 0x16, 0xC0, 0xF1, 0xFF)


class TinyImageCodec:
    """16 codes: a code is the mean brightness of its 16 x 16 pixels in sixteen steps."""

    levels = (4, 4)

    def encode(self, pixels_B3HW: Tensor) -> Tensor:
        mean = torch.nn.functional.avg_pool2d(pixels_B3HW.mean(1, keepdim=True), 16)[:, 0]
        return (mean * 15).round().long()

    def decode(self, codes_Bhw: Tensor) -> Tensor:
        grey = (codes_Bhw.float() / 15)[:, None].expand(-1, 3, -1, -1)
        return grey.repeat_interleave(16, 2).repeat_interleave(16, 3)


class TinyAudioStream:
    """Holds one code back, as a codec with overlap does."""

    def __init__(self, codec: TinyAudioCodec) -> None:
        self.codec = codec
        self.held: list[int] = []

    def push(self, codes_N: Tensor) -> npt.NDArray[np.float32]:
        self.held += codes_N.tolist()
        ready, self.held = self.held[:-1], self.held[-1:]
        return self.codec.decode(torch.tensor([ready], dtype=torch.long))[0].numpy()

    def flush(self) -> npt.NDArray[np.float32]:
        ready, self.held = self.held, []
        return self.codec.decode(torch.tensor([ready], dtype=torch.long))[0].numpy()


class TinyAudioCodec:
    """8 codes of 4 samples: a code is the rounded mean of its samples."""

    levels = (4, 2)

    def encode(self, wave_BT: Tensor) -> Tensor:
        frames = math.ceil(wave_BT.shape[1] / 4)
        padded = torch.nn.functional.pad(wave_BT, (0, frames * 4 - wave_BT.shape[1]))
        mean = padded.reshape(len(wave_BT), frames, 4).mean(2)
        return ((mean + 1) * 3.5).round().long()

    def decode(self, codes_BN: Tensor) -> Tensor:
        return (codes_BN.float() / 3.5 - 1).repeat_interleave(4, 1)

    def stream(self) -> TinyAudioStream:
        return TinyAudioStream(self)


@pytest.fixture(scope="session")
def tiny() -> tuple[Tokenizer, Vocabulary]:
    """A byte-level tokenizer of a few merges with 16 image and 8 audio codes."""
    letters = [c for c, byte in byte_characters().items() if byte not in MISSING]
    tokens = [*BASE_CONTROL, *letters, *(merge.replace(" ", "") for merge in MERGES)]
    return build_tokenizer(tokens, MERGES, image_size=16, audio_size=8)


@pytest.fixture(scope="session")
def vocabulary(tiny: tuple[Tokenizer, Vocabulary]) -> Vocabulary:
    """The tiny vocabulary."""
    return tiny[1]


@pytest.fixture
def processor(tiny: tuple[Tokenizer, Vocabulary]) -> Processor:
    """A processor over the tiny vocabulary with the tiny codecs."""
    return Processor(*tiny, TinyImageCodec(), TinyAudioCodec())


@pytest.fixture
def codes_only(tiny: tuple[Tokenizer, Vocabulary]) -> Processor:
    """A processor without codecs."""
    return Processor(*tiny)


@pytest.fixture(scope="session")
def real_folder() -> Path:
    """The shipped tokenizer's folder."""
    folder = ROOT / "weights" / "m27-nano"
    assert (folder / "tokenizer.json").is_file()
    return folder


@pytest.fixture(scope="session")
def real(real_folder: Path) -> Processor:
    """A processor over the shipped tokenizer."""
    return Processor.load(real_folder)
