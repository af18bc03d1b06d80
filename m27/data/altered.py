"""Pictures and sounds somewhat otherwise, in batches on any device: more examples of the same name for nothing.

What is drawn is drawn from the generator given, so the same seed gives the same copies. Sizes stay as they are,
since a document has room for as many codes as its medium had.

Shapes: B batch, H/W pixels, T samples.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from m27.codec.media import SAMPLE_RATE

TELEPHONE = (300.0, 3_400.0)  # Hz, what a line carries
POINTS = 6  # of an equaliser, between 80 Hz and 8 kHz
FRAME = 1_024  # samples of an equaliser's frame


def _uniform(generator: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def pictures(pixels_B3HW: Tensor, generator: torch.Generator, mirrored: bool = False) -> Tensor:
    """Pixels in 0..1, each nearer or farther, moved and a little lighter, darker or duller: the same shape.

    What comes into sight is the border's. With `mirrored` half of them are seen in a mirror.
    """
    b = len(pixels_B3HW)
    zoom = _uniform(generator, 0.88, 1.12, b)
    moved = _uniform(generator, -0.08, 0.08, b, 2)
    sign = torch.where(_uniform(generator, 0, 1, b) < 0.5, -1.0, 1.0) if mirrored else torch.ones(b)
    theta = torch.zeros(b, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = zoom * sign, zoom, moved
    gain = _uniform(generator, 0.85, 1.15, b, 1, 1, 1)
    grey = _uniform(generator, 0.0, 0.25, b, 1, 1, 1)
    theta, gain, grey = (x.to(pixels_B3HW.device) for x in (theta, gain, grey))
    grid = F.affine_grid(theta, list(pixels_B3HW.shape), align_corners=False)
    seen = F.grid_sample(pixels_B3HW, grid, padding_mode="border", align_corners=False)
    toned = seen + grey * (seen.mean(1, keepdim=True) - seen)
    # About the middle, so that white stays near white.
    return ((toned - 0.5) * gain + 0.5).clamp(0, 1)


def sounds(wave_BT: Tensor, generator: torch.Generator) -> Tensor:
    """Waves in -1..1, each through an equaliser of its own, at another level, with some noise: the same shape.

    A quarter of them are heard through a telephone.
    """
    b = len(wave_BT)
    decibels = _uniform(generator, -8.0, 8.0, b, POINTS)
    line = _uniform(generator, 0, 1, b) < 0.25
    level = 10 ** (_uniform(generator, -9.0, 3.0, b, 1) / 20)
    noise = torch.randn(wave_BT.shape, generator=generator)
    loud = 10 ** (_uniform(generator, -60.0, -30.0, b, 1) / 20)
    decibels, line, level, noise, loud = (
        x.to(wave_BT.device) for x in (decibels, line, level, noise, loud)
    )
    made = through(wave_BT, curve(decibels), line)
    power = wave_BT.square().mean(1, keepdim=True).sqrt()
    made = made * level + noise * power * loud
    peak = made.abs().amax(1, keepdim=True).clamp_min(1e-6)
    return made * torch.clamp(0.98 / peak, max=1.0)


def curve(decibels_BP: Tensor) -> Tensor:
    """Gains of an equaliser at the frequencies of a frame, from those at points a like interval apart:
    ``[B, FRAME / 2 + 1]``."""
    hertz = torch.fft.rfftfreq(FRAME, 1 / SAMPLE_RATE).clamp_min(80.0)
    last = decibels_BP.shape[1] - 1
    place = (torch.log(hertz / 80) / torch.log(torch.tensor(100.0)) * last).clamp(0, last)
    place = place.to(decibels_BP.device)
    low = place.floor().long().clamp_max(last - 1)
    part = place - low
    between = decibels_BP[:, low] * (1 - part) + decibels_BP[:, low + 1] * part
    return 10 ** (between / 20)


def through(wave_BT: Tensor, gains_BF: Tensor, line_B: Tensor) -> Tensor:
    """Waves through filters without phase; where `line_B`, through a telephone's band too.

    By overlapping frames whose windows add up to one, so that nothing comes round from the other end.
    """
    hertz = torch.fft.rfftfreq(FRAME, 1 / SAMPLE_RATE).to(wave_BT.device)
    low, high = TELEPHONE
    band = torch.sigmoid((hertz - low) / 40) * torch.sigmoid((high - hertz) / 80)
    gains = torch.where(line_B[:, None], gains_BF * band, gains_BF)
    length, hop = wave_BT.shape[1], FRAME // 2
    window = torch.hann_window(FRAME, device=wave_BT.device).sqrt()
    padded = F.pad(wave_BT.float(), (hop, FRAME + hop - length % hop))
    frames = padded.unfold(1, FRAME, hop) * window
    made = torch.fft.irfft(torch.fft.rfft(frames) * gains[:, None], FRAME) * window
    whole = (made.shape[1] - 1) * hop + FRAME
    out = F.fold(made.mT, (1, whole), (1, FRAME), stride=(1, hop)).flatten(1)
    return out[:, hop : hop + length]
