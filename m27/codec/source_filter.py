"""Source and filter: pitch and two spectral envelopes a frame → a wave. Fixed signal processing,
no weights.

A band-limited pulse train at the pitch and a fixed noise are each shaped by an envelope in the
short-time spectrum and added. The network so never has to learn phase, which is what costs
vocoders their long training. Source: the source-filter model of speech; Engel et al., "DDSP"
(2020), for training through it.

Shape suffixes: B batch, T samples, F frames (80 a second), K spectrum bins, E envelope bands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .mel import FRAME, RATE, hann, hold, mel_filters

N_FFT = 800
BINS = N_FFT // 2 + 1
REST = 120.0  # Hz of the pulse train before the first voiced frame
CONTEXT = 4  # frames on either side that a frame's samples depend on
_BEFORE = N_FFT // 2 - FRAME // 2  # samples of a window before its frame begins
_NOISE = 1 << 16


@dataclass(frozen=True)
class Frames:
    """What the synthesis needs of F frames: ``pitch_BF`` in Hz at each frame's end, ``start_B``
    the pitch before the first, ``phase_B`` (float64, turns) and sample number ``at`` where the
    first frame begins, and natural-log envelopes ``tone_BFE``, ``noise_BFE``."""

    pitch_BF: Tensor
    start_B: Tensor
    phase_B: Tensor
    at: int
    tone_BFE: Tensor
    noise_BFE: Tensor


@lru_cache(maxsize=4)
@torch.inference_mode(False)  # whoever asks first may not want gradients
def noise_table() -> Tensor:
    """The fixed unit noise ``[65536]`` that every decode reads, by absolute sample number."""
    return torch.randn(_NOISE, generator=torch.Generator().manual_seed(27))


@lru_cache(maxsize=4)
@torch.inference_mode(False)  # whoever asks first may not want gradients
def _spread(bands: int) -> Tensor:
    """Linear interpolation ``[bands, K]`` from mel-spaced envelope bands to spectrum bins."""
    filters = mel_filters(bands, 16 * N_FFT)  # fine enough that no triangle is empty
    centres = filters.argmax(-1).double() / 16
    bins = torch.arange(BINS, dtype=torch.float64)
    upper = torch.searchsorted(centres, bins).clamp(1, bands - 1)
    low, high = centres[upper - 1], centres[upper]
    share = ((bins - low) / (high - low)).clamp(0, 1)
    table = torch.zeros(bands, BINS, dtype=torch.float64)
    table[upper - 1, torch.arange(BINS)] += 1 - share
    table[upper, torch.arange(BINS)] += share
    return table.float()


def advance(pitch_BF: Tensor, start_B: Tensor, phase_B: Tensor) -> Tensor:
    """Phase in turns (float64, 0..1) where each frame begins, ``[B, F + 1]``; the last is where
    they end."""
    ends = torch.cat([start_B[:, None], pitch_BF], 1).double()
    turns = (ends[:, :-1] + ends[:, 1:]) * (0.5 * FRAME / RATE)
    return torch.cat([phase_B[:, None], phase_B[:, None] + turns.cumsum(1)], 1) % 1.0


def pulses(pitch_BF: Tensor, start_B: Tensor, phase_B: Tensor) -> Tensor:
    """Pulse train ``[B, F * 200]`` of unit power with all harmonics below 7.9 kHz, pitch gliding
    linearly."""
    begins = advance(pitch_BF, start_B, phase_B)[:, :-1, None]
    first = torch.cat([start_B[:, None], pitch_BF[:, :-1]], 1)[..., None].double()
    slope = (pitch_BF[..., None].double() - first) / FRAME
    step = torch.arange(1, FRAME + 1, dtype=torch.float64, device=pitch_BF.device)
    turns = begins + (first * step + slope * step.square() / 2) / RATE
    # Centred on 0, where single precision is finest: the kernel is a quotient of small numbers there.
    angle = ((turns - turns.round()) * (2 * math.pi)).float()
    count = (7900 / (first + slope * FRAME / 2)).floor().clamp_min(1).float()
    half = torch.sin(angle / 2)
    near = half.abs() < 1e-4
    kernel = torch.sin((count + 0.5) * angle) / (2 * torch.where(near, 1.0, half)) - 0.5
    return (torch.where(near, count, kernel) * (2 / count).sqrt()).flatten(1)


def hold_from(start_B: Tensor, pitch_BF: Tensor, voiced_BF: Tensor) -> Tensor:
    """Unvoiced frames keep the pitch of the last voiced frame, those before any have
    ``start_B``; ``[B, F]``."""
    known = torch.cat([start_B[:, None], pitch_BF], 1)
    return hold(known, F.pad(voiced_BF, (1, 0), value=True))[:, 1:]


def synthesise(frames: Frames) -> Tensor:
    """Frames → wave ``[B, F * 200]``. Where frames were cut from a longer signal, the outer 4
    are not exact."""
    tone = pulses(frames.pitch_BF, frames.start_B, frames.phase_B)
    samples = tone.shape[1]
    order = torch.arange(frames.at, frames.at + samples) % _NOISE
    noise = noise_table()[order].to(tone).expand_as(tone)
    both = torch.cat([tone, noise])
    outer = 2 * FRAME + _BEFORE
    window = hann(N_FFT).to(tone)
    padded = F.pad(both, (outer, outer))
    spectra = torch.stft(padded, N_FFT, FRAME, window=window, center=False, return_complex=True)
    n = tone.shape[0]
    shape = _spread(frames.tone_BFE.shape[-1]).to(tone)
    envelopes = torch.stack([frames.tone_BFE, frames.noise_BFE]).float() @ shape
    envelopes = F.pad(envelopes.flatten(0, 1).transpose(1, 2), (2, 2), mode="replicate").exp()
    shaped = spectra * envelopes
    mixed = shaped[:n] + shaped[n:]
    pieces = torch.fft.irfft(mixed, N_FFT, dim=1) * (window[:, None] / 1.5)
    total = padded.shape[1]
    wave = F.fold(pieces, (1, total), (1, N_FFT), stride=(1, FRAME)).flatten(1)
    return wave[:, outer : outer + samples]
