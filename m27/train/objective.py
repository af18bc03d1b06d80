"""Cross-entropy over a long vocabulary, in pieces, with its gradient written out; losses by medium and task.

The logits of all targets never exist at once, and frozen rows get no gradient. The oracle is
`torch.nn.functional.cross_entropy` over the full logits.

Shapes: M targets, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def cross_entropy(
    h_MD: Tensor,
    table_VD: Tensor,
    targets_M: Tensor,
    weights_M: Tensor,
    first: int,
    grad_VD: Tensor,
    piece: int = 512,
) -> tuple[Tensor, Tensor]:
    """Losses [M] in nats (unweighted, float32) and the gradient [M, D] of sum(weights * losses).

    `table_VD` are the output rows in the dtype of `h_MD`; the gradient of those from `first` on is added
    to `grad_VD` [V - first, D] (float32), the others are frozen. `piece` targets are done at a time.
    """
    losses = torch.empty(len(h_MD), dtype=torch.float32, device=h_MD.device)
    g_MD = torch.empty_like(h_MD)
    for begin in range(0, len(h_MD), piece):
        window = slice(begin, begin + piece)
        h, target, weight = h_MD[window], targets_M[window], weights_M[window, None].to(h_MD.dtype)
        p = torch.softmax(h @ table_VD.t(), dim=-1)
        hit = p.gather(1, target[:, None])
        losses[window] = -hit.flatten().float().clamp_min(1e-30).log()
        # d loss / d logits is p - 1 at the target; scaling h instead of p spares a pass over [m, V].
        g_MD[window] = (p @ table_VD - table_VD.index_select(0, target)) * weight
        weighted = h * weight
        grad_VD += p[:, first:].t() @ weighted
        at = (target >= first).nonzero().flatten()
        grad_VD.index_add_(0, target[at] - first, -weighted[at].float())
    return losses, g_MD


class Tally:
    """Sums of losses and counts of targets by medium and by task, over the micro-batches of a step."""

    def __init__(self, media: Sequence[str], tasks: Sequence[str]) -> None:
        self.names = (tuple(media), tuple(tasks))
        self.clear()

    def clear(self) -> None:
        """Forget everything counted."""
        self.sums = [torch.zeros(len(names), 2, dtype=torch.float64) for names in self.names]

    def add(self, losses_M: Tensor, media_M: Tensor, tasks_M: Tensor) -> None:
        """Count the losses [M] of targets with these indices of medium and task."""
        values = torch.stack([losses_M.double(), torch.ones_like(losses_M.double())], dim=1).cpu()
        for sums, index in zip(self.sums, (media_M, tasks_M), strict=True):
            sums.index_add_(0, index.cpu(), values)

    def means(self) -> tuple[dict[str, float], dict[str, float], int]:
        """Mean loss in nats of each medium and of each task that occurred, and the number of targets."""
        by_medium, by_task = (
            {
                name: float(total / count)
                for name, (total, count) in zip(names, sums.tolist(), strict=True)
                if count
            }
            for names, sums in zip(self.names, self.sums, strict=True)
        )
        return by_medium, by_task, int(self.sums[0][:, 1].sum())
