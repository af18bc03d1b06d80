"""Mixture of experts as in Qwen3-MoE: softmax router, best k experts a token, balancing loss.

Experts are held stacked; on disk they are one by one (see `checkpoint`). It knows nothing of
devices or ranks: `grouped` is the fast path and `loop` its oracle.

Shapes: M tokens (batch and time flattened), D width, E experts, F an expert's inner width, k
experts a token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m27.model.config import Config


class Experts(nn.Module):
    """The gated MLPs of all experts: `gate_up_proj` [E, 2F, D] and `down_proj` [E, D, F]."""

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

        On CUDA in bfloat16 the slices go through one grouped matrix product and the host never
        waits.
        """
        experts = self.gate_up_proj.shape[0]
        order = chosen_Mk.flatten().argsort(stable=True)
        token = order // chosen_Mk.shape[1]
        x_sorted = x_MD[token]
        counts_E = torch.bincount(chosen_Mk.flatten(), minlength=experts)
        if x_MD.is_cuda and x_MD.dtype == torch.bfloat16:
            ends_E = counts_E.cumsum(0).to(torch.int32)
            both = F.grouped_mm(x_sorted, self.gate_up_proj.transpose(1, 2), offs=ends_E)
            gate, up = both.chunk(2, dim=-1)
            y_sorted = F.grouped_mm(F.silu(gate) * up, self.down_proj.transpose(1, 2), offs=ends_E)
        else:
            slices = torch.split(x_sorted, counts_E.tolist())
            y_sorted = torch.cat([self.one(e, x) for e, x in enumerate(slices) if len(x)])
        share = y_sorted * weights_Mk.flatten()[order, None]
        return torch.zeros_like(x_MD).index_add(0, token, share.to(x_MD.dtype))


class MoE(nn.Module):
    """Router and experts in the place of a dense MLP."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.top_k, self.norm_topk = config.top_k, config.norm_topk
        self.gate = nn.Linear(config.dim, config.n_experts, bias=False)
        self.experts = Experts(config)

    def route(self, x_MD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Router logits [M, E], chosen experts [M, k] and their weights [M, k] of `x` [M, D]."""
        logits_ME = self.gate(x_MD)
        weights_Mk, chosen_Mk = logits_ME.float().softmax(-1).topk(self.top_k, dim=-1)
        if self.norm_topk:
            weights_Mk = weights_Mk / weights_Mk.sum(-1, keepdim=True)
        return logits_ME, chosen_Mk, weights_Mk.to(x_MD.dtype)

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, D] to [B, T, D], and the router logits [B*T, E] for the balancing loss."""
        x_MD = x_BTD.flatten(0, 1)
        logits_ME, chosen_Mk, weights_Mk = self.route(x_MD)
        return self.experts(x_MD, chosen_Mk, weights_Mk).view_as(x_BTD), logits_ME


def balancing_loss(routing: list[Tensor], top_k: int, keep_M: Tensor | None = None) -> Tensor:
    """How unevenly the experts are used, as a scalar: 1 when even, E/k when k experts take all.

    Over all layers together: E/k times the sum over experts of (share of tokens that chose it)
    times (its mean router probability). `routing` is what `Decoder.hidden` collected. `keep_M`
    (boolean [M]) leaves padding out. Source: Switch Transformer (Fedus et al. 2021), eq. 4, with
    the choices counted over k experts.
    """
    logits_LME = torch.stack(routing).float()
    probabilities = logits_LME.softmax(-1)
    if keep_M is not None:
        probabilities = probabilities[:, keep_M]
    experts = probabilities.shape[-1]
    chosen = F.one_hot(probabilities.topk(top_k, dim=-1).indices, experts).sum(-2)
    share_E = chosen.float().mean((0, 1))
    return experts * (share_E * probabilities.mean((0, 1))).sum() / top_k
