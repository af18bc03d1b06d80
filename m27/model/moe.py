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
        differs from call to call. Under autocast they move in the products' dtype: half of the bytes.
        """
        x_sorted, counts_E, order, home = sort(x_MD, chosen_Mk, len(self.gate_up_proj))
        return combine(self.sorted(x_sorted, counts_E), weights_Mk, order, home).to(x_MD.dtype)

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


def sort(x_MD: Tensor, chosen_Mk: Tensor, experts: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows of `x` for the experts that they chose, each expert's in one slice.

    Out: each of the M rows once for each of its k choices, in order of the experts [M*k, D], in the dtype of
    products; how many there are for each of the `experts` [E]; that order of the choices and its inverse [M*k].
    """
    flat_N = chosen_Mk.flatten()
    order_N = flat_N.argsort(stable=True)
    home_N = torch.empty_like(order_N)
    home_N[order_N] = torch.arange(len(order_N), device=order_N.device)
    # Not `bincount`, for whose length the host waits on a GPU.
    counts_E = flat_N.new_zeros(experts).index_add_(0, flat_N, torch.ones_like(flat_N))
    if torch.is_autocast_enabled(x_MD.device.type):
        x_MD = x_MD.to(torch.get_autocast_dtype(x_MD.device.type))
    x_ND: Tensor = _Spread.apply(x_MD, order_N, home_N, chosen_Mk.shape[1])
    return x_ND, counts_E, order_N, home_N


def combine(y_ND: Tensor, weights_Mk: Tensor, order_N: Tensor, home_N: Tensor) -> Tensor:
    """Each token's sum of what its k experts made of it, by `weights`; [M, D], in the wider of both dtypes.

    `y` are the rows that `sort` gave, gone through the experts; `order` and `home` as it gave them.
    """
    out: Tensor = _Combine.apply(y_ND, weights_Mk, order_N, home_N)
    return out


class _Spread(torch.autograd.Function):
    """Each of M rows k times, in the order of `order`; the gradient adds the k copies of a row up."""

    @staticmethod
    def forward(ctx: Any, x_MD: Tensor, order_N: Tensor, home_N: Tensor, top_k: int) -> Tensor:
        ctx.save_for_backward(home_N)
        ctx.top_k = top_k
        return x_MD.index_select(0, order_N // top_k)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None, None]:
        (home_N,) = ctx.saved_tensors
        return grads[0].index_select(0, home_N).unflatten(0, (-1, ctx.top_k)).sum(1), None, None, None


class _Combine(torch.autograd.Function):
    """`combine`; gradients go back in the dtype of the products, sums over the width in float32 at least."""

    @staticmethod
    def forward(ctx: Any, y_ND: Tensor, weights_Mk: Tensor, order_N: Tensor, home_N: Tensor) -> Tensor:
        ctx.save_for_backward(y_ND, weights_Mk, order_N, home_N)
        y_MkD = y_ND.index_select(0, home_N).unflatten(0, (-1, weights_Mk.shape[1]))
        return (y_MkD * weights_Mk[..., None]).sum(1)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, None, None]:
        y_ND, weights_Mk, order_N, home_N = ctx.saved_tensors
        top_k = weights_Mk.shape[1]
        g_ND = grads[0].to(y_ND.dtype).index_select(0, order_N // top_k)
        share_N = weights_Mk.flatten().index_select(0, order_N)
        dots_N = (g_ND * y_ND).sum(-1, dtype=torch.promote_types(weights_Mk.dtype, torch.float32))
        g_weights = dots_N.index_select(0, home_N).view_as(weights_Mk).to(weights_Mk.dtype)
        return g_ND * share_N.to(y_ND.dtype)[:, None], g_weights, None, None


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
