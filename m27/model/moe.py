"""Mixture of experts as in Qwen3-MoE: softmax router, best k experts a token; and two things for training.

A *shared* expert that every token passes, and a *selection bias* that moves the choice of experts and
not their weights (DeepSeek-V3, 2024). The stock architecture knows neither: `checkpoint.save` folds the
first into the experts, and `m27.train.routing` takes the second back to zero before a run ends.
Experts are held stacked; on disk they are one by one (see `checkpoint`). This module knows nothing of
devices or ranks, nor how the router is trained: `grouped` is the fast path and `loop` its oracle.

Shapes: M tokens (batch and time flattened), D width, E experts, F an expert's inner width, k
experts a token.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m27.model.config import Config
from m27.model.layers import MLP


class Experts(nn.Module):
    """The gated MLPs of all experts: `gate_up_proj` [E, 2F, D] and `down_proj` [E, D, F].

    Called as `experts(x_MD, chosen_Mk, weights_Mk)`, which is all that `MoE` asks of it: whoever lays
    the experts out over several ranks puts another module, or another `forward`, in this place.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        e, d, f = config.n_experts, config.dim, config.expert_dim
        self.gate_up_proj = nn.Parameter(torch.empty(e, 2 * f, d))
        self.down_proj = nn.Parameter(torch.empty(e, d, f))

    def forward(self, x_MD: Tensor, chosen_Mk: Tensor, weights_Mk: Tensor) -> Tensor:
        """The weighted sum of what the chosen experts make of `x` [M, D]; [M, D]."""
        return self.grouped(x_MD, chosen_Mk, weights_Mk)

    def one(self, expert: int, x_MD: Tensor) -> Tensor:
        """What one expert makes of `x` [M, D]; [M, D]."""
        gate, up = F.linear(x_MD, self.gate_up_proj[expert]).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, self.down_proj[expert])

    def loop(self, x_MD: Tensor, chosen_Mk: Tensor, weights_Mk: Tensor) -> Tensor:
        """The plain reading: every expert in turn over the tokens that chose it; [M, D]."""
        y_MD = torch.zeros_like(x_MD)
        for expert in range(self.gate_up_proj.shape[0]):
            token, slot = (chosen_Mk == expert).nonzero(as_tuple=True)
            share = self.one(expert, x_MD[token]) * weights_Mk[token, slot, None]
            y_MD = y_MD.index_add(0, token, share.to(x_MD.dtype))
        return y_MD

    def grouped(self, x_MD: Tensor, chosen_Mk: Tensor, weights_Mk: Tensor) -> Tensor:
        """The same with tokens sorted by expert, so that each expert reads one slice; [M, D].

        Rows move by permutations alone, forwards and backwards: nothing is added up in an order that
        differs from call to call.
        """
        top_k = chosen_Mk.shape[1]
        flat = chosen_Mk.flatten()
        order = flat.argsort(stable=True)
        home = torch.empty_like(order)
        home[order] = torch.arange(len(order), device=order.device)
        # Not `bincount`, for whose length the host waits on a GPU.
        counts_E = flat.new_zeros(len(self.gate_up_proj)).index_add_(0, flat, torch.ones_like(flat))
        x_sorted = spread(x_MD, order, home, top_k)
        y_sorted = self.sorted(x_sorted, counts_E)
        y_MkD = permute(y_sorted, home, order).unflatten(0, (-1, top_k))
        return (y_MkD * weights_Mk[..., None]).sum(1).to(x_MD.dtype)

    def sorted(self, x_ND: Tensor, counts_E: Tensor) -> Tensor:
        """Rows `x` [N, D] of which the first `counts[0]` go through expert 0, and so on; [N, D].

        One grouped matrix product a layer of the MLP where torch has one (the host then never waits
        for a GPU), else one product an expert. Measured on two CPU cores the grouped product, forward
        and backward, takes 1.07 to 1.15 times a dense one of as many operations.
        """
        gate_up: Tensor = self.gate_up_proj
        down: Tensor = self.down_proj
        if torch.is_autocast_enabled(x_ND.device.type):
            narrow = torch.get_autocast_dtype(x_ND.device.type)
            x_ND, gate_up, down = x_ND.to(narrow), gate_up.to(narrow), down.to(narrow)
        if _has_grouped(x_ND, down):
            ends_E = counts_E.cumsum(0).to(torch.int32)
            both = F.grouped_mm(x_ND, gate_up.transpose(1, 2), offs=ends_E)
            gate, up = both.chunk(2, dim=-1)
            return F.grouped_mm(F.silu(gate) * up, down.transpose(1, 2), offs=ends_E)
        out = []
        slices = x_ND.split(counts_E.tolist())
        # `unbind` once: indexing an expert at a time makes a gradient of all experts for each.
        for x, both_FD, down_DF in zip(slices, gate_up.unbind(0), down.unbind(0), strict=True):
            gate, up = F.linear(x, both_FD).chunk(2, dim=-1)
            out.append(F.linear(F.silu(gate) * up, down_DF))
        return torch.cat(out)


def _has_grouped(x_ND: Tensor, down_EDF: Tensor) -> bool:
    """Whether `F.grouped_mm` takes these: rows of a multiple of 16 bytes; on CUDA, and where a compiler
    traces it, bfloat16 alone."""
    widths = x_ND.shape[1], down_EDF.shape[2]
    aligned = all(width * x_ND.dtype.itemsize % 16 == 0 for width in widths) and len(x_ND) > 0
    narrow = x_ND.dtype == torch.bfloat16
    single = x_ND.dtype == torch.float32 and not torch.compiler.is_compiling()
    on_cpu = x_ND.device.type == "cpu" and (narrow or single)
    return aligned and (on_cpu or (x_ND.is_cuda and narrow))


class _Permute(torch.autograd.Function):
    """Rows in the order of `index`; the gradient's rows in that of `back`, its inverse."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, index: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return x_ND.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        return grads[0].index_select(0, back), None, None


class _Spread(torch.autograd.Function):
    """Each of M rows k times, in the order of `order`; the gradient adds the k copies of a row up."""

    @staticmethod
    def forward(ctx: Any, x_MD: Tensor, order: Tensor, home: Tensor, top_k: int) -> Tensor:
        ctx.save_for_backward(home)
        ctx.top_k = top_k
        return x_MD.index_select(0, order // top_k)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None, None]:
        (home,) = ctx.saved_tensors
        return grads[0].index_select(0, home).unflatten(0, (-1, ctx.top_k)).sum(1), None, None, None


def permute(x_ND: Tensor, index: Tensor, back: Tensor) -> Tensor:
    """Rows of `x` in the order of `index` [N], a permutation whose inverse is `back`."""
    out: Tensor = _Permute.apply(x_ND, index, back)
    return out


def spread(x_MD: Tensor, order: Tensor, home: Tensor, top_k: int) -> Tensor:
    """Each row of `x` once for each of its k choices, choices in the order of `order` [M*k]; [M*k, D]."""
    out: Tensor = _Spread.apply(x_MD, order, home, top_k)
    return out


def choose(logits_ME: Tensor, top_k: int, bias_E: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Probabilities of the chosen experts and their numbers, both [M, k], likeliest first.

    `bias` is added to the logits for the choice alone. (DeepSeek-V3 adds it to scores between 0 and 1;
    on the logits its step means the same whatever the number of experts.)
    """
    chances_ME = logits_ME.float().softmax(-1)
    if bias_E is None:
        best = chances_ME.topk(top_k, dim=-1)
        return best.values, best.indices
    chosen_Mk = (logits_ME.float() + bias_E).topk(top_k, dim=-1).indices
    return chances_ME.gather(1, chosen_Mk), chosen_Mk


class MoE(nn.Module):
    """Router and experts in the place of a dense MLP.

    `shared` is the MLP that every token passes besides, or None. `bias_E`, float32 [E] or None, moves
    the choice; it is no parameter and in no checkpoint, but held and moved by who balances the load.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.top_k, self.norm_topk = config.top_k, config.norm_topk
        self.gate = nn.Linear(config.dim, config.n_experts, bias=False)
        self.experts = Experts(config)
        self.shared = MLP(config.dim, config.shared_dim) if config.shared_dim else None
        self.bias_E: Tensor | None = None

    def route(self, x_MD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Router logits [M, E], chosen experts [M, k] and their weights [M, k] of `x` [M, D]."""
        logits_ME = self.gate(x_MD)
        weights_Mk, chosen_Mk = choose(logits_ME, self.top_k, self.bias_E)
        if self.norm_topk:
            total_M1 = weights_Mk.sum(-1, keepdim=True)
            # A single expert's weight is one whatever the router says; so that the router learns from it
            # all the same, the gradient is that of its probability.
            weights_Mk = weights_Mk / (total_M1.detach() if self.top_k == 1 else total_M1)
        return logits_ME, chosen_Mk, weights_Mk.to(x_MD.dtype)

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, D] to [B, T, D], and the router logits [B*T, E] for losses and statistics."""
        x_MD = x_BTD.flatten(0, 1)
        logits_ME, chosen_Mk, weights_Mk = self.route(x_MD)
        y_MD = self.experts(x_MD, chosen_Mk, weights_Mk)
        if self.shared is not None:
            y_MD = y_MD + self.shared(x_MD)
        return y_MD.view_as(x_BTD), logits_ME
