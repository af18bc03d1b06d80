"""The position-wise parts of the decoder: RMS norm, rotary embedding, gated MLP.

Knows nothing of the cache, of documents or of experts.

Shapes: B batch, T tokens, D width, F inner width, N heads, H head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension, with a learned gain (Zhang & Sennrich 2019).

    The mean is taken in float32 whatever the input's dtype, as the stock checkpoints expect.
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` [..., D]; same shape and dtype out."""
        if x.dtype == torch.float32:
            return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)
        # Spelled out: on CPU the fused call is several times slower than this in bfloat16.
        return rms_norm(x, self.weight, self.eps)


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """The norm of `RMSNorm` in separate steps, for `x` [..., D] of any dtype; same shape and dtype out."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return gain * wide.to(x.dtype)


class Rotary(nn.Module):
    """Rotary position embedding (Su et al. 2021), half-split layout as in the HF checkpoints.

    Holds no parameters and no buffers, so it survives the meta device and any change of dtype.
    """

    def __init__(self, head_dim: int, theta: float) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.theta = theta

    def forward(self, positions_BT: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines [B, T, 1, H] of integer positions [B, T], computed in float32."""
        steps = torch.arange(0, self.head_dim, 2, device=positions_BT.device, dtype=torch.float32)
        frequencies = 1.0 / self.theta ** (steps / self.head_dim)
        angles = positions_BT[..., None, None].float() * frequencies
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x_BTNH: Tensor, cos_BT1H: Tensor, sin_BT1H: Tensor) -> Tensor:
    """Turn each head of `x` [B, T, N, H] by its position's angles; same shape out."""
    first, second = x_BTNH.chunk(2, dim=-1)
    return x_BTNH * cos_BT1H + torch.cat((-second, first), dim=-1) * sin_BT1H


class MLP(nn.Module):
    """Gated MLP: down(silu(gate(x)) * up(x)) (Shazeer 2020, SwiGLU), no biases."""

    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, ffn_dim, bias=False)
        self.up_proj = nn.Linear(dim, ffn_dim, bias=False)
        self.down_proj = nn.Linear(ffn_dim, dim, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))
        return out
