"""Experts dealt out over ranks: tokens go to the ranks that hold their experts, and what these make of them back.

Each rank routes its own tokens; sorted by expert they lie in the order of the ranks, so one exchange brings
them where they belong and a second one back (Lepikhin et al. 2021). A rank that sends or receives no token
still takes part, and its experts then have a gradient of zero. It knows neither routers nor optimisers.

Shapes: M tokens of this rank, k experts a token, N rows received, D width, E experts, W ranks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from m27.model.moe import Experts, combine, sort


class _Exchange(torch.autograd.Function):
    """Rows to other ranks and rows of theirs back; the gradient takes the same ways in reverse."""

    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup
    ) -> Tensor:
        ctx.back, ctx.group = (received, sent), group
        return _exchange(x_ND, sent, received, group)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None, None]:
        sent, received = ctx.back
        return _exchange(grads[0], sent, received, ctx.group), None, None, None


def _exchange(
    x_ND: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup
) -> Tensor:
    out = x_ND.new_empty(sum(received), *x_ND.shape[1:])
    dist.all_to_all_single(out, x_ND.contiguous(), received, sent, group=group)
    return out


class SpreadExperts(Experts):
    """This rank's E / W of the `experts`, under the same names, called as they are.

    `group` are the ranks that together hold all; each calls it the same number of times.
    """

    def __init__(self, experts: Experts, group: dist.ProcessGroup) -> None:
        nn.Module.__init__(self)
        self.group, self.ranks = group, dist.get_world_size(group)
        rank = dist.get_rank(group)
        for name, whole in experts.named_parameters():
            own = whole.detach().chunk(self.ranks)[rank].clone()
            self.register_parameter(name, nn.Parameter(own, requires_grad=whole.requires_grad))

    @torch.compiler.disable  # how many rows come and go is known when they do
    def forward(self, x_MD: Tensor, chosen_Mk: Tensor, weights_Mk: Tensor) -> Tensor:
        """As `Experts.forward`, with the chosen ones numbered over all ranks; [M, D]."""
        here = len(self.gate_up_proj)
        x_sorted, counts_E, order, home = sort(x_MD, chosen_Mk, here * self.ranks)
        ours_WE = counts_E.view(self.ranks, here)
        theirs_WE = torch.empty_like(ours_WE)
        dist.all_to_all_single(theirs_WE, ours_WE, group=self.group)
        sent, received = ours_WE.sum(1).tolist(), theirs_WE.sum(1).tolist()
        x_ND = _Exchange.apply(x_sorted, sent, received, self.group)
        expert_N = torch.arange(here, device=x_ND.device).repeat(self.ranks)
        expert_N = expert_N.repeat_interleave(theirs_WE.flatten())
        y_ND = self._through(x_ND, expert_N)
        y_sorted = _Exchange.apply(y_ND, received, sent, self.group)
        return combine(y_sorted, weights_Mk, order, home).to(x_MD.dtype)

    def _through(self, x_ND: Tensor, expert_N: Tensor) -> Tensor:
        """Each row through the expert of ours that it came for."""
        count = len(x_ND)
        if not count:  # a row of zeros, so that the experts have a gradient here too
            x_ND = torch.cat([x_ND, x_ND.new_zeros(1, x_ND.shape[1])])
            expert_N = expert_N.new_zeros(1)
        return self.grouped(x_ND, expert_N[:, None], x_ND.new_ones(len(x_ND), 1))[:count]
