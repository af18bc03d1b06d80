"""Sound → features: mel filters, Whisper's log-mel, the acoustic log-mel and the pitch salience.

Everything here is fixed signal processing on 16 kHz mono; nothing is learned, and codes are not
known.

Shape suffixes: B batch, T samples, F frames, M mel bands, L pitch bins, K spectrum bins.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

RATE = 16_000
FRAME = 200  # samples between acoustic frames: 80 a second, two a code
ACOUSTIC_BANDS = 96
PITCH_BINS = 128
PITCH_LOW = 50.0  # Hz of pitch bin 0
PITCH_STEPS = 24  # pitch bins an octave
_PITCH_WINDOW = 1024
_PITCH_TOP = 769  # power spectrum bins used: up to 6 kHz


def _hz_to_mel(hz: Tensor) -> Tensor:
    linear = hz * 3 / 200
    return torch.where(
        hz < 1000, linear, 15 + 27 * torch.log(hz.clamp_min(1e-5) / 1000) / math.log(6.4)
    )


def _mel_to_hz(mel: Tensor) -> Tensor:
    return torch.where(mel < 15, mel * 200 / 3, 1000 * torch.exp((mel - 15) * math.log(6.4) / 27))


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # whoever asks first may not want gradients
def mel_filters(n_mels: int, n_fft: int, rate: int = RATE) -> Tensor:
    """Triangular filters ``[n_mels, n_fft // 2 + 1]`` of equal area, 0 Hz to ``rate / 2``.

    Slaney's mel scale and normalisation, as Whisper has them. The result is shared: do not write
    to it.
    """
    bins = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * rate / n_fft
    top = _hz_to_mel(torch.tensor(rate / 2, dtype=torch.float64))
    edges = _mel_to_hz(torch.linspace(0, float(top), n_mels + 2, dtype=torch.float64))
    rise = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    triangles = torch.minimum(rise, fall).clamp_min(0)
    return (triangles * 2 / (edges[2:] - edges[:-2])[:, None]).float()


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # whoever asks first may not want gradients
def hann(size: int) -> Tensor:
    """Periodic Hann window ``[size]``. The result is shared: do not write to it."""
    return torch.hann_window(size)


def whisper_log_mel(wave_BT: Tensor) -> Tensor:
    """Waves (float, -1..1, over 200 samples) → Whisper's log-mel ``[B, 80, T // 160]``.

    Source: Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision" (2022).
    """
    window = hann(400).to(wave_BT.device)
    spectrum = torch.stft(wave_BT, 400, 160, window=window, return_complex=True)
    power = spectrum[..., :-1].abs().square()
    mel = mel_filters(80, 400).to(wave_BT.device) @ power
    log = mel.clamp_min(1e-10).log10()
    log = torch.maximum(log, log.amax((1, 2), keepdim=True) - 8)
    return (log + 4) / 4


def acoustic_log_mel(wave_BT: Tensor) -> Tensor:
    """Waves (T a multiple of 200) → log-mel ``[B, T // 200, 96]``, about -1..1, loudness kept.

    Frame j is centred on sample 200 j + 100; its window of 1024 samples resolves low harmonics.
    """
    padded = F.pad(wave_BT, (412, 412))
    spectrum = torch.stft(
        padded, 1024, FRAME, window=hann(1024).to(wave_BT.device), center=False, return_complex=True
    )
    mel = mel_filters(ACOUSTIC_BANDS, 1024).to(wave_BT.device) @ spectrum.abs().square()
    return (mel.clamp_min(1e-7).log10() / 3 + 1).transpose(1, 2) * 0.75


@lru_cache(maxsize=1)
@torch.inference_mode(False)  # whoever asks first may not want gradients
def _lag_table() -> Tensor:
    """Power spectrum → normalised autocorrelation ``[769, 129]``: one column a pitch bin, the
    last for lag 0.

    The autocorrelation at a (fractional) period is a cosine sum over the power spectrum, up to 6
    kHz (above, it only blurs the peaks); each is divided by the window's own.
    """
    size = 2 * _PITCH_WINDOW
    bins = torch.arange(_PITCH_TOP, dtype=torch.float64)
    lags = torch.cat([RATE / pitch_hz(torch.arange(PITCH_BINS)).double(), torch.zeros(1)])
    cosines = torch.cos(2 * math.pi / size * bins[:, None] * lags)
    cosines[1:] *= 2
    own = torch.fft.rfft(hann(_PITCH_WINDOW).double(), size).abs().square()
    whole = torch.cos(2 * math.pi / size * torch.arange(len(own)).double()[:, None] * lags)
    whole[1:-1] *= 2
    return (cosines / (own @ whole) * own[:1]).float() / size


def pitch_hz(bins: Tensor) -> Tensor:
    """Pitch bins (float or int, any shape) → frequency in Hz."""
    return PITCH_LOW * torch.exp2(bins.float() / PITCH_STEPS)


def pitch_salience(wave_BT: Tensor) -> Tensor:
    """Waves (T a multiple of 200) → periodicity ``[B, T // 200, 128]`` in about 0..1, a pitch a bin.

    Autocorrelation of a Hann window divided by the window's own, so that a steady tone is near 1
    at its period. Frame j is centred on sample 200 (j + 1), where block j of the synthesis ends.
    Source: Boersma, "Accurate short-term analysis of the fundamental frequency" (1993).
    """
    table = _lag_table().to(wave_BT.device)
    half = _PITCH_WINDOW // 2
    frames = F.pad(wave_BT, (half - FRAME, half)).unfold(-1, _PITCH_WINDOW, FRAME)
    frames = (frames - frames.mean(-1, keepdim=True)) * hann(_PITCH_WINDOW).to(wave_BT.device)
    power = torch.fft.rfft(frames, 2 * _PITCH_WINDOW)[..., :_PITCH_TOP].abs().square()
    auto = power @ table
    return (auto[..., :-1] / (auto[..., -1:] + 1e-3)).clamp_min(0)


def pitch_track(salience_BFL: Tensor, threshold: float = 0.5) -> tuple[Tensor, Tensor]:
    """Salience → pitch in bins ``[B, F]`` (float) and voiced ``[B, F]`` (bool).

    The higher of two nearly equal peaks wins (the period's multiples are peaks too). An unvoiced
    frame keeps the pitch before it; frames before the first voiced one have its pitch.
    """
    bins = torch.arange(PITCH_BINS, device=salience_BFL.device)
    score = salience_BFL + bins * (0.06 / PITCH_STEPS)
    inner = salience_BFL[..., 1:-1]
    peaks = (inner >= salience_BFL[..., :-2]) & (inner >= salience_BFL[..., 2:])
    best = torch.where(peaks, score[..., 1:-1], -1.0).argmax(-1) + 1
    left, peak, right = (
        salience_BFL.gather(-1, (best + i).unsqueeze(-1)).squeeze(-1) for i in (-1, 0, 1)
    )
    curve = left - 2 * peak + right
    shift = torch.where(curve < -1e-4, 0.5 * (left - right) / curve.clamp_max(-1e-4), curve * 0)
    pitch = best + shift.clamp(-0.5, 0.5)
    voiced = (peak > threshold) & peaks.any(-1)
    return hold(pitch, voiced), voiced


def hold(pitch_BF: Tensor, voiced_BF: Tensor) -> Tensor:
    """Give each unvoiced frame the pitch of the last voiced frame before it, else of the first one."""
    frames = pitch_BF.shape[1]
    order = torch.arange(frames, device=pitch_BF.device).expand_as(pitch_BF)
    last = torch.where(voiced_BF, order, -1).cummax(1).values
    first = torch.where(voiced_BF, order, frames).amin(1, keepdim=True).clamp_max(frames - 1)
    return pitch_BF.gather(1, torch.where(last >= 0, last, first))
