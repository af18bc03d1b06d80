"""The pass that trains a whole decoder: embedding, blocks and head under autograd, whatever its family.

What any language model is pretrained with: the rows of the vocabulary are weights like the others. Masters stay
in their dtype (float32), products run in the rows' dtype, and of the logits only a piece exists at a time. It is
one module with one forward, so that it can be sharded and compiled as one. It knows no ranks.

Shapes: B rows, T tokens, M targets, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from m27.data.loader import Batch
from m27.model.decoder import Decoder
from m27.model.layers import MLP, RMSNorm
from m27.train.head import Losses
from m27.train.kernels import can_compile
from m27.train.objective import cross_entropy
from m27.train.routing import Balancer
from m27.train.rows import FreeRows
from m27.train.scoring import Group, Plan


class Head(torch.autograd.Function):
    """Weighted sum of the targets' losses, and each of them, without the logits of all at once.

    Gradients of states and rows are worked out in the same sweep and kept; `backward` only hands them on.
    """

    @staticmethod
    def forward(
        ctx: Any,
        h_MD: Tensor,
        table_VD: Tensor,
        targets_M: Tensor,
        weights_M: Tensor,
        groups: Sequence[Group],
        z_loss: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """The sum, a scalar, and the losses [M], which have no gradient; for `z_loss` see `cross_entropy`."""
        losses_M, g_MD = torch.empty_like(weights_M), torch.empty_like(h_MD)
        grad_VD = torch.zeros(table_VD.shape, dtype=torch.float32, device=table_VD.device)
        for group in groups:
            at = group.index_m
            losses_M[at], g_MD[at] = cross_entropy(
                h_MD[at], table_VD, targets_M[at], weights_M[at], 0, grad_VD, spans=group.spans,
                z_loss=z_loss,
            )  # fmt: skip
        ctx.save_for_backward(g_MD, grad_VD)
        ctx.dtype = table_VD.dtype
        ctx.mark_non_differentiable(losses_M)
        return (losses_M * weights_M).sum(), losses_M

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        """The kept gradients, times that of the sum."""
        g_MD, grad_VD = ctx.saved_tensors
        return g_MD * grads[0], (grad_VD * grads[0]).to(ctx.dtype), None, None, None, None


class Whole(nn.Module):
    """A decoder and its objective as one module; `dtype` is that of products."""

    def __init__(self, decoder: Decoder, dtype: torch.dtype) -> None:
        super().__init__()
        self.decoder, self.dtype = decoder, dtype

    def forward(
        self, batch: Batch, plan: Plan, weights_M: Tensor, routing: list[Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """The weighted sum of the losses, and the losses [M] in nats; `routing` gathers router logits."""
        decoder = self.decoder
        with self._narrow():
            x_BTD = decoder.embed(batch.ids_BT).float()  # the residual stream, also of narrow rows
            h_BTD = decoder.hidden(x_BTD, batch.positions_BT, batch.documents_BT, routing=routing)
        h_MD = h_BTD.flatten(0, 1).index_select(0, batch.places_M).to(self.dtype)
        table_VD = decoder.output_weight.to(self.dtype)
        loss, losses_M = Head.apply(
            h_MD, table_VD, batch.targets_M, weights_M, plan.groups, plan.z_loss
        )
        return loss, losses_M

    def _narrow(self) -> AbstractContextManager[object]:
        device = self.decoder.output_weight.device.type
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(device, self.dtype)


def compile_blocks(decoder: Decoder, cut: bool = False) -> None:
    """Have the compiler make each block one: on a GPU all of it, on a CPU its norms and its MLP, since there
    attention goes document by document, and no two rows are alike.

    Weights that will be `cut` over ranks are gathered when a block is called, and given up after it: there the
    forward is compiled and not the call, so that this stays around it.
    """
    for block in decoder.model.layers:
        if not compiles_whole(decoder):
            for part in block.modules():
                if isinstance(part, MLP | RMSNorm):
                    part.compile()
        elif cut:
            block.forward = torch.compile(block.forward)
        else:
            block.compile()


def compiles_whole(decoder: Decoder) -> bool:
    """Whether the compiler gets whole blocks."""
    return decoder.output_weight.device.type == "cuda"


class WholePass:
    """`Whole`, forward and backward; gradients gather where autograd leaves them.

    With experts, `balancer` (once it is set) counts who was chosen, and its losses are added: of each
    micro-batch by its share of the step's weight, so that they are means over the step. `cut` says that the
    weights will be cut over ranks.
    """

    def __init__(self, decoder: Decoder, rows: FreeRows, compile: bool = False, cut: bool = False) -> None:
        self.whole = Whole(decoder, rows.dtype)
        self.balancer: Balancer | None = None
        if compile and can_compile():
            compile_blocks(decoder, cut)

    def prepare(self, batch: Batch) -> None:
        """Nothing is planned ahead."""

    def refresh(self) -> None:
        """Nothing: the weights are read as they are."""

    def collect(self) -> None:
        """Nothing: gradients are where they belong."""

    def run(self, batch: Batch, plan: Plan, total_weight: float, prepared: Any = None) -> Losses:
        """The losses of a batch; adds gradients of its weighted losses over `total_weight`."""
        if batch.branches_BT is not None:
            raise ValueError("documents with branches need path=fused or path=merged, whose attention knows them")
        weights_M = batch.weights_M / total_weight
        routing: list[Tensor] = []
        loss, losses_M = self.whole(batch, plan, weights_M, routing)
        if routing and self.balancer is not None:
            loss = loss + self.balancer(routing, batch) * weights_M.sum()
        loss.backward()
        return Losses(losses_M.detach())
