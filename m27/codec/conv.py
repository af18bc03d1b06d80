"""The convolutional block of the audio codec's encoder and decoder.

Shape suffixes: B batch, N codes, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvBlock(nn.Module):
    """ConvNeXt block in time: depthwise convolution over ``before`` + 1 + ``after`` codes, then an MLP.

    Source: Liu et al., "A ConvNet for the 2020s" (2022), as Vocos uses it in time.
    """

    def __init__(self, dim: int, before: int, after: int, expansion: int = 3) -> None:
        super().__init__()
        self.sides = (before, after)
        self.mix = nn.Conv1d(dim, dim, before + 1 + after, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, expansion * dim)
        self.down = nn.Linear(expansion * dim, dim)
        self.scale = nn.Parameter(torch.full((dim,), 0.2))

    def forward(self, x_BND: Tensor) -> Tensor:
        """``[B, N, D]`` → the same shape."""
        with torch.autocast(x_BND.device.type, enabled=False):
            mixed = self.mix(F.pad(x_BND.float().transpose(1, 2), self.sides)).transpose(1, 2)
        return x_BND + self.scale * self.down(F.gelu(self.up(self.norm(mixed)))).to(x_BND.dtype)
