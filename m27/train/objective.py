"""Cross-entropy over a long vocabulary, in pieces, with its gradient written out; losses by medium and task.

A target is scored among all ids or among those of some spans, which costs only their rows. Also the
divergence from a base model, for text that should stay as it was. The logits of all targets never exist at
once, and frozen rows get no gradient. The oracle is `torch.nn.functional` over the full logits.

Shapes: M targets, V vocabulary, S ids of the spans, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from m27.train.cpu.half import Half

Spans = Sequence[tuple[int, int]]  # half-open ranges of ids, ascending and apart


def piece_size(device: str, columns: int) -> int:
    """How many targets are scored among `columns` ids at a time: on a GPU many, since each piece is a few
    launches, but of a long vocabulary no more than 2 GB of float32 logits."""
    return 512 if device == "cpu" else max(512, min(8192, (1 << 29) // columns))


@torch.no_grad()
def cross_entropy(
    h_MD: Tensor,
    table_VD: Tensor,
    targets_M: Tensor,
    weights_M: Tensor,
    first: int,
    grad_VD: Tensor,
    piece: int | None = None,
    spans: Spans | None = None,
    z_loss: float = 0.0,
    half: Half | None = None,
) -> tuple[Tensor, Tensor]:
    """Losses [M] in nats (unweighted, float32) and the gradient [M, D] of sum(weights * losses).

    With `z_loss` the gradients, and they alone, are of sum(weights * (losses + z_loss * log(z)²)), z the
    sum of the logits' exponentials, which so does not drift (Chowdhery et al. 2022).

    `table_VD` are the output rows in the dtype of `h_MD`; the gradient of those from `first` on is added
    to `grad_VD` [V - first, D] (float32), the others are frozen. With `spans` the softmax runs over the
    ids within them alone, and every target must be one of them. `piece` targets are done at a time. With
    `half` products go through C++, and `table_VD` may be float32.
    """
    spans = ((0, len(table_VD)),) if spans is None else tuple(spans)
    parts = [table_VD[begin:end] for begin, end in spans]
    rows_SD = parts[0] if len(parts) == 1 else torch.cat(parts)
    local_M = torch.zeros_like(targets_M)
    offset = 0
    for begin, end in spans:
        inside = (targets_M >= begin) & (targets_M < end)
        local_M = torch.where(inside, targets_M - begin + offset, local_M)
        offset += end - begin
    losses = torch.empty(len(h_MD), dtype=torch.float32, device=h_MD.device)
    g_MD = torch.empty_like(h_MD)
    piece = piece or piece_size(h_MD.device.type, len(rows_SD))
    for begin in range(0, len(h_MD), piece):
        window = slice(begin, begin + piece)
        if half is not None:
            h = h_MD[window]
            d = half.room("scores", len(h) * len(rows_SD), h.dtype).view(len(h), -1)
            half.product(h, rows_SD.t(), d)
            losses[window] = half.entropy(d, local_M[window], weights_M[window], z_loss)
            half.product(d, rows_SD, g_MD[window])
            for columns, rows in _trained(spans, first):
                half.product(d[:, columns].t(), h, grad_VD[rows], grad_VD[rows])
            continue
        h, weight = h_MD[window], weights_M[window, None].to(h_MD.dtype)
        logits = h @ rows_SD.t()
        if logits.device.type == "cuda":  # in bfloat16 what is left of a sure answer's loss is rounding
            logits = logits.float()
        p = torch.softmax(logits, dim=-1)
        hit = p.gather(1, local_M[window, None])
        losses[window] = -hit.flatten().float().clamp_min(1e-30).log()
        if z_loss:  # d log(z)² / d logits is 2 log(z) p
            p = p * (1 + 2 * z_loss * logits.float().logsumexp(-1, keepdim=True)).to(p.dtype)
        # d loss / d logits is p - 1 at the target; scaling h instead of p spares a pass over [m, S].
        own = rows_SD.index_select(0, local_M[window])
        p = p.to(h.dtype)
        g_MD[window] = (p @ rows_SD - own) * weight
        weighted = h * weight
        for columns, rows in _trained(spans, first):
            grad_VD[rows] += p[:, columns].t() @ weighted
        _subtract_targets(grad_VD, targets_M[window], first, weighted)
    return losses, g_MD


@torch.no_grad()
def divergence(
    h_MD: Tensor,
    table_VD: Tensor,
    base_MD: Tensor,
    targets_M: Tensor,
    weights_M: Tensor,
    share_M: Tensor,
    first: int,
    grad_VD: Tensor,
    piece: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropies [M] and KL(base ‖ tuned) [M], in nats, and the gradient [M, D] of their mixture.

    The mixture is sum(weights * ((1 - share) * cross-entropy + share * KL)). The base's distribution is
    that of its states `base_MD` over the text rows, those before `first`; the tuned one runs over the
    whole vocabulary, so mass on ids that the base does not have counts as divergence. Else as
    `cross_entropy`.
    """
    losses = torch.empty(len(h_MD), dtype=torch.float32, device=h_MD.device)
    apart, g_MD = torch.empty_like(losses), torch.empty_like(h_MD)
    piece = piece or piece_size(h_MD.device.type, len(table_VD))
    for begin in range(0, len(h_MD), piece):
        window = slice(begin, begin + piece)
        h, target = h_MD[window], targets_M[window, None]
        weight, share = weights_M[window, None].to(h.dtype), share_M[window, None].float()
        # float32 from the logits on: where the two agree, little of either is left of the difference.
        log_q = torch.log_softmax((h @ table_VD.t()).float(), dim=-1)
        log_p = torch.log_softmax((base_MD[window] @ table_VD[:first].t()).float(), dim=-1)
        losses[window] = -log_q.gather(1, target).flatten()
        p = log_p.exp()
        apart[window] = (p * (log_p - log_q[:, :first])).sum(-1)
        d = log_q.exp_()
        d[:, :first] -= share * p
        d.scatter_add_(1, target, share - 1)
        d = d.to(h.dtype)
        g_MD[window] = (d @ table_VD) * weight
        grad_VD += d[:, first:].t() @ (h * weight)
    return losses, apart, g_MD


def _trained(spans: Spans, first: int) -> Iterator[tuple[slice, slice]]:
    """For each span's trained ids, their columns among the spans' ids and their rows of the gradient."""
    offset = 0
    for begin, end in spans:
        skip = max(first - begin, 0)
        if begin + skip < end:
            columns = slice(offset + skip, offset + end - begin)
            yield columns, slice(begin + skip - first, end - first)
        offset += end - begin


def _subtract_targets(grad_VD: Tensor, targets_M: Tensor, first: int, weighted_MD: Tensor) -> None:
    """Take each trained target's own share off its row; nothing here waits for the device."""
    if not len(grad_VD):
        return
    trained = (targets_M >= first)[:, None]
    at = torch.remainder(targets_M - first, len(grad_VD))  # zeros of the others go anywhere
    grad_VD.index_add_(0, at, torch.where(trained, -weighted_MD, 0.0).float())


@torch.no_grad()
def target_losses(
    h_MD: Tensor, table_VD: Tensor, targets_M: Tensor, spans: Spans | None = None, piece: int = 8192
) -> Tensor:
    """The losses [M] that `cross_entropy` gives, alone and with float32 products.

    What two models say of a target is subtracted where answers are compared, and rounding of logits to
    bfloat16 would be most of what is left. `piece` rows of the vocabulary are widened at a time.
    """
    wide_MD = h_MD.float()
    spans = ((0, len(table_VD)),) if spans is None else spans
    pieces = [(i, min(i + piece, end)) for begin, end in spans for i in range(begin, end, piece)]
    parts = [(wide_MD @ table_VD[i:end].float().t()).logsumexp(-1) for i, end in pieces]
    own_M = (wide_MD * table_VD.index_select(0, targets_M).float()).sum(-1)
    return torch.stack(parts).logsumexp(0) - own_M


class Tally:
    """Sums of losses and counts of targets by medium and by task, over the micro-batches of a step.

    Sums stay on the losses' device until they are asked for. `divergence` counts apart from both, and so
    do the figures of pairs of answers.
    """

    def __init__(self, media: Sequence[str], tasks: Sequence[str]) -> None:
        self.names = (tuple(media), tuple(tasks))
        self.clear()

    def clear(self) -> None:
        """Forget everything counted."""
        self.sums = [torch.zeros(len(names), 2, dtype=torch.float64) for names in self.names]
        self._apart = torch.zeros(2, dtype=torch.float64)
        self._pairs = torch.zeros(5, dtype=torch.float64)

    def add(self, losses_M: Tensor, media_M: Tensor, tasks_M: Tensor) -> None:
        """Count the losses [M] of targets with these indices of medium and task."""
        device = losses_M.device
        values = torch.stack([losses_M.double(), torch.ones_like(losses_M.double())], dim=1)
        for i, index in enumerate((media_M, tasks_M)):
            self.sums[i] = self.sums[i].to(device).index_add_(0, index, values)

    def add_divergence(self, apart_M: Tensor) -> None:
        """Count the divergences [M] of some targets."""
        total = apart_M.double().sum()
        counted = torch.stack([total, torch.full_like(total, len(apart_M))])
        self._apart = self._apart.to(counted.device) + counted

    def over(self, summed: Callable[[Tensor], Tensor]) -> None:
        """Sum what was counted over several ranks, each tensor by `summed`."""
        self.sums = [summed(held) for held in self.sums]
        self._apart, self._pairs = summed(self._apart), summed(self._pairs)

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

    def mean_divergence(self) -> float | None:
        """Mean divergence in nats, or None where none was counted."""
        total, count = self._apart.tolist()
        return total / count if count else None

    def add_pairs(self, figures_P4: Tensor) -> None:
        """Count pairs by the rewards of their chosen and rejected answers and their log-probabilities [P, 4]."""
        chosen, rejected, own, other = figures_P4.double().unbind(1)
        # A tie is half right, so that a model that has learnt nothing stands at one half.
        right, likelier = ((a > b).double() + (a == b) / 2 for a, b in ((chosen, rejected), (own, other)))
        counted = torch.stack([chosen, rejected, right, likelier, torch.ones_like(right)]).sum(1)
        self._pairs = self._pairs.to(counted.device) + counted

    def mean_pairs(self) -> dict[str, float] | None:
        """Of the pairs counted, or None: mean rewards, their margin, in how many the chosen answer's reward
        is the higher (`accuracy`), and in how many it is the likelier answer (`likelier`)."""
        *sums, count = self._pairs.tolist()
        if not count:
            return None
        chosen, rejected, accuracy, likelier = (value / count for value in sums)
        return {
            "accuracy": accuracy, "margin": chosen - rejected, "chosen": chosen, "rejected": rejected,
            "likelier": likelier,
        }  # fmt: skip
