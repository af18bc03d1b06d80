"""A whole model in miniature, for tests of the engine and of the command line.

A byte-level tokenizer, 16 image and 8 audio codes, a decoder of random weights, and stand-ins for
the codecs whose codes are plain to see: a picture's code is its brightness, a sound's its level.
"""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from m27.infer.engine import Engine
from m27.infer.naive import NaiveEngine
from m27.infer.scheduler import Limits
from m27.infer.torch_runner import TorchRunner
from m27.language.bytelevel import byte_characters
from m27.language.processor import Processor
from m27.language.vocabulary import BASE_CONTROL, Vocabulary, build_tokenizer, save_tokenizer
from m27.model.checkpoint import save_packed
from m27.model.code_map import CodeMap
from m27.model.config import SIZES, Config
from m27.model.decoder import Decoder

IMAGE_LEVELS, AUDIO_LEVELS = (4, 4), (4, 2)
HOP = 400
TOKENIZER, VOCABULARY = build_tokenizer(
    [*BASE_CONTROL, *byte_characters()], [], image_size=16, audio_size=8
)
CONFIG: Config = replace(
    SIZES["tiny"], vocab_size=VOCABULARY.size, n_layers=1, dim=32, head_dim=8, ffn_dim=48,
    bos_id=1, eos_id=2, max_len=1024,
)  # fmt: skip


class TinyImageCodec:
    """A code is the mean brightness of 16 x 16 pixels, in sixteen steps."""

    stride, levels, codebook_size, revision = 16, IMAGE_LEVELS, 16, "0123456789ab"
    codes_revision = "0123456789ab"

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu") -> "TinyImageCodec":
        return cls()

    def encode(self, pixels_B3HW: Tensor) -> Tensor:
        mean = torch.nn.functional.avg_pool2d(pixels_B3HW.mean(1, keepdim=True), 16)[:, 0]
        return (mean * 15).round().long()

    def decode(self, codes_Bhw: Tensor) -> Tensor:
        grey = (codes_Bhw.float() / 15)[:, None].expand(-1, 3, -1, -1)
        return grey.repeat_interleave(16, 2).repeat_interleave(16, 3)


class TinyAudioCodec:
    """A code is the mean of 400 samples, in eight steps; its stream holds nothing back."""

    sample_rate, hop, levels, codebook_size, revision = 16_000, HOP, AUDIO_LEVELS, 8, "ba9876543210"
    codes_revision = "ba9876543210"

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu") -> "TinyAudioCodec":
        return cls()

    def encode(self, wave_BT: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(wave_BT, (0, -wave_BT.shape[1] % HOP))
        mean = padded.reshape(len(wave_BT), -1, HOP).mean(2)
        return ((mean + 1) * 3.5).round().long()

    def decode(self, codes_BN: Tensor) -> Tensor:
        return (codes_BN.float() / 3.5 - 1).repeat_interleave(HOP, 1)

    def stream(self) -> "TinyAudioCodec":
        return self

    def push(self, codes_N: Tensor) -> npt.NDArray[np.float32]:
        return self.decode(codes_N[None])[0].numpy()

    def flush(self) -> npt.NDArray[np.float32]:
        return np.zeros(0, np.float32)


def processor() -> Processor:
    """The tiny processor with the tiny codecs."""
    return Processor(TOKENIZER, VOCABULARY, TinyImageCodec(), TinyAudioCodec())


def decoder(seed: int = 0) -> Decoder:
    """A decoder with random weights, wide enough that every token has its say."""
    torch.manual_seed(seed)
    model = Decoder(CONFIG).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def engine(blocks: int = 2000, seed: int = 0, **limits: Any) -> Engine:
    """The tiny model behind the torch runner, with a cache of `blocks` and the given limits."""
    return Engine(TorchRunner(decoder(seed), blocks), processor(), Limits(**limits))


def naive(seed: int = 0) -> NaiveEngine:
    """The oracle over the same model."""
    return NaiveEngine(decoder(seed), processor())


def write_model(folder: Path, seed: int = 0) -> Vocabulary:
    """The tiny model in the shipped layout; codec files are empty (tests put tiny codecs in)."""
    state = decoder(seed).state_dict()
    rows = state.pop("model.embed_tokens.weight")
    text, controls = VOCABULARY.text_size, VOCABULARY.image.start
    trained = {"control.weight": rows[text:controls]}
    for medium, levels in (("image", IMAGE_LEVELS), ("audio", AUDIO_LEVELS)):
        for name, tensor in CodeMap(levels, CONFIG.dim, hidden=8).state_dict().items():
            trained[f"{medium}_map.{name}"] = tensor
    save_packed(
        folder,
        config=replace(CONFIG, vocab_size=VOCABULARY.audio.stop),
        trained=trained,
        alpha=16.0,
        rank=8,
        image_levels=IMAGE_LEVELS,
        audio_levels=AUDIO_LEVELS,
        base={**state, "model.embed_tokens.weight": rows[:text]},
    )
    save_tokenizer(TOKENIZER, VOCABULARY, folder)
    for name in ("image_codec.safetensors", "audio_codec.safetensors"):
        (folder / name).touch()
    (folder / "README.md").write_text("# tiny\n")
    return VOCABULARY


def random_messages(rng: random.Random) -> list[dict[str, Any]]:
    """Up to three turns of random text, pictures and sounds, ending with the user's."""
    messages = []
    for turn in range(rng.choice((1, 1, 1, 3))):
        parts: list[dict[str, Any]] = []
        for _ in range(rng.randint(1, 3)):
            kind = rng.choice(("text", "image", "audio"))
            if kind == "text":
                text = "".join(
                    chr(rng.choice((65, 97, 233, 0x4E2D, 0x1F600, 10))) for _ in range(6)
                )
                parts.append({"type": "text", "text": text + rng.choice(("", "<|image|>"))})
            elif kind == "image":
                codes = np.array([[rng.randrange(16) for _ in range(3)] for _ in range(2)])
                parts.append({"type": "image", "codes": codes})
            else:
                parts.append({"type": "audio", "codes": [rng.randrange(8) for _ in range(5)]})
        messages.append({"role": ("user", "assistant")[turn % 2], "content": parts})
    return messages


def write_words(folder: Path) -> Path:
    """`write_model` without codecs: a model that answers in words alone; `folder` comes back."""
    write_model(folder)
    for name in ("image_codec.safetensors", "audio_codec.safetensors"):
        (folder / name).unlink()
    return folder
