"""One micro-batch forward and backward, with the same outcome in several ways: fused by hand, merged, plain.

They put the inputs together from the vocabulary's rows, compute the head at the targets only, and leave
gradients on the trained weights and in the rows' buffer. The plain way is the oracle of the others, serves
the families that they do not know, and trains every weight; the whole way (`m27.train.whole`) every row too.

Shapes: B rows, T tokens, N = B*T, M targets, D width, n tokens that the base is asked about.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from m27.data.loader import Batch
from m27.model.decoder import Decoder
from m27.train import ragged
from m27.train.cpu.half import Half
from m27.train.fused import Fused
from m27.train.head import Losses, head
from m27.train.lora import Adapters
from m27.train.merged import MergedPass
from m27.train.qlora import bits_of
from m27.train.rows import FreeRows, Rows
from m27.train.scoring import Plan, Teacher
from m27.train.whole import WholePass


class Pass(Protocol):
    """How a micro-batch is gone through."""

    def prepare(self, batch: Batch) -> Any:
        """What can be planned on the host before a batch goes to its device; handed to `run`."""

    def refresh(self) -> None:
        """Take up changed weights; once before each step."""

    def run(self, batch: Batch, plan: Plan, total_weight: float, prepared: Any = None) -> Losses:
        """The losses of a batch; adds gradients of its weighted losses over `total_weight`."""

    def collect(self) -> None:
        """Bring the gradients to the trained weights; once after the batches of a step."""


class _Direct:
    """A pass that plans nothing ahead and leaves its gradients where they belong."""

    def prepare(self, batch: Batch) -> None:
        """Nothing."""

    def collect(self) -> None:
        """Nothing."""


class FusedPass(_Direct):
    """`m27.train.fused` and the rows: adapters trained, or with `full` every weight of the body."""

    def __init__(
        self,
        decoder: Decoder,
        adapters: Adapters,
        rows: Rows,
        dtype: torch.dtype,
        compile: bool,
        full: bool = False,
    ) -> None:
        self.fused = Fused(decoder, adapters, dtype, compile, full)
        self.rows, self.dtype = rows, dtype

    def refresh(self) -> None:
        """Bring the matrices up to date: adapters merged again, trained weights rounded again."""
        self.fused.refresh()

    @torch.no_grad()
    def run(self, batch: Batch, plan: Plan, total_weight: float, prepared: Any = None) -> Losses:
        """The losses of a batch; adds gradients of its weighted losses over `total_weight`."""
        base_mD = None if plan.teacher is None else self._base(plan.teacher)
        ids_N = batch.ids_BT.flatten()
        where = self.fused.plan(batch.documents_BT.to(ids_N.device), batch.branches_BT)
        x_ND = self.rows.embed(ids_N)
        h_ND, tape = self.fused.forward(x_ND, batch.positions_BT.flatten(), where)
        products = self.fused.products
        losses, g_MD = head(self.rows, h_ND, batch, plan, base_mD, total_weight, products)
        if not plan.learn:
            return losses
        g_ND = torch.zeros_like(h_ND).index_copy_(0, batch.places_M, g_MD)
        self.rows.add_input_gradient(ids_N, self.fused.backward(g_ND, tape))
        return losses

    def _base(self, teacher: Teacher) -> Tensor:
        documents_1n = teacher.documents_1n.to(teacher.ids_n.device)
        where = self.fused.plan(documents_1n, teacher.branches_1n)
        x_nD = self.rows.embed_base(teacher.ids_n)
        h_nD = self.fused.base_states(x_nD, teacher.positions_n, where)
        return h_nD.index_select(0, teacher.places_m)


class PlainPass(_Direct):
    """The decoder itself under autograd: with the adapters attached, or `full`, every weight trained.

    Trained weights stay float32 and products run in `dtype`; a frozen body is kept in `dtype`. With `full`
    another decoder, `base`, answers for the base.
    """

    def __init__(
        self,
        decoder: Decoder,
        adapters: Adapters,
        rows: Rows,
        dtype: torch.dtype,
        full: bool = False,
        base: Decoder | None = None,
    ) -> None:
        self.rows, self.dtype, self.full = rows, dtype, full
        self.base = None if base is None else base.to(dtype).requires_grad_(False)
        if full:
            self.decoder = decoder
        else:
            self.decoder = decoder.to(dtype).requires_grad_(False)
            adapters.attach(self.decoder)
        self.adapters = adapters

    def refresh(self) -> None:
        """Nothing: the weights are read as they are."""

    def run(self, batch: Batch, plan: Plan, total_weight: float, prepared: Any = None) -> Losses:
        """The losses of a batch; adds gradients of its weighted losses over `total_weight`."""
        base_mD = None if plan.teacher is None else self._base(plan.teacher)
        ids_N = batch.ids_BT.flatten()
        x_ND = self.rows.embed(ids_N).requires_grad_()
        with self._narrow():
            wide_ND = x_ND if self.full else x_ND.to(self.dtype)
            h_ND = _hidden(
                self.decoder, wide_ND, batch.positions_BT, batch.documents_BT, batch.branches_BT
            )
        states_ND = h_ND.detach().to(self.dtype)
        losses, g_MD = head(self.rows, states_ND, batch, plan, base_mD, total_weight)
        if not plan.learn:
            return losses
        h_ND.index_select(0, batch.places_M).backward(g_MD.to(h_ND.dtype))
        if x_ND.grad is not None:
            self.rows.add_input_gradient(ids_N, x_ND.grad)
        return losses

    def _narrow(self) -> AbstractContextManager[object]:
        """Where float32 weights are trained, their products run in the narrow dtype."""
        if self.full and self.dtype != torch.float32:
            return torch.autocast(self.rows.table_VD.device.type, self.dtype)
        return nullcontext()

    @torch.no_grad()
    def _base(self, teacher: Teacher) -> Tensor:
        decoder = self.base if self.full else self.decoder
        if decoder is None:
            raise RuntimeError("the base is asked, but none was given")
        x_nD = self.rows.embed_base(teacher.ids_n).to(self.dtype)
        with self.adapters.off():
            h_nD = _hidden(
                decoder, x_nD, teacher.positions_n[None], teacher.documents_1n, teacher.branches_1n
            )
        return h_nD.index_select(0, teacher.places_m)


def _hidden(
    decoder: Decoder, x_ND: Tensor, positions_BT: Tensor, documents_BT: Tensor, branches_BT: Tensor | None
) -> Tensor:
    """States [N, D] of inputs [N, D]; where documents have branches, each branch with its own copy of the
    beginning, since the decoder's attention knows documents alone."""
    if branches_BT is None:
        shape = (*documents_BT.shape, -1)
        return decoder.hidden(x_ND.view(shape), positions_BT, documents_BT).flatten(0, 1)
    runs = ragged.plan(documents_BT.cpu(), branches_BT.cpu())
    queries, keys = runs.query_edges.long(), runs.key_edges.long()
    tokens_S = torch.arange(len(x_ND)) if runs.keys_S is None else runs.keys_S
    number_N = torch.arange(len(queries) - 1).repeat_interleave(queries.diff())
    # A run's own tokens are the last of those that it sees.
    home_N = keys[number_N + 1] - queries[number_N + 1] + torch.arange(len(x_ND))
    alone_1S = torch.arange(len(keys) - 1).repeat_interleave(keys.diff())[None]
    tokens_S, home_N = tokens_S.to(x_ND.device), home_N.to(x_ND.device)
    x_1SD = x_ND.index_select(0, tokens_S)[None]
    h_1SD = decoder.hidden(x_1SD, positions_BT.flatten().index_select(0, tokens_S)[None], alone_1S)
    return h_1SD[0].index_select(0, home_N)


def choose(
    path: str,
    decoder: Decoder,
    adapters: Adapters,
    rows: Rows,
    dtype: torch.dtype,
    compile: bool,
    *,
    full: bool = False,
    base: Decoder | None = None,
) -> Pass:
    """The pass that `path` ("auto", "fused", "merged", "plain", "whole") names.

    On the CPU "auto" is fused for the Llama family, whatever is trained; on a GPU merged for adapters, and
    whole where the rows are free. Else, and where `full` training is held to a base or recomputes, it is plain, which
    knows every family. Raises ValueError for a path that does not train what is asked.
    """
    free = isinstance(rows, FreeRows)
    on_cpu = rows.table_VD.device.type == "cpu"
    llama = decoder.config.family == "llama" and bits_of(decoder) is None
    if free and (path not in ("auto", "fused", "whole") or not full):
        raise ValueError("free rows go with body=full and path=whole or path=fused")
    if not free and path == "whole":
        raise ValueError("path=whole trains every weight: it wants body=full and rows=free")
    if full and (path == "merged" or (path == "fused" and base is not None)):
        raise ValueError(f"the {path} path does not train every weight so; set path=plain")
    again = full and decoder.recompute  # blocks run twice, for the memory: autograd knows how
    if path == "fused" or (path == "auto" and llama and on_cpu and base is None and not again):
        return FusedPass(decoder, adapters, rows, dtype, compile, full)
    if isinstance(rows, FreeRows):
        return WholePass(decoder, rows, compile)
    fits = llama and not full
    if path == "merged" or (path == "auto" and fits and len(list(adapters)) > 0):
        return MergedPass(decoder, adapters, rows, dtype, compile)
    return PlainPass(decoder, adapters, rows, dtype, full, base)


def half_of(way: Pass) -> Half | None:
    """The library in C++ whose products a pass uses; None where they are torch's."""
    return way.fused.products.half if isinstance(way, FusedPass) else None
