"""Finite scalar quantisation: a codebook that cannot collapse, because it is a grid and not a
table.

Each latent dimension is bounded and rounded to one of a few levels; a code is the mixed-radix
number of its digits. Source: Mentzer et al., "Finite Scalar Quantization: VQ-VAE Made Simple"
(2023).

Shape suffixes: B batch, N codes, D latent dimensions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class FSQ(nn.Module):
    """Quantiser with ``levels[i]`` equally spaced values in dimension i.

    ``size`` is the number of codes (the product of the levels), ``dim`` the latent width. Digit 0
    is the least significant: ``index = sum(digit[i] * prod(levels[:i]))``.

    Raises:
        ValueError: if there are no levels, or one is below 2.
    """

    strides: Tensor
    tops: Tensor

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(f"FSQ needs one or more levels of at least 2, not {levels}")
        self.levels = tuple(levels)
        self.dim = len(levels)
        self.size = math.prod(levels)
        strides = [math.prod(levels[:i]) for i in range(len(levels))]
        self.register_buffer("strides", torch.tensor(strides), persistent=False)
        self.register_buffer("tops", torch.tensor(levels) - 1, persistent=False)

    def forward(self, z_BND: Tensor, noise: float = 0.0) -> tuple[Tensor, Tensor]:
        """Quantise latents ``[..., D]`` to values in [-1, 1] and to codes ``[...]`` (int64).

        The rounding passes gradients straight through. ``noise`` (training only) is the share of
        latents that get uniform noise of a rounding step instead of rounding, which keeps the
        encoder's gradient honest near the edges of a cell.
        """
        tops = self.tops.to(z_BND.dtype)
        unit = torch.tanh(z_BND) * 0.5 + 0.5  # (0, 1)
        scaled = unit * (tops + 1) - 0.5  # cells of equal width, one a level
        digits = torch.minimum(scaled.round().clamp_min(0), tops)
        hard = scaled + (digits - scaled).detach()
        if noise > 0 and self.training:
            soft = scaled + torch.rand_like(scaled) - 0.5
            hard = torch.where(torch.rand_like(scaled) < noise, soft, hard)
        indices = (digits.detach().long() * self.strides).sum(-1)
        return hard / tops * 2 - 1, indices

    def digits(self, indices: Tensor) -> Tensor:
        """Codes ``[...]`` → their digits ``[..., D]`` (int64)."""
        return indices.unsqueeze(-1) // self.strides % (self.tops + 1)

    def vectors(self, indices: Tensor) -> Tensor:
        """Codes ``[...]`` → the quantised vectors ``[..., D]`` in [-1, 1] (float32)."""
        return self.digits(indices).float() / self.tops * 2 - 1
