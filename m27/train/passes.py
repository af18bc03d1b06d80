"""One micro-batch forward and backward, two ways with the same outcome: fused by hand, or plain autograd.

Both put the inputs together from the vocabulary's rows, compute the head at the targets only, and leave
gradients on the adapters and in the rows' buffer. The plain way is the oracle of the fused one and serves
the families that the fused one does not know.

Shapes: B rows, T tokens, N = B*T, M targets, D width.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from m27.data.loader import Batch
from m27.model.decoder import Decoder
from m27.train.attention import layout
from m27.train.fused import Fused
from m27.train.lora import Adapters
from m27.train.objective import cross_entropy
from m27.train.rows import Rows


class Pass(Protocol):
    """How a micro-batch is gone through."""

    def refresh(self) -> None:
        """Take up changed adapters; once before each step."""

    def run(self, batch: Batch, total_weight: float) -> Tensor:
        """Losses [M] of a batch; adds gradients of its weighted losses over `total_weight`."""


class FusedPass:
    """`m27.train.fused` and the rows."""

    def __init__(
        self, decoder: Decoder, adapters: Adapters, rows: Rows, dtype: torch.dtype, compile: bool
    ) -> None:
        self.fused = Fused(decoder, adapters, dtype, compile)
        self.rows, self.dtype = rows, dtype
        config = decoder.config
        self._heads = (config.n_kv_heads, config.n_heads // config.n_kv_heads)

    def refresh(self) -> None:
        """Merge the adapters into the weights again."""
        self.fused.merge()

    @torch.no_grad()
    def run(self, batch: Batch, total_weight: float) -> Tensor:
        """Losses [M] of a batch; adds gradients of its weighted losses over `total_weight`."""
        ids_N = batch.ids_BT.flatten()
        plan = layout(batch.documents_BT, *self._heads, self.dtype)
        x_ND = self.rows.embed(ids_N)
        h_ND, tape = self.fused.forward(x_ND, batch.positions_BT.flatten(), plan)
        losses, g_MD = _head(self.rows, h_ND, batch, total_weight)
        g_ND = torch.zeros_like(h_ND).index_copy_(0, batch.places_M, g_MD)
        self.rows.add_input_gradient(ids_N, self.fused.backward(g_ND, tape))
        return losses


class PlainPass:
    """The decoder itself under autograd, with the adapters attached to its layers."""

    def __init__(
        self, decoder: Decoder, adapters: Adapters, rows: Rows, dtype: torch.dtype
    ) -> None:
        self.decoder = decoder.to(dtype).requires_grad_(False)
        self.rows, self.dtype = rows, dtype
        adapters.attach(self.decoder)

    def refresh(self) -> None:
        """Nothing: the adapters are read as they are."""

    def run(self, batch: Batch, total_weight: float) -> Tensor:
        """Losses [M] of a batch; adds gradients of its weighted losses over `total_weight`."""
        ids_N = batch.ids_BT.flatten()
        x_ND = self.rows.embed(ids_N).requires_grad_()
        x_BTD = x_ND.view(*batch.ids_BT.shape, -1).to(self.dtype)
        h_BTD = self.decoder.hidden(x_BTD, batch.positions_BT, batch.documents_BT)
        h_ND = h_BTD.flatten(0, 1)
        losses, g_MD = _head(self.rows, h_ND.detach(), batch, total_weight)
        h_ND.index_select(0, batch.places_M).backward(g_MD)
        if x_ND.grad is not None:
            self.rows.add_input_gradient(ids_N, x_ND.grad)
        return losses


def _head(rows: Rows, h_ND: Tensor, batch: Batch, total_weight: float) -> tuple[Tensor, Tensor]:
    return cross_entropy(
        h_ND.index_select(0, batch.places_M),
        rows.table_VD,
        batch.targets_M,
        batch.weights_M / total_weight,
        rows.first,
        rows.grad_VD,
    )


def choose(
    path: str,
    decoder: Decoder,
    adapters: Adapters,
    rows: Rows,
    dtype: torch.dtype,
    compile: bool,
) -> Pass:
    """The pass that `path` ("auto", "fused", "plain") names; "auto" is fused for the Llama family."""
    if path == "fused" or (path == "auto" and decoder.config.family == "llama"):
        return FusedPass(decoder, adapters, rows, dtype, compile)
    return PlainPass(decoder, adapters, rows, dtype)
