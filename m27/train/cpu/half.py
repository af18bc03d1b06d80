"""The products in C++ seen from Python: tensors in, tensors out; the library loaded once.

Inputs are float32 or bfloat16. They are multiplied in 16 bits, in what the processor is fast in (`build.KINDS`):
in float16, rows and columns scaled by powers of two, and summed in float16 for 128 products, then in float32,
which is closer to the exact product than bfloat16 inputs are; or in bfloat16, summed in float32, with no more error
than rounding the inputs makes. The oracle is `torch.mm` in float64.

Shapes: N tokens, M rows of scores, S scores a row, K key heads, E all query heads of one, H head width.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from m27.train.cpu import build

_P, _I, _L = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
_KINDS = {torch.float32: 0, torch.bfloat16: 1}
_ARGUMENTS = {
    "m27_product": [_L, _L, _L, _P, _I, _L, _L, _P, _I, _L, _L, _P, _I, _L, _P, _L],
    "m27_attend": [_L] * 5 + [_P] * 6,
    "m27_attend_backward": [_L] * 5 + [_P] * 11,
    "m27_entropy": [_L, _L, _P, _L, _P, _P, ctypes.c_float, _P],
    "m27_swiglu": [_L, _L, _P, _P],
    "m27_swiglu_backward": [_L, _L, _P, _P, _P, _P],
}


@dataclass(frozen=True)
class Documents:
    """How attention is planned here: `edges` [documents + 1] of the documents over all tokens, end to end."""

    edges: Tensor
    keys: int
    width: int


Saved = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


@lru_cache(maxsize=1)
def load() -> Half | None:
    """The library where this processor and its compiler give one; a failing compiler is told of once."""
    kind = build.kind()
    if kind is None:
        return None
    try:
        return Half(ctypes.CDLL(str(build.library(kind))), kind.name)
    except (build.BuildError, OSError) as error:
        print(f"m27: products in {kind.name} cannot be built, torch's are used: {error}", file=sys.stderr)
        return None


class Half:
    """Functions of the library `loaded`, which multiplies in `kind` ("float16" or "bfloat16").

    Raises MemoryError where there is none left.
    """

    def __init__(self, loaded: ctypes.CDLL, kind: str) -> None:
        self._library, self.kind = loaded, kind
        for name, arguments in _ARGUMENTS.items():
            getattr(loaded, name).argtypes = arguments
        self._room: dict[str, Tensor] = {}

    def product(self, a_MK: Tensor, b_KN: Tensor, out_MN: Tensor, base_MN: Tensor | None = None) -> Tensor:
        """`out` = a @ b, added to a float32 `base` if there is one, which may be `out`; a, b may be transposed."""
        (m, k), n = a_MK.shape, b_KN.shape[1]
        narrow = [t for t in (out_MN, base_MN) if t is not None and (t.shape != (m, n) or t.stride(1) != 1)]
        if b_KN.shape[0] != k or narrow or (base_MN is not None and base_MN.dtype != torch.float32):
            raise ValueError(f"product of {a_MK.shape} and {b_KN.shape} into {out_MN.shape}")
        a_MK, b_KN = _dense(a_MK), _dense(b_KN)
        under = (None, 0) if base_MN is None else (base_MN.data_ptr(), base_MN.stride(0))
        self._call(
            "m27_product", m, n, k, a_MK.data_ptr(), _KINDS[a_MK.dtype], *a_MK.stride(),
            b_KN.data_ptr(), _KINDS[b_KN.dtype], *b_KN.stride(), out_MN.data_ptr(),
            _KINDS[out_MN.dtype], out_MN.stride(0), *under,
        )  # fmt: skip
        return out_MN

    def attend(self, q_NKE: Tensor, k_NKH: Tensor, v_NKH: Tensor, where: Documents) -> tuple[Tensor, Saved]:
        """As `m27.train.attention.attend`, over bfloat16; nothing of the squares is kept."""
        q, k, v = (t.contiguous() for t in (q_NKE, k_NKH, v_NKH))
        tokens, queries = len(q), q[0].numel() // where.width
        out = torch.empty(tokens, queries * where.width, dtype=q.dtype)
        logs = torch.empty(queries, tokens)
        self._call("m27_attend", *self._heads(q, where), *_pointers(q, k, v, out, logs))
        return out, (q, k, v, out, logs)

    def attend_backward(self, g_NO: Tensor, saved: Saved, where: Documents) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q [N, K, E], k and v [N, K, H]."""
        q, k, v, out, logs = saved
        grads = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        sums = self.room("attention", 2 * q.numel(), torch.float32)
        self._call(
            "m27_attend_backward", *self._heads(q, where),
            *_pointers(q, k, v, out, logs, g_NO.contiguous(), *grads, sums),
        )  # fmt: skip
        return grads

    def entropy(
        self, scores_MS: Tensor, targets_M: Tensor, weights_M: Tensor, z_loss: float = 0.0
    ) -> Tensor:
        """Losses [M] of bfloat16 scores, which become the gradient (see `m27.train.objective.cross_entropy`)."""
        losses = torch.empty(len(scores_MS), dtype=torch.float32)
        targets, weights = targets_M.long().contiguous(), weights_M.float().contiguous()
        rows, count = scores_MS.shape
        self._call(
            "m27_entropy", rows, count, scores_MS.data_ptr(), scores_MS.stride(0),
            *_pointers(targets, weights), z_loss, losses.data_ptr(),
        )  # fmt: skip
        return losses

    def swiglu(self, gate_up_NO: Tensor) -> Tensor:
        """As `m27.train.kernels.swiglu`, over bfloat16: a compiler's exponential takes three times as long."""
        rows, width = len(gate_up_NO), gate_up_NO.shape[1] // 2
        out = gate_up_NO.new_empty(rows, width)
        self._call("m27_swiglu", rows, width, *_pointers(gate_up_NO.contiguous(), out))
        return out

    def swiglu_backward(self, g_NF: Tensor, gate_up_NO: Tensor) -> tuple[Tensor, Tensor]:
        """As `m27.train.kernels.swiglu_backward`, over bfloat16."""
        rows, width = g_NF.shape
        grad, out = torch.empty_like(gate_up_NO), torch.empty_like(g_NF)
        self._call(
            "m27_swiglu_backward", rows, width,
            *_pointers(g_NF.contiguous(), gate_up_NO.contiguous(), grad, out),
        )  # fmt: skip
        return grad, out

    def room(self, name: str, count: int, dtype: torch.dtype) -> Tensor:
        """A vector of `count` values that is kept from call to call; what it holds means nothing."""
        held = self._room.get(name)
        if held is None or len(held) < count or held.dtype != dtype:
            held = self._room[name] = torch.empty(count, dtype=dtype)
        return held[:count]

    def forget(self) -> None:
        """Let go of what `room` keeps."""
        self._room.clear()

    def _heads(self, q_NKE: Tensor, where: Documents) -> tuple[int, ...]:
        queries = q_NKE[0].numel() // where.width
        edges = where.edges
        return len(q_NKE), queries, where.keys, where.width, len(edges) - 1, edges.data_ptr()

    def _call(self, name: str, *arguments: float | None) -> None:
        if getattr(self._library, name)(*arguments):
            raise MemoryError(f"{name}: no memory for its panels")


def _dense(x: Tensor) -> Tensor:
    """`x` with one stride of 1."""
    return x if 1 in x.stride() else x.contiguous()


def _pointers(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(tensor.data_ptr() for tensor in tensors)
