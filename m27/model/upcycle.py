"""From a dense decoder to experts and back: sparse upcycling, merging, folding of the shared expert.

All of it is a change of weights at rest: nothing here trains. What an upcycled model needs to begin as
the dense one is that the weights of a token's chosen experts sum to one, as they do with `norm_topk`.

Sources: sparse upcycling (Komatsuzaki et al. 2023); finer experts whose router begins tied in groups
(virtual groups, He et al. 2024); re-initialised inner units (Drop-Upcycling, Nakamura et al. 2025).

Shapes: D width, F a dense MLP's inner width, E experts, f an expert's inner width, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from m27.model.checkpoint import rebuilt, stock_tensors
from m27.model.config import Config, ConfigError
from m27.model.decoder import Decoder

_PARTS = ("gate", "up", "down")


@dataclass(frozen=True)
class Upcycling:
    """How a dense MLP becomes experts.

    Each MLP is cut into `split` pieces of its inner units, and `n_experts / split` copies are made of
    every piece, so expert e is piece e % split of copy e // split; with `split` = 1 every expert is a
    copy of the whole. `top_k` of them are active a token: `top_k / split` times the dense MLP's units.
    `shared_dim` inner units are set apart first, as a shared expert. A share `drop` of each expert's
    units is drawn anew, from the mean and spread of those they replace, so that experts can grow
    apart; with 0 the first forward equals the dense one, if `top_k` is a multiple of `split`.
    Router rows are drawn with `router_std`, the same for the pieces of a copy.
    """

    n_experts: int = 8
    top_k: int = 2
    split: int = 1
    shared_dim: int = 0
    drop: float = 0.0
    router_std: float = 0.02
    seed: int = 0

    def config(self, dense: Config) -> Config:
        """The shape that `dense` gets. Raises `ConfigError` naming what does not fit."""
        if dense.family == "llama":
            raise ConfigError(
                "upcycle: a Qwen3-MoE normalises queries and keys per head and a llama does not, so "
                "no choice of weights makes the two equal; begin from a checkpoint of family qwen3"
            )
        if dense.family != "qwen3":
            raise ConfigError(f"upcycle: {dense.family} has experts already")
        if self.split < 1 or self.n_experts % self.split:
            raise ConfigError(f"split: {self.split} does not divide n_experts {self.n_experts}")
        routed = dense.ffn_dim - self.shared_dim
        if not 0 <= self.shared_dim < dense.ffn_dim or routed % self.split:
            raise ConfigError(
                f"shared_dim: of {dense.ffn_dim} inner units, {routed} are left, which are not "
                f"{self.split} equal pieces"
            )
        if not 0 <= self.drop <= 1:
            raise ConfigError(f"drop: {self.drop} is no share between 0 and 1")
        return replace(
            dense, family="qwen3_moe", n_experts=self.n_experts, top_k=self.top_k,
            expert_dim=routed // self.split, shared_dim=self.shared_dim, norm_topk=True,
        )  # fmt: skip


@torch.no_grad()
def upcycle(dense: Decoder, plan: Upcycling) -> Decoder:
    """A decoder with experts that begins as `dense`; weights outside the MLPs are shared with it.

    Raises `ConfigError` for another family than qwen3 and for numbers that do not divide.
    """
    config = plan.config(dense.config)
    draw = torch.Generator().manual_seed(plan.seed)
    state = dict(dense.state_dict())
    for layer in range(config.n_layers):
        stem = f"model.layers.{layer}.mlp"
        gate, up, down = (state.pop(f"{stem}.{part}_proj.weight") for part in _PARTS)
        units = torch.stack((gate, up, down.t()))  # [3, F, D]: an inner unit is three vectors
        if plan.shared_dim:
            shared, units = units[:, : plan.shared_dim], units[:, plan.shared_dim :]
            for part, weight in zip(_PARTS, (shared[0], shared[1], shared[2].t()), strict=True):
                state[f"{stem}.shared.{part}_proj.weight"] = weight.contiguous()
        pieces = units.unflatten(1, (plan.split, -1)).transpose(0, 1)  # [split, 3, f, D]
        experts = pieces.repeat(config.n_experts // plan.split, 1, 1, 1)  # [E, 3, f, D]
        # Each of the chosen pieces weighs 1/split of what the whole copy weighs.
        experts[:, 2] *= plan.split
        if plan.drop:
            _redraw(experts, plan.drop, draw)
        state[f"{stem}.experts.gate_up_proj"] = experts[:, :2].flatten(1, 2)
        state[f"{stem}.experts.down_proj"] = experts[:, 2].transpose(1, 2).contiguous()
        rows = torch.randn(config.n_experts // plan.split, config.dim, generator=draw)
        router = (plan.router_std * rows).repeat_interleave(plan.split, 0)
        state[f"{stem}.gate.weight"] = router.to(gate.device, gate.dtype)
    return rebuilt(config, state, dense)


def _redraw(experts: Tensor, share: float, draw: torch.Generator) -> None:
    """Draw a share of each expert's inner units anew, in `experts` [E, 3, f, D], in place."""
    count = round(share * experts.shape[2])
    for units in experts:
        lost = torch.randperm(units.shape[1], generator=draw)[:count].to(units.device)
        for matrix in units:
            old = matrix[lost]
            noise = torch.randn(old.shape, generator=draw).to(old.device, old.dtype)
            # One unit has no spread of its own to speak of; the matrix's then stands in.
            spread = old.std() if old.numel() > 1 else matrix.std()
            matrix[lost] = old.mean() + spread * noise


@torch.no_grad()
def merge(model: Decoder, split: int = 1, load_LE: Tensor | None = None) -> Decoder:
    """A dense decoder (family qwen3) whose MLPs are the mean of the experts, weighted by their load.

    `load_LE` [L, E] is how often each expert was chosen, in any unit; even by default. `split` is that
    of the upcycling: the copies of each piece are averaged, and the pieces stand side by side again. A
    shared expert's units come first. An upcycled model that was not trained gives back its dense one.
    The mean of weights is not the mean of functions: distil afterwards (`m27.train.distil`).
    Raises `ConfigError` for a dense model, a `split` or a load that does not fit.
    """
    c = model.config
    if not c.n_experts:
        raise ConfigError("merge: this model has no experts")
    if split < 1 or c.n_experts % split:
        raise ConfigError(f"split: {split} does not divide n_experts {c.n_experts}")
    if not c.norm_topk:
        raise ConfigError("merge: the weights of a token's experts do not sum to one (norm_topk)")
    load_LE = torch.ones(c.n_layers, c.n_experts) if load_LE is None else load_LE.float()
    if load_LE.shape != (c.n_layers, c.n_experts):
        raise ConfigError(f"load: {list(load_LE.shape)}, not {[c.n_layers, c.n_experts]}")
    if not bool((load_LE >= 0).all()):
        raise ConfigError("load: a count below zero")
    ffn_dim = c.shared_dim + split * c.expert_dim
    config = replace(
        c, family="qwen3", n_experts=0, top_k=0, expert_dim=0, shared_dim=0, ffn_dim=ffn_dim
    )
    state = dict(model.state_dict())
    for layer in range(c.n_layers):
        stem = f"model.layers.{layer}.mlp"
        state.pop(f"{stem}.gate.weight")
        both = state.pop(f"{stem}.experts.gate_up_proj").unflatten(1, (2, -1))
        down = state.pop(f"{stem}.experts.down_proj").transpose(1, 2)[:, None] / split
        copies = torch.cat((both, down), 1).unflatten(0, (-1, split))  # [copies, split, 3, f, D]
        share = load_LE[layer].to(copies.device).view(-1, split)
        # A piece that nobody chose: its copies count alike.
        share = torch.where(share.sum(0) > 0, share, torch.ones_like(share))
        share = (share / share.sum(0)).to(copies.dtype)[..., None, None, None]
        # The first copy and what sets the others apart from it: equal copies give it back exactly.
        units = copies[0] + ((copies - copies[0]) * share).sum(0)  # [split, 3, f, D]
        units = units.transpose(0, 1).flatten(1, 2)
        if c.shared_dim:
            gate, up, shared_down = (state.pop(f"{stem}.shared.{p}_proj.weight") for p in _PARTS)
            units = torch.cat((torch.stack((gate, up, shared_down.t())), units), 1)
        for part, weight in zip(_PARTS, (units[0], units[1], units[2].t()), strict=True):
            state[f"{stem}.{part}_proj.weight"] = weight.contiguous()
    return rebuilt(config, state, model)


@torch.no_grad()
def fold(model: Decoder) -> Decoder:
    """The same function without a shared expert: its inner units stand in every other one.

    What `m27.model.checkpoint.save` writes. A selection bias is not carried over.
    """
    if not model.config.shared_dim:
        return model
    return rebuilt(model.config.folded, dict(stock_tensors(model)), model)


@torch.no_grad()
def unfold(model: Decoder, shared_dim: int) -> Decoder:
    """Undo `fold`: the last `shared_dim` inner units become a shared expert, to be trained on as such.

    Raises `ConfigError` where these units are not the same in all experts of a layer.
    """
    c = model.config
    if not 0 < shared_dim < c.expert_dim:
        raise ConfigError(f"shared_dim: {shared_dim} of an expert's {c.expert_dim} inner units")
    config = replace(c, expert_dim=c.expert_dim - shared_dim, shared_dim=shared_dim)
    state = dict(model.state_dict())
    for layer in range(c.n_layers):
        stem = f"model.layers.{layer}.mlp"
        both = state[f"{stem}.experts.gate_up_proj"].unflatten(1, (2, -1))
        down = state[f"{stem}.experts.down_proj"]
        own, shared = both[:, :, :-shared_dim], both[:, :, -shared_dim:]
        own_down, shared_down = down[:, :, :-shared_dim], down[:, :, -shared_dim:]
        for tensor in (shared, shared_down):
            if not torch.equal(tensor, tensor[:1].expand_as(tensor)):
                raise ConfigError(f"unfold: layer {layer} has no {shared_dim} units in common")
        state[f"{stem}.experts.gate_up_proj"] = own.flatten(1, 2)
        state[f"{stem}.experts.down_proj"] = own_down.contiguous()
        for part, weight in zip(_PARTS, (shared[0, 0], shared[0, 1], shared_down[0]), strict=True):
            state[f"{stem}.shared.{part}_proj.weight"] = weight.contiguous()
    return rebuilt(config, state, model)
