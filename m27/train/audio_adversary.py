"""Discriminators of sound: short-time spectra at several resolutions and samples at several periods,
with hinge and feature-matching losses. Only training needs them.

Sources: Défossez et al., "High Fidelity Neural Audio Compression" (2022) for the spectra, Kong et
al., "HiFi-GAN" (2020) for the periods, Siuzdak, "Vocos" (2023) for both with the hinge.

Shape suffixes: B batch, T samples, C channels, K spectrum bins, F frames, P period.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from m27.codec.mel import hann

Maps = list[list[Tensor]]  # of each discriminator, the maps of its layers; the last is the score


class SpectrumDiscriminator(nn.Module):
    """Judges the complex spectrum, its magnitudes brought to the power 0.3."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.size = size
        channels = (2, width, width, width, width)
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, (3, 7), (1, 2), (dilation, 3), (dilation, 1)))
            for a, b, dilation in zip(channels, channels[1:], (1, 1, 2, 4), strict=False)
        )
        self.score = weight_norm(nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, wave_BT: Tensor) -> list[Tensor]:
        """Waves → maps of every layer, the score last."""
        window = hann(self.size).to(wave_BT)
        spectra = torch.stft(
            wave_BT, self.size, self.size // 4, window=window, center=False, return_complex=True
        )
        parts = torch.view_as_real(spectra).permute(0, 3, 2, 1) * (4 / self.size)  # [B, 2, F, K]
        power = parts.square().sum(1, keepdim=True) + 1e-7
        return judged(parts * power.pow(-0.35), self.layers, self.score)


class PeriodDiscriminator(nn.Module):
    """Judges samples a period apart, as an image of that many columns."""

    def __init__(self, period: int, width: int) -> None:
        super().__init__()
        self.period = period
        channels = (1, width, 2 * width, 4 * width, 4 * width)
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, (5, 1), (3, 1), (2, 0)))
            for a, b in itertools.pairwise(channels)
        )
        self.score = weight_norm(nn.Conv2d(channels[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, wave_BT: Tensor) -> list[Tensor]:
        """Waves → maps of every layer, the score last."""
        whole = F.pad(wave_BT, (0, -wave_BT.shape[1] % self.period))
        image = whole.unflatten(1, (-1, self.period))[:, None]
        return judged(image, self.layers, self.score)


def judged(x: Tensor, layers: nn.ModuleList, score: nn.Module) -> list[Tensor]:
    """Run an image through layers and the score; all maps."""
    maps = []
    for layer in layers:
        x = F.leaky_relu(layer(x), 0.1)
        maps.append(x)
    return [*maps, score(x)]


class Adversary(nn.Module):
    """All discriminators: one for each of ``sizes`` and of ``periods``."""

    def __init__(self, sizes: Sequence[int], periods: Sequence[int], width: int) -> None:
        super().__init__()
        self.judges = nn.ModuleList(
            [SpectrumDiscriminator(size, width) for size in sizes]
            + [PeriodDiscriminator(period, width) for period in periods]
        )

    def forward(self, wave_BT: Tensor) -> Maps:
        """Waves → maps of every discriminator."""
        return [judge(wave_BT) for judge in self.judges]


def judge_loss(real: Maps, made: Maps) -> Tensor:
    """Hinge loss of the discriminators: real above 1, made below -1."""
    terms = [
        F.relu(1 - r[-1]).mean() + F.relu(1 + m[-1]).mean() for r, m in zip(real, made, strict=True)
    ]
    return torch.stack(terms).mean()


def fool_loss(made: Maps) -> Tensor:
    """Hinge loss of the maker: scores are to rise."""
    return torch.stack([F.relu(1 - m[-1]).mean() for m in made]).mean()


def matching_loss(real: Maps, made: Maps) -> Tensor:
    """Mean difference of the layers' maps, each in units of the real ones' mean size."""
    terms = [
        (a.detach() - b).abs().mean() / a.detach().abs().mean().clamp_min(1e-3)
        for r, m in zip(real, made, strict=True)
        for a, b in zip(r[:-1], m[:-1], strict=True)
    ]
    return torch.stack(terms).mean()
