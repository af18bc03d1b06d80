"""What Whisper hears in a decoded sound, as a loss: its states are to be those of the given sound.

Spectra that are equally near may say another vowel; the states of a recogniser tell them apart. Source: feature
losses of Johnson et al., "Perceptual losses" (2016), with a recogniser in place of an image classifier.

Shape suffixes: B batch, T samples, F frames, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from m27.codec import packing
from m27.codec.audio import AudioConfig
from m27.codec.mel import whisper_log_mel
from m27.codec.whisper_encoder import WhisperEncoder

_PAD = 8_000  # samples of silence that Whisper hears after a sound, as in `codec.audio`
TEACHER = "audio_teacher.safetensors"


def save_teacher(teacher: WhisperEncoder, path: Path) -> None:
    """Write Whisper's encoder as codecs are written, 8 bits a weight of matrices."""
    packing.write(path, packing.pack(teacher.state_dict()), {})


def load_teacher(path: Path, config: AudioConfig) -> WhisperEncoder:
    """Read what `save_teacher` wrote, frozen. Raises CodecError naming a missing or broken file."""
    tensors, _ = packing.read(path)
    state = packing.unpack(tensors)
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    frames = state["positions"].shape[0]
    teacher = WhisperEncoder(depth, config.whisper_dim, config.whisper_heads, frames, True)
    teacher.load_state_dict(state)
    return teacher.eval().requires_grad_(False)


def listen(
    teacher: WhisperEncoder, wave_BT: Tensor, taps: Sequence[int], bf16: bool
) -> list[Tensor]:
    """Waves → the teacher's states after the blocks of ``taps`` and its last, float32 ``[B, F, D]``."""
    mel = whisper_log_mel(F.pad(wave_BT.float(), (0, _PAD)))
    with torch.autocast(mel.device.type, torch.bfloat16, enabled=bf16):
        states = teacher(mel, taps=taps)
    frames = wave_BT.shape[1] // 320
    return [state[:, : frames + 2].float() for state in states]


def hearing_loss(
    teacher: WhisperEncoder, made_BT: Tensor, given_BT: Tensor, taps: Sequence[int], bf16: bool
) -> Tensor:
    """How differently the teacher hears what was made: mean difference of its states, each dimension in
    units of its own deviation over the batch; a scalar."""
    with torch.no_grad():
        wanted = listen(teacher, given_BT, taps, bf16)
    terms = []
    for a, b in zip(listen(teacher, made_BT, taps, bf16), wanted, strict=True):
        deviation = b.flatten(0, 1).std(0).clamp_min(1e-3)
        terms.append(((a - b) / deviation).abs().mean())
    return torch.stack(terms).mean()
