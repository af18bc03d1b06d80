"""A matrix rounded to blocks of 8 bits, as Q8_0 of ggml: groups of 32 along the columns, a scale each.

It knows no file and no model; 4 bits, which only the engine wants, are not its matter.

Shapes: R rows, C columns, G groups of 32 columns.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from m27.model.gguf import BLOCK, Blocks


def in_groups(weight_RC: Tensor) -> Tensor:
    """[R, G, 32] in float32, filled up with zeros."""
    weight_RC = F.pad(weight_RC.detach().float(), (0, -weight_RC.shape[1] % BLOCK))
    return weight_RC.view(len(weight_RC), -1, BLOCK)


def round_int8(weight_RC: Tensor) -> Blocks:
    """Round a matrix to 8 bits, to nearest, the scale of a group being max|w| / 127.

    Columns are filled up with zeros to whole groups; a group of zeros has scale 0.
    """
    w_RGB = in_groups(weight_RC)
    scale = (w_RGB.abs().amax(-1) / 127).half()
    inverse = torch.where(scale > 0, 1 / scale.float(), 0.0)
    q = (w_RGB * inverse[..., None]).round_().clamp_(-127, 127).to(torch.int8)
    return Blocks(q.flatten(1), scale, None)


def settle_int8(weight_RC: Tensor) -> Blocks:
    """`round_int8`, repeated until rounding what was rounded changes nothing.

    One rounding is enough unless a group is so small (max|w| below 0.001) that float16 holds its scale
    in a few bits only. Every round that changes something lowers a scale, so this ends. Raises
    ValueError for values that are not finite, or too large for a scale in float16 (8.3e6).
    """
    found = round_int8(weight_RC)
    if not found.scale.isfinite().all():
        raise ValueError("has values that are not finite or too large for blocks of 8 bits")
    while True:
        again = round_int8(found.dequantize())
        if torch.equal(again.q, found.q) and torch.equal(again.scale, found.scale):
            return found
        found = again
