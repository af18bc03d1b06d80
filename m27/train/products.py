"""The matrix products of the fused pass, in the way that is fastest here: torch's, or in C++ in 16 bits.

Layers hand over activations in the dtype of the pass and weights in the form that `weight` gave, and get back
activations; gradients of weights gather in float32. It knows no layers.

Shapes: N tokens, I in, O out, K key heads, E all query heads of one, H head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from m27.train import attention
from m27.train.cpu import half
from m27.train.cpu.half import Documents, Half

Plan = attention.Layout | Documents
Saved = attention.Saved | half.Saved


class Products:
    """By torch, in `dtype`."""

    half: Half | None = None

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def weight(self, master: Tensor) -> Tensor:
        """What products read in place of a trained `master`: itself where it serves, else a rounded copy."""
        return master if master.dtype == self.dtype else master.to(self.dtype)

    def linear(self, x_NI: Tensor, w_OI: Tensor) -> Tensor:
        """The products x @ w.T, [N, O]."""
        return x_NI @ w_OI.t()

    def back(self, g_NO: Tensor, w_OI: Tensor) -> Tensor:
        """The products g @ w, [N, I]."""
        return g_NO @ w_OI

    def add_outer(self, sum_OI: Tensor, g_NO: Tensor, x_NI: Tensor) -> None:
        """sum += g.T @ x, the sum in float32."""
        if g_NO.dtype == sum_OI.dtype:
            sum_OI.addmm_(g_NO.t(), x_NI)
        else:
            sum_OI += g_NO.t() @ x_NI

    def merge(self, out_OI: Tensor, base_OI: Tensor, b_OR: Tensor, a_RI: Tensor) -> None:
        """out = base + b @ a, the base in float32."""
        out_OI.copy_(base_OI + b_OR @ a_RI)

    def plan(
        self, documents_BT: Tensor, kv_heads: int, heads: int, width: int, branches_BT: Tensor | None
    ) -> Plan:
        """How attention goes within documents (and branches, see `m27.train.attention`)."""
        return attention.layout(
            documents_BT, kv_heads, heads // kv_heads, self.dtype, branches_BT=branches_BT
        )

    def attend(self, q_NKE: Tensor, k_NKH: Tensor, v_NKH: Tensor, plan: Plan) -> tuple[Tensor, Saved]:
        """Attention [N, K*E] of scaled queries, and what `attend_backward` needs."""
        if isinstance(plan, attention.Layout):
            return attention.attend(q_NKE, k_NKH, v_NKH, plan)
        assert self.half is not None
        return self.half.attend(q_NKE, k_NKH, v_NKH, plan)

    def attend_backward(self, g_NO: Tensor, saved: Saved, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k and v from that of the attention."""
        if isinstance(plan, attention.Layout):
            assert isinstance(saved, list)
            return attention.attend_backward(g_NO, saved, plan)
        assert self.half is not None
        assert isinstance(saved, tuple)
        return self.half.attend_backward(g_NO, saved, plan)


class HalfProducts(Products):
    """By the library in C++: activations in bfloat16, weights as they are, products in float16 or bfloat16."""

    def __init__(self, library: Half) -> None:
        super().__init__(torch.bfloat16)
        self.half: Half = library

    def weight(self, master: Tensor) -> Tensor:
        """The master itself: it is rounded on the way."""
        return master

    def linear(self, x_NI: Tensor, w_OI: Tensor) -> Tensor:
        """The products x @ w.T, [N, O]."""
        return self.half.product(x_NI, w_OI.t(), x_NI.new_empty(len(x_NI), len(w_OI)))

    def back(self, g_NO: Tensor, w_OI: Tensor) -> Tensor:
        """The products g @ w, [N, I]."""
        return self.half.product(g_NO, w_OI, g_NO.new_empty(len(g_NO), w_OI.shape[1]))

    def add_outer(self, sum_OI: Tensor, g_NO: Tensor, x_NI: Tensor) -> None:
        """sum += g.T @ x, the sum in float32."""
        self.half.product(g_NO.t(), x_NI, sum_OI, sum_OI)

    def merge(self, out_OI: Tensor, base_OI: Tensor, b_OR: Tensor, a_RI: Tensor) -> None:
        """out = base + b @ a, the base in float32."""
        self.half.product(b_OR, a_RI, out_OI, base_OI)

    def plan(
        self, documents_BT: Tensor, kv_heads: int, heads: int, width: int, branches_BT: Tensor | None
    ) -> Plan:
        """The documents' edges; with branches as torch's."""
        if branches_BT is not None and bool(branches_BT.any()):
            return super().plan(documents_BT, kv_heads, heads, width, branches_BT)
        edges = [begin for begin, _ in attention.spans(documents_BT)]
        return Documents(torch.tensor([*edges, documents_BT.numel()]), kv_heads, width)


def choose(dtype: torch.dtype, device: torch.device, fast: bool) -> Products:
    """The products for activations in `dtype` on `device`; `fast` allows those in C++ where they are faster."""
    if fast and device.type == "cpu" and dtype == torch.bfloat16:
        library = half.load()
        if library is not None:
            return HalfProducts(library)
    return Products(dtype)
