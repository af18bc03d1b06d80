"""Weights rounded to blocks of 8 and 4 bits, and which matrix of a decoder is held in which.

Inputs go in groups of 32, each with a scale in half precision and, for 4 bits, a minimum: a weight is
q * scale (int8, -127 ... 127) or q * scale + minimum (int4, 0 ... 15), as in Q8_0 and Q4_1 of ggml. It
knows no file: that is `m27.model.quantized`.

Shapes: R rows, C columns, G groups of 32 columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from m27.model.gguf import BLOCK, Blocks

EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")
_CHUNK = 1 << 14  # groups that are rounded at a time, so that they stay in the processor's cache
_SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8)  # of the range, tried from either side


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
