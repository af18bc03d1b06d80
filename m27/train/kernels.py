"""Position-wise steps of the fused training path, each with its gradient written out.

Plain functions of tensors, so that a compiler can fuse each into one pass over memory and so that they run
as written where there is none. Sums are taken in float32. They know nothing of layers or weights.

Shapes: N tokens, D width, F inner width, K key heads, G query heads a key head, H head width.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def norm(x_ND: Tensor, gain_D: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """RMS norm of float32 [N, D], out in `dtype`."""
    scale = torch.rsqrt(x_ND.square().mean(-1, keepdim=True) + eps)
    return (x_ND * scale * gain_D).to(dtype)


def add_norm(x_ND: Tensor, y_ND: Tensor, gain_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The float32 sum x + y and its RMS norm in the dtype of `y`."""
    total = x_ND + y_ND.float()
    scale = torch.rsqrt(total.square().mean(-1, keepdim=True) + eps)
    return total, (total * scale * gain_D).to(y_ND.dtype)


def norm_backward(
    gx_ND: Tensor, gn_ND: Tensor, x_ND: Tensor, gain_D: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Add to `gx` (float32) what the norm of `x` hands back for `gn`; also that sum in the dtype of `gn`."""
    scale = torch.rsqrt(x_ND.square().mean(-1, keepdim=True) + eps)
    g = gn_ND.float() * gain_D
    inner = (g * x_ND).mean(-1, keepdim=True)
    total = gx_ND + scale * (g - x_ND * (scale * scale * inner))
    return total, total.to(gn_ND.dtype)


def gain_backward(gn_ND: Tensor, x_ND: Tensor, eps: float) -> Tensor:
    """Gradient [D], float32, of the gain of the norm of `x` from that of its output."""
    scale = torch.rsqrt(x_ND.square().mean(-1, keepdim=True) + eps)
    return (gn_ND.float() * (x_ND * scale)).sum(0)


def rope(
    qkv_NO: Tensor, cos_N1H: Tensor, sin_N1H: Tensor, heads: int, kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Split the joint projection and turn q and k by their angles; q comes scaled by 1/sqrt(H).

    Out: q [N, K, G*H], k and v [N, K, H], each contiguous.
    """
    tokens, width = qkv_NO.shape[0], cos_N1H.shape[-1]
    half = width // 2
    wide = qkv_NO.view(tokens, heads + 2 * kv_heads, width)
    x = wide[:, : heads + kv_heads].float()
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    y = x * cos_N1H + turned * sin_N1H
    q = (y[:, :heads] * width**-0.5).to(qkv_NO.dtype)
    k = y[:, heads:].to(qkv_NO.dtype)
    v = wide[:, heads + kv_heads :].contiguous()
    return q.reshape(tokens, kv_heads, -1), k.contiguous(), v


def rope_backward(
    gq_NKE: Tensor, gk_NKH: Tensor, gv_NKH: Tensor, cos_N1H: Tensor, sin_N1H: Tensor
) -> Tensor:
    """Gradient of the joint projection [N, O] from those of q, k and v; turns back by the same angles."""
    tokens, _, width = gk_NKH.shape
    half = width // 2
    gq = gq_NKE.view(tokens, -1, width).float() * width**-0.5
    g = torch.cat((gq, gk_NKH.float()), dim=1)
    s = g * sin_N1H
    x = g * cos_N1H + torch.cat((s[..., half:], -s[..., :half]), dim=-1)
    return torch.cat((x.to(gv_NKH.dtype), gv_NKH), dim=1).view(tokens, -1)


def swiglu(gate_up_NO: Tensor) -> Tensor:
    """silu(gate) * up of the joint projection [N, 2F]; [N, F] out."""
    gate, up = gate_up_NO.float().chunk(2, dim=-1)
    return (gate * torch.sigmoid(gate) * up).to(gate_up_NO.dtype)


def swiglu_backward(g_NF: Tensor, gate_up_NO: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient [N, 2F] of the joint projection, and `swiglu` of it again, which was not kept."""
    gate, up = gate_up_NO.float().chunk(2, dim=-1)
    g = g_NF.float()
    s = torch.sigmoid(gate)
    silu = gate * s
    grad = torch.cat((g * up * (s + silu * (1 - s)), g * silu), dim=-1)
    return grad.to(g_NF.dtype), (silu * up).to(g_NF.dtype)


def can_compile() -> bool:
    """Whether the machine has a C++ compiler or a GPU for `torch.compile`."""
    return torch.cuda.is_available() or any(map(shutil.which, ("g++", "clang++")))


class Kernels:
    """The functions above, compiled when `compile` is set and the machine has a C++ compiler or a GPU."""

    def __init__(self, compile: bool = False) -> None:
        self.compiled = compile and can_compile()

        def fuse(function: Callable[..., Any]) -> Callable[..., Any]:
            return torch.compile(function, dynamic=False) if self.compiled else function

        self.norm = fuse(norm)
        self.add_norm = fuse(add_norm)
        self.norm_backward = fuse(norm_backward)
        self.gain_backward = fuse(gain_backward)
        self.rope = fuse(rope)
        self.rope_backward = fuse(rope_backward)
        self.swiglu = fuse(swiglu)
        self.swiglu_backward = fuse(swiglu_backward)
