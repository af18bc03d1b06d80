"""The second half of the vocoder: a network that corrects the source-filter wave in its short-time
spectrum.

It reads the decoder's states and that spectrum, and predicts a gain and a turn of phase for every
bin, which an inverse transform makes a wave. At first it changes nothing, bit for bit: what is
learned can only be better than pulses and noise behind two envelopes. Source: Siuzdak, "Vocos"
(2023), for the head; that it corrects a wave instead of making one is ours, for short trainings.

Shape suffixes: B batch, T samples, N codes, F frames (80 a second), K spectrum bins, D width.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .conv import ConvBlock
from .mel import FRAME, hann
from .source_filter import BINS, N_FFT

_BEFORE = N_FFT // 2 - FRAME // 2  # samples of a window before its frame begins
_REACH = 4  # frames of the wave on either side that a frame's samples depend on
_PAST = 6  # frames before that a block sees; none after, so that streaming waits no longer


class Refiner(nn.Module):
    """Source-filter wave and the decoder's states → a better wave.

    ``before`` and ``after`` are the frames on either side that a frame's samples depend on.
    """

    def __init__(self, states: int, dim: int, blocks: int) -> None:
        super().__init__()
        self.state_in = nn.Linear(states, 2 * dim)
        self.spectrum_in = nn.Linear(3 * BINS, dim)
        self.blocks = nn.ModuleList(ConvBlock(dim, _PAST, 0) for _ in range(blocks))
        self.norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, 2 * BINS)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.before, self.after = _REACH + 1 + _PAST * blocks, _REACH

    def states(self, h_BND: Tensor) -> Tensor:
        """The decoder's states of codes → what this network reads of them a frame, ``[B, 2N, D]``."""
        return cast(Tensor, self.state_in(h_BND)).unflatten(-1, (2, -1)).flatten(1, 2)

    def forward(self, wave_BT: Tensor, states_BFD: Tensor) -> Tensor:
        """Wave of F frames and their ``states`` → the corrected wave, not clipped."""
        window = hann(N_FFT).to(wave_BT)
        padded = F.pad(wave_BT, (_BEFORE, _BEFORE))
        spectra = torch.stft(padded, N_FFT, FRAME, window=window, center=False, return_complex=True)
        x = states_BFD + self.spectrum_in(features(spectra).to(states_BFD.dtype))
        for block in self.blocks:
            x = block(x)
        gain, turn = self.out(self.norm(x)).float().transpose(1, 2).chunk(2, 1)
        change = torch.polar(gain.clamp(-6, 3).exp(), turn) - 1
        pieces = torch.fft.irfft(spectra * change, N_FFT, dim=1) * (window[:, None] / 1.5)
        total = padded.shape[1]
        added = F.fold(pieces, (1, total), (1, N_FFT), stride=(1, FRAME)).flatten(1)
        return wave_BT + added[:, _BEFORE : _BEFORE + wave_BT.shape[1]]


def features(spectra_BKF: Tensor) -> Tensor:
    """Short-time spectra → ``[B, F, 3K]``: log-magnitude, and cosine and sine of how far each bin's
    phase went beyond a tone in the middle of the bin since the frame before."""
    size = (torch.view_as_real(spectra_BKF).square().sum(-1) + 1e-10).sqrt()
    log = ((size * (4 / N_FFT) + 1e-4).log() + 5) / 3
    before = F.pad(spectra_BKF, (1, 0))[..., :-1]
    quarter = torch.arange(BINS, device=size.device) % 4  # a frame is a quarter of the window
    turned = torch.polar(torch.ones_like(quarter, dtype=size.dtype), quarter * (-torch.pi / 2))
    advance = spectra_BKF * before.conj() * turned[:, None]
    weight = (size * F.pad(size, (1, 0))[..., :-1] + 1e-8).reciprocal()
    cosine, sine = (part * weight for part in (advance.real, advance.imag))
    return torch.cat([log, cosine, sine], 1).transpose(1, 2)
