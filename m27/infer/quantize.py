"""Weights in 8 and 4 bits: how a matrix is rounded, and what a product with it is.

Inputs go in groups of 32, each with a scale in half precision and, for 4 bits, a minimum: a weight is
q * scale (int8, -127 ... 127) or q * scale + minimum (int4, 0 ... 15), as in Q8_0 and Q4_1 of ggml. In
a product the vectors are rounded too, to 8 bits by groups of 32. `product` is the definition that the
C++ step is held to, to the last bit. It knows no layout of any machine, and no file: that is
`m27.model.quantized`.

Shapes: R rows, C columns, G groups of 32 columns, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from m27.model.gguf import BLOCK, Blocks
from m27.model.rounding import in_groups, round_int8

EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")
_CHUNK = 1 << 14  # groups that are rounded at a time, so that they stay in the processor's cache
_SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8)  # of the range, tried from either side


@dataclass(frozen=True)
class Packed:
    """Numpy's view of a matrix: float32 [R, C], bfloat16 as uint16 [R, C], or blocks.

    `values` are then int8 [R, G * 32] or uint8 [R, G * 16] (input i of a group low, i + 16 high in byte
    i), `scale` and `minimum` float16 [R, G] seen as uint16.
    """

    values: npt.NDArray[Any]
    scale: npt.NDArray[np.uint16] | None = None
    minimum: npt.NDArray[np.uint16] | None = None


def round_int4(weight_RC: Tensor) -> Blocks:
    """Round a matrix to 4 bits: of several ranges the one whose squared error is least, after scale and
    minimum are fitted by least squares to what was rounded."""
    w_RGB = in_groups(weight_RC)
    rows, groups, _ = w_RGB.shape
    flat = w_RGB.reshape(-1, BLOCK)
    parts = [_round_groups(flat[i : i + _CHUNK]) for i in range(0, len(flat), _CHUNK)]
    q, scale, minimum = (torch.cat(part) for part in zip(*parts, strict=True))
    both = q[:, :16] | q[:, 16:] << 4
    return Blocks(both.view(rows, -1), scale.view(rows, groups), minimum.view(rows, groups))


def _round_groups(w_NB: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    low, high = w_NB.aminmax(dim=-1, keepdim=True)
    total, squares = w_NB.sum(-1, keepdim=True), w_NB.square().sum(-1, keepdim=True)
    best = torch.full_like(low, torch.inf)
    scale, minimum = torch.zeros_like(low), low.clone()
    middle, half = (low + high) / 2, (high - low) / 2
    for shrink in _SHRINK:
        step = half * (2 * shrink / 15)
        inverse = torch.where(step > 0, 1 / step, 0.0)
        q = torch.addcmul(-(middle - half * shrink) * inverse, w_NB, inverse).round_().clamp_(0, 15)
        # Least squares of w = a q + b over the group.
        n, s, ss = BLOCK, q.sum(-1, keepdim=True), q.square().sum(-1, keepdim=True)
        product = (q * w_NB).sum(-1, keepdim=True)
        spread = n * ss - s * s
        a = torch.where(spread > 0, (n * product - s * total) / spread, 0.0)
        b = (total - a * s) / n
        error = squares - a * product - b * total
        better = (error < best) & (a >= 0)
        best = torch.where(better, error, best)
        scale, minimum = torch.where(better, a, scale), torch.where(better, b, minimum)
    scale, minimum = scale.half(), minimum.half()
    inverse = torch.where(scale > 0, 1 / scale.float(), 0.0)
    q = ((w_NB - minimum.float()) * inverse).round_().clamp_(0, 15).to(torch.uint8)
    return q, scale[:, 0], minimum[:, 0]


Rounding = Callable[[Tensor, str], Blocks]


def rounded(weight_RC: Tensor, kind: str) -> Blocks:
    """Round a matrix to "int8" or "int4"."""
    return round_int8(weight_RC) if kind == "int8" else round_int4(weight_RC)


def blocks_of(value: Tensor | Blocks, kind: str, rounding: Rounding = rounded) -> Blocks:
    """A matrix in blocks of "int8" or "int4": as it is where it is that already, else rounded."""
    if isinstance(value, Blocks):
        four = value.q.dtype == torch.uint8 and value.minimum is not None
        if (kind == "int4" and four) or (kind == "int8" and value.q.dtype == torch.int8):
            return value
        value = value.dequantize()
    return rounding(value, kind)


def pack(
    value: Tensor | Blocks | npt.NDArray[np.float32], kind: str, rounding: Rounding = rounded
) -> Packed:
    """A matrix as the C++ step takes it, of kind "float32", "bfloat16", "int8" or "int4"."""
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if kind in ("int8", "int4"):
        blocks = blocks_of(value, kind, rounding)
        scale = blocks.scale.contiguous().numpy().view(np.uint16)
        minimum = None
        if blocks.minimum is not None:
            minimum = blocks.minimum.contiguous().numpy().view(np.uint16)
        return Packed(blocks.q.contiguous().numpy(), scale, minimum)
    whole = value.dequantize() if isinstance(value, Blocks) else value.detach()
    if kind == "bfloat16":
        narrow = whole.to(torch.bfloat16).contiguous().view(torch.int16)
        return Packed(narrow.numpy().view(np.uint16))
    return Packed(whole.float().contiguous().numpy())


def product(packed: Packed, x_TC: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """x W^T [T, R] as the step computes it: integers within a group, then float32 group by group."""
    if packed.scale is None:
        raise ValueError("a product of floats has no definition to the last bit")
    rows, groups = packed.scale.shape
    x = np.pad(x_TC, ((0, 0), (0, groups * BLOCK - x_TC.shape[1]))).reshape(
        len(x_TC), groups, BLOCK
    )
    top = np.abs(x).max(-1)
    factor = np.where(top > 0, np.float32(127) / np.where(top > 0, top, 1), 0).astype(np.float32)
    q_x = np.rint(x * factor[..., None]).astype(np.int32)
    scale_x = top / np.float32(127)
    weight = scale_x * q_x.sum(-1).astype(np.float32)
    values = packed.values.reshape(rows, groups, -1)
    if values.dtype == np.uint8:
        values = np.concatenate((values & 15, values >> 4), -1)
    dots = np.einsum("rgi,tgi->gtr", values.astype(np.int32), q_x).astype(np.float32)
    scale = packed.scale.view(np.float16).astype(np.float32)
    out = np.zeros((len(x_TC), rows), np.float32)
    for g in range(groups):
        out += dots[g] * (scale[None, :, g] * scale_x[:, None, g])
        if packed.minimum is not None:
            minimum = packed.minimum.view(np.float16).astype(np.float32)
            out += minimum[None, :, g] * weight[:, None, g]
    return out


def is_matrix(name: str) -> bool:
    """Whether a tensor of the decoder is a matrix that is rounded; norms are not."""
    return name in EMBEDDINGS or name.endswith("_proj.weight")


def kind_of(name: str, precision: str) -> str:
    """What a matrix is held in at a precision. In "int4" some stay at 8 bits: embedding and head, for
    in 4 they cost nine per cent of perplexity, and the values and the output of attention, for an eighth
    of the body's weights that cost more than half of what is lost (6.8 % with them, 2.1 % without)."""
    careful = name in EMBEDDINGS or name.endswith(("v_proj.weight", "o_proj.weight"))
    return "int8" if precision == "int4" and careful else precision


def quantized(
    state: Mapping[str, Tensor | Blocks], kind: str, rounding: Rounding = rounded
) -> Iterator[tuple[str, Tensor | Blocks]]:
    """Each tensor of a decoder at "int8" or "int4", matrices in blocks as `kind_of` says; one at a time,
    so that of a `state` that makes its tensors when they are asked for one is there in float32."""
    for name, value in state.items():
        if is_matrix(name):
            yield name, blocks_of(value, kind_of(name, kind), rounding)
        else:
            yield name, value if isinstance(value, Blocks) else value.detach().float()
