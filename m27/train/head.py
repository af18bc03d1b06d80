"""The head of a pass: the losses of a micro-batch's targets from their states, and the gradients on both sides.

Shapes: N tokens, M targets, m targets of a group, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from m27.data.loader import Batch
from m27.train.objective import cross_entropy, divergence
from m27.train.preference import pair_head
from m27.train.products import Products
from m27.train.rows import Rows
from m27.train.scoring import Plan


@dataclass(frozen=True)
class Losses:
    """Of one micro-batch, in nats: each target's cross-entropy [M], and the divergences there were [m].

    Where answers are compared, also what its pairs cost in all, and their figures (`pairs.Outcome`).
    """

    targets_M: Tensor
    apart_m: Tensor | None = None
    pairs: Tensor | None = None
    figures_P4: Tensor | None = None

    def whole(self, weights_M: Tensor) -> Tensor:
        """The objective summed, with these weights of the targets where they are what is learnt."""
        return (self.targets_M * weights_M).sum() if self.pairs is None else self.pairs


def head(
    rows: Rows,
    h_ND: Tensor,
    batch: Batch,
    plan: Plan,
    base_mD: Tensor | None,
    total_weight: float,
    products: Products | None = None,
) -> tuple[Losses, Tensor]:
    """Losses, and the gradient [M, D] of the targets' states; gradients of rows go to their buffer."""
    if plan.pairs is not None and base_mD is not None:
        targets_M, g_MD, outcome = pair_head(rows, h_ND, batch, plan, base_mD, total_weight)
        return Losses(targets_M, None, outcome.whole, outcome.figures_P4), g_MD
    half = None if products is None else products.half
    table_VD = rows.table_VD if products is None else products.weight(rows.table_VD)
    first, grad_VD = rows.first, rows.grad_VD
    if not plan.learn:  # then no row has a gradient
        first, grad_VD = len(table_VD), table_VD.new_zeros(0, table_VD.shape[1], dtype=torch.float32)
    h_MD = h_ND.index_select(0, batch.places_M)
    weights_M = batch.weights_M / total_weight
    losses_M, apart_m = torch.empty_like(weights_M), None
    g_MD = torch.empty_like(h_MD)
    for group in plan.groups:
        at = group.index_m
        losses_M[at], g_MD[at] = cross_entropy(
            h_MD[at], table_VD, batch.targets_M[at], weights_M[at], first, grad_VD,
            spans=group.spans, z_loss=plan.z_loss, half=half,
        )  # fmt: skip
    if plan.teacher is not None and base_mD is not None:
        at = plan.teacher.index_m
        losses_M[at], apart_m, g_MD[at] = divergence(
            h_MD[at], table_VD, base_mD, batch.targets_M[at], weights_M[at],
            plan.teacher.share_m, rows.first, rows.grad_VD,
        )  # fmt: skip
    return Losses(losses_M, apart_m), g_MD
