"""Weights rounded to blocks of 8 and 4 bits, and which matrix of a decoder is held in which.

Inputs go in groups of 32, each with a scale in half precision and, for 4 bits, a minimum: a weight is
q * scale (int8, -127 ... 127) or q * scale + minimum (int4, 0 ... 15), as in Q8_0 and Q4_1 of ggml. In 4
bits the error of an input counts as much as that input does, where that is known (`m27.model.importance`). It
knows no file: that is `m27.model.quantized`.

Shapes: R rows, C columns, G groups of 32 columns, N groups of all rows, B the 32 of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from m27.model.gguf import BLOCK, Blocks

EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")
_CHUNK = 1 << 14  # groups that are rounded at a time, so that they stay in the processor's cache
_SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6)  # of the range, tried from either side
_FITS = 2
_LEAST = 1e-3  # what an input that is always nothing counts


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


def group_weights(importance_C: Tensor | None, columns: int) -> Tensor:
    """[G, 32], how much the error of an input counts in its group: about 1 on average, none at nothing.

    `importance_C` is the mean square of each input; None: all alike.
    """
    squares_C = torch.ones(columns) if importance_C is None else importance_C
    squares_GB = in_groups(squares_C[None])[0]
    return squares_GB / squares_GB.mean(-1, keepdim=True).clamp_min(1e-20) + _LEAST


def round_int4(weight_RC: Tensor, importance_C: Tensor | None = None) -> Blocks:
    """Round a matrix to 4 bits: of several ranges the one whose squared error, weighted by the inputs'
    `importance_C`, is least. Scale and minimum are fitted by least squares to what was rounded, twice."""
    w_RGB = in_groups(weight_RC)
    rows, groups, _ = w_RGB.shape
    counts_GB = group_weights(importance_C, weight_RC.shape[1])
    step = max(1, _CHUNK // groups)
    parts = [_round_groups(w_RGB[i : i + step], counts_GB) for i in range(0, rows, step)]
    q, scale, minimum = (torch.cat(part) for part in zip(*parts, strict=True))
    both = q[..., :16] | q[..., 16:] << 4
    return Blocks(both.flatten(1), scale, minimum)


def _round_groups(w_RGB: Tensor, counts_GB: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    low, high = w_RGB.aminmax(dim=-1, keepdim=True)
    weighted = w_RGB * counts_GB
    n, total = counts_GB.sum(-1, keepdim=True), weighted.sum(-1, keepdim=True)
    squares = (weighted * w_RGB).sum(-1, keepdim=True)
    best = torch.full_like(low, torch.inf)
    scale, minimum = torch.zeros_like(low), low.clone()
    middle, half = (low + high) / 2, (high - low) / 2
    for shrink in _SHRINK:
        a, b = half * (2 * shrink / 15), middle - half * shrink
        for _ in range(_FITS):
            inverse = torch.where(a > 0, 1 / a, 0.0)
            q = torch.addcmul(-b * inverse, w_RGB, inverse).round_().clamp_(0, 15)
            # Least squares of w = a q + b over the group.
            qc = q * counts_GB
            s, ss = qc.sum(-1, keepdim=True), (qc * q).sum(-1, keepdim=True)
            product = (qc * w_RGB).sum(-1, keepdim=True)
            spread = n * ss - s * s
            a = torch.where(spread > 0, (n * product - s * total) / spread, 0.0)
            b = (total - a * s) / n
        error = squares - a * product - b * total
        better = (error < best) & (a >= 0)
        best = torch.where(better, error, best)
        scale, minimum = torch.where(better, a, scale), torch.where(better, b, minimum)
    scale, minimum = scale.half(), minimum.half()
    inverse = torch.where(scale > 0, 1 / scale.float(), 0.0)
    q = ((w_RGB - minimum.float()) * inverse).round_().clamp_(0, 15).to(torch.uint8)
    return q, scale[..., 0], minimum[..., 0]


Rounding = Callable[[Tensor, str, Tensor | None], Blocks]


def rounded(weight_RC: Tensor, kind: str, importance_C: Tensor | None = None) -> Blocks:
    """Round a matrix to "int8" or "int4"."""
    return round_int8(weight_RC) if kind == "int8" else round_int4(weight_RC, importance_C)


def blocks_of(
    value: Tensor | Blocks, kind: str, rounding: Rounding = rounded, importance_C: Tensor | None = None
) -> Blocks:
    """A matrix in blocks of "int8" or "int4": as it is where it is that already, else rounded."""
    if isinstance(value, Blocks):
        four = value.q.dtype == torch.uint8 and value.minimum is not None
        if (kind == "int4" and four) or (kind == "int8" and value.q.dtype == torch.int8):
            return value
        value = value.dequantize()
    return rounding(value, kind, importance_C)


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
    state: Mapping[str, Tensor | Blocks],
    kind: str,
    rounding: Rounding = rounded,
    importance: Mapping[str, Tensor] = MappingProxyType({}),
) -> Iterator[tuple[str, Tensor | Blocks]]:
    """Each tensor of a decoder at "int8" or "int4", matrices in blocks as `kind_of` says; one at a time,
    so that of a `state` that makes its tensors when they are asked for one is there in float32.

    `importance`: what each input of a matrix counts, by the matrix's name; see `m27.model.importance`."""
    for name, value in state.items():
        if is_matrix(name):
            yield name, blocks_of(value, kind_of(name, kind), rounding, importance.get(name))
        else:
            yield name, value if isinstance(value, Blocks) else value.detach().float()
