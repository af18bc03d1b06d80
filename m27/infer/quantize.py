"""Weights in 8 and 4 bits as the step takes them, and what a product with them is.

How a matrix is rounded is `m27.model.rounding`. In a product the vectors are rounded too, to 8 bits by
groups of 32. `product` is the definition that the C++ step is held to, to the last bit. It knows no layout
of any machine, and no file: that is `m27.model.quantized`.

Shapes: R rows, C columns, G groups of 32 columns, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from m27.model.gguf import BLOCK, Blocks
from m27.model.rounding import (
    EMBEDDINGS,
    Rounding,
    blocks_of,
    is_matrix,
    kind_of,
    quantized,
    round_int4,
    rounded,
)

__all__ = [
    "EMBEDDINGS",
    "Packed",
    "Rounding",
    "blocks_of",
    "is_matrix",
    "kind_of",
    "pack",
    "product",
    "quantized",
    "round_int4",
    "rounded",
]


@dataclass(frozen=True)
class Packed:
    """Numpy's view of a matrix: float32 [R, C], bfloat16 as uint16 [R, C], or blocks.

    `values` are then int8 [R, G * 32] or uint8 [R, G * 16] (input i of a group low, i + 16 high in byte
    i), `scale` and `minimum` float16 [R, G] seen as uint16.
    """

    values: npt.NDArray[Any]
    scale: npt.NDArray[np.uint16] | None = None
    minimum: npt.NDArray[np.uint16] | None = None


def pack(
    value: Tensor | Blocks | npt.NDArray[np.float32],
    kind: str,
    rounding: Rounding = rounded,
    importance_C: Tensor | None = None,
) -> Packed:
    """A matrix as the C++ step takes it, of kind "float32", "bfloat16", "int8" or "int4"."""
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if kind in ("int8", "int4"):
        blocks = blocks_of(value, kind, rounding, importance_C)
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
