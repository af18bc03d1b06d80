"""How a router is trained: its losses, the balancing of the load, and who was chosen for what.

Two ways to keep experts evenly used, which can run side by side: a *selection bias* an expert, added
for the choice alone and moved by a fixed step against the sign of the load's error after each
optimiser step (no gradient; Wang et al. 2024, DeepSeek-V3), and the classic balancing loss (Switch,
Fedus et al. 2021). A stock Qwen3-MoE has no bias, so it is annealed to zero in the decay of the
schedule, where the loss keeps the balance: what is exported is then what was trained.

It knows router logits, not how the experts compute nor what a step is. Several ranks are served by a
`reduce` that adds a tensor up over them in place.

Shapes: L expert layers, E experts, M tokens of a micro-batch (padding too), k experts a token, C media.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from m27.data.loader import MEDIA, Batch
from m27.model.decoder import Decoder
from m27.model.moe import MoE, choose
from m27.train.optim import OptimConfig


@dataclass(frozen=True)
class RouterConfig:
    """The router's losses and the balancing of its load.

    `balance` weighs the balancing loss while the selection bias is at full strength, `balance_decay`
    once it is gone; between the two it changes evenly. `z` weighs the mean square of the router's
    log-sum-exp (ST-MoE, Zoph et al. 2022). `bias_step` is how far an expert's bias moves a step, in
    logits; 0 does without a bias. From the beginning of the schedule's decay the bias shrinks evenly,
    to nothing after the share `gone` of the decay. All losses are means over kept tokens and layers.
    """

    balance: float = 1e-3
    balance_decay: float = 1e-2
    z: float = 1e-3
    bias_step: float = 1e-2
    gone: float = 0.5


def strength(config: RouterConfig, optim: OptimConfig, progress: float) -> float:
    """The factor on the selection bias at `progress` in 0..1 of a run: 1, then evenly down to 0.

    Where the schedule has no decay, or a shorter one, it fades in the last tenth of the run all the same:
    what is exported has no bias, and the weights must have time to do without.
    """
    decay = max(optim.decay, 0.1)
    faded = (progress - (1 - decay)) / max(decay * config.gone, 1e-9)
    return min(max(1 - faded, 0.0), 1.0)


def balancing_loss(
    routing: Sequence[Tensor],
    top_k: int,
    keep_M: Tensor | None = None,
    bias_LE: Tensor | None = None,
    picked: Sequence[Tensor] | None = None,
) -> Tensor:
    """How unevenly the experts are used, as a scalar: 1 when even, E/k when k experts take all.

    For each layer E/k times the sum over experts of (share of tokens that chose it) times (its mean
    router probability); the mean over layers. `routing` holds router logits [M, E] of each layer;
    `keep_M` (boolean) leaves padding out; `bias_LE` is the selection bias under which was chosen, unless
    `picked` has what was. Source: Switch Transformer, eq. 4, with the choices counted over k experts.
    """
    total = routing[0].new_zeros((), dtype=torch.float32)
    if picked is None:
        picked = picks(routing, top_k, bias_LE)
    for logits_ME, chosen_Mk in zip(routing, picked, strict=True):
        experts = logits_ME.shape[1]
        keep, count = _kept(keep_M, logits_ME)
        share_E = (F.one_hot(chosen_Mk, experts).sum(1) * keep).sum(0) / count
        chance_E = (logits_ME.float().softmax(-1) * keep).sum(0) / count
        total = total + experts / top_k * (share_E * chance_E).sum()
    return total / len(routing)


@torch.no_grad()
def picks(routing: Sequence[Tensor], top_k: int, bias_LE: Tensor | None = None) -> list[Tensor]:
    """The chosen experts [M, k] of each layer, from its router logits [M, E].

    Numbers and not marks, [M, E], of which all layers' together would be gigabytes.
    """
    return [
        choose(logits_ME, top_k, None if bias_LE is None else bias_LE[layer])[1]
        for layer, logits_ME in enumerate(routing)
    ]


def _kept(keep_M: Tensor | None, logits_ME: Tensor) -> tuple[Tensor, Tensor]:
    """Which tokens count, as factors [M, 1], and how many do (at least one, so that nothing is 0/0).

    Factors and not an index: how long an index is, the host learns only by waiting for the device.
    """
    if keep_M is None:
        keep_M = torch.ones_like(logits_ME[:, 0])
    keep = keep_M.to(logits_ME.device, torch.float32)[:, None]
    return keep, keep.sum().clamp(min=1.0)


def z_loss(routing: Sequence[Tensor], keep_M: Tensor | None = None) -> Tensor:
    """The mean over tokens and layers of the squared log-sum-exp of router logits: keeps them small."""
    total = routing[0].new_zeros((), dtype=torch.float32)
    for logits_ME in routing:
        keep, count = _kept(keep_M, logits_ME)
        total = total + (logits_ME.float().logsumexp(-1).square() * keep[:, 0]).sum() / count
    return total / len(routing)


def router_losses(
    routing: Sequence[Tensor],
    config: RouterConfig,
    top_k: int,
    keep_M: Tensor | None = None,
    bias_LE: Tensor | None = None,
    strength: float = 1.0,
    picked: Sequence[Tensor] | None = None,
) -> dict[str, Tensor]:
    """The router's weighted losses by name ("balance", "z"), to be added to the loss of a micro-batch.

    Those of weight zero are left out, and a dense model (`routing` empty) has none. `strength` is the
    selection bias's, 0 when there is none; see `RouterConfig`.
    """
    out: dict[str, Tensor] = {}
    if not routing:
        return out
    weight = config.balance_decay + (config.balance - config.balance_decay) * strength
    if weight > 0:
        out["balance"] = weight * balancing_loss(routing, top_k, keep_M, bias_LE, picked)
    if config.z > 0:
        out["z"] = config.z * z_loss(routing, keep_M)
    return out


def token_media(ids: Tensor, vocabulary: Mapping[str, Any]) -> Tensor:
    """The index in `MEDIA` of each id, same shape; `vocabulary` is that of a corpus's `meta`."""
    text, turn_end = vocabulary["text"], vocabulary["turn_end"]
    out = ((ids >= text) | (ids == turn_end)).long() * MEDIA.index("control")
    for medium in ("image", "audio"):
        begin, end = vocabulary[medium]
        out = torch.where((ids >= begin) & (ids < end), MEDIA.index(medium), out)
    return out


@dataclass(frozen=True)
class Load:
    """How often each expert was chosen: `counts_LEC` by layer, expert and medium (int64, on the host)."""

    counts_LEC: Tensor

    def by_layer(self) -> list[float]:
        """Largest over mean load of each layer's experts; 1 is even, E/k the worst."""
        return [_uneven(counts_E) for counts_E in self.counts_LEC.sum(-1)]

    def by_medium(self) -> dict[str, list[float]]:
        """The same over the tokens of one medium, by layer; media that did not occur are left out."""
        return {
            medium: [_uneven(counts_E) for counts_E in self.counts_LEC[..., index]]
            for index, medium in enumerate(MEDIA)
            if bool(self.counts_LEC[..., index].any())
        }

    def idle(self) -> int:
        """How many experts, over all layers, were chosen by nobody."""
        return int((self.counts_LEC.sum(-1) == 0).sum())

    def record(self) -> dict[str, object]:
        """Rounded figures for a log: by layer, by medium (mean and worst layer), experts idle."""
        media = self.by_medium()
        return {
            "layers": {str(i): round(value, 3) for i, value in enumerate(self.by_layer())},
            "media": {
                name: {"mean": round(sum(values) / len(values), 3), "worst": round(max(values), 3)}
                for name, values in media.items()
            },
            "idle": self.idle(),
        }


def _uneven(counts_E: Tensor) -> float:
    mean = float(counts_E.double().mean())
    return float(counts_E.max()) / mean if mean else 1.0


class Balancer:
    """Counts the choices of every expert layer of `decoder`, and moves the selection bias.

    Called once a micro-batch with the router logits it counts and gives what to add to the loss; `update`
    once an optimiser step. The bias lies in each layer's `MoE.bias_E`, a view of one tensor held here,
    where the decoder lies when this is made. `vocabulary` (that of a corpus's `meta`) tells the media
    apart. `reduce` adds an int64 tensor up over ranks, in place; it is called once an `update`, so every
    rank moves its bias alike. A dense decoder is fine: then nothing is done.
    """

    def __init__(
        self,
        decoder: Decoder,
        config: RouterConfig,
        vocabulary: Mapping[str, Any] | None = None,
        reduce: Callable[[Tensor], object] | None = None,
    ) -> None:
        self.config, self.vocabulary, self.reduce = config, vocabulary, reduce
        self.layers = [module for module in decoder.modules() if isinstance(module, MoE)]
        experts = self.layers[0].gate.weight.shape[0] if self.layers else 0
        self.top_k = self.layers[0].top_k if self.layers else 0
        device = self.layers[0].gate.weight.device if self.layers else torch.device("cpu")
        shape = (len(self.layers), experts)
        self.strength = 1.0 if config.bias_step > 0 else 0.0
        self.bias_LE = torch.zeros(shape, device=device)
        self.applied_LE = torch.zeros(shape, device=device)
        self._fresh = torch.zeros(*shape, len(MEDIA), dtype=torch.int64, device=device)
        self._total = torch.zeros_like(self._fresh)
        for layer, moe in enumerate(self.layers):
            moe.bias_E = self.applied_LE[layer] if config.bias_step > 0 else None

    def __call__(self, routing: Sequence[Tensor], batch: Batch) -> Tensor:
        """Count a micro-batch's choices; back comes the sum of its router losses, a scalar."""
        ids_M = batch.ids_BT.flatten()
        keep_M = (batch.documents_BT.flatten() >= 0).to(ids_M.device)
        media_M = token_media(ids_M, self.vocabulary) if self.vocabulary else None
        picked = self.picks(routing)
        self.observe(routing, keep_M, media_M, picked)
        losses = self.losses(routing, keep_M, picked)
        return sum(losses.values(), torch.zeros((), device=ids_M.device))

    def picks(self, routing: Sequence[Tensor]) -> list[Tensor]:
        """Who was chosen, by layer, as `picks` gives it, under the bias that is applied."""
        return picks(routing, self.top_k, self._bias)

    def losses(
        self, routing: Sequence[Tensor], keep_M: Tensor | None = None, picked: Sequence[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """`router_losses` under the present bias and strength; `picked` where it is known already."""
        return router_losses(routing, self.config, self.top_k, keep_M, self._bias, self.strength, picked)

    @property
    def _bias(self) -> Tensor | None:
        return self.applied_LE if self.config.bias_step > 0 else None

    @torch.no_grad()
    def observe(
        self,
        routing: Sequence[Tensor],
        keep_M: Tensor | None = None,
        media_M: Tensor | None = None,
        picked: Sequence[Tensor] | None = None,
    ) -> None:
        """Count the choices that a micro-batch's router logits make; `media_M` indexes `MEDIA` (text by
        default), `keep_M` (boolean) leaves padding out; `picked` where it is known already. Never waits for the
        device."""
        experts = self._fresh.shape[1]
        for layer, chosen_Mk in enumerate(self.picks(routing) if picked is None else picked):
            picked_ME = F.one_hot(chosen_Mk, experts).sum(1)
            if keep_M is not None:
                picked_ME = picked_ME * keep_M[:, None]
            if media_M is None:
                self._fresh[layer, :, MEDIA.index("text")] += picked_ME.sum(0)
                continue
            by_medium = torch.zeros_like(self._fresh[layer]).t().contiguous()
            self._fresh[layer] += by_medium.index_add_(0, media_M, picked_ME).t()

    @torch.no_grad()
    def update(self, strength: float = 1.0) -> None:
        """After an optimiser step: move the bias by the choices since the last call, and apply it.

        `strength` in 0..1 is the share of the bias that is applied from now on (`strength`, the
        function, follows a schedule); below 1 the bias itself stands still.
        """
        if not self.layers:
            return
        if self.reduce is not None:
            self.reduce(self._fresh)
        if self.config.bias_step > 0:
            load_LE = self._fresh.sum(-1).float()
            if strength >= 1:
                error_LE = load_LE.mean(-1, keepdim=True) - load_LE
                self.bias_LE += self.config.bias_step * error_LE.sign()
            self.strength = strength
            self.applied_LE.copy_(self.bias_LE * strength)
        self._total += self._fresh
        self._fresh.zero_()

    def forget(self) -> None:
        """Drop the choices since the last `update`: of micro-batches gone through for nothing."""
        self._fresh.zero_()

    def load(self, clear: bool = False) -> Load:
        """The choices counted by `update` since the last clearing, over all ranks."""
        found = Load(self._total.cpu().clone())
        if clear:
            self._total.zero_()
        return found

    def state(self) -> dict[str, Tensor]:
        """All that a resumed run needs, by name; the counts of an unfinished step too."""
        if not self.layers:
            return {}
        return {
            "router.bias": self.bias_LE,
            "router.applied": self.applied_LE,
            "router.strength": torch.tensor(self.strength, dtype=torch.float64),
            "router.fresh": self._fresh,
            "router.total": self._total,
        }

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave. Raises ValueError for another number of layers or experts."""
        for name, mine in self.state().items():
            if name not in tensors or tensors[name].shape != mine.shape:
                found = list(tensors[name].shape) if name in tensors else "missing"
                raise ValueError(f"{name}: {found}, this model asks for {list(mine.shape)}")
            if name == "router.strength":
                self.strength = float(tensors[name])
            else:
                mine.copy_(tensors[name])


@dataclass(frozen=True)
class ExportChange:
    """What a stock checkpoint, which has no selection bias, would change.

    `rerouted` is by layer the share of tokens whose set of experts differs (each layer fed by what the
    layers before it then give); `divergence` the mean KL(trained ‖ exported) in nats a token, and
    `logits` the largest difference of a logit.
    """

    rerouted: list[float]
    divergence: float
    logits: float


@torch.no_grad()
def export_change(
    decoder: Decoder, ids_BT: Tensor, documents_BT: Tensor | None = None
) -> ExportChange:
    """By how much exporting `decoder` as it stands, its selection bias left out, would change its outputs
    over ids [B, T]. All zero once the bias is annealed. Costs two forwards and their full logits."""
    layers = [module for module in decoder.modules() if isinstance(module, MoE)]
    held = [moe.bias_E for moe in layers]
    keep = torch.ones_like(ids_BT, dtype=torch.bool) if documents_BT is None else documents_BT >= 0
    keep_M = keep.flatten().to(ids_BT.device)
    outcomes = []
    try:
        for biases in (held, [None] * len(layers)):
            for moe, bias_E in zip(layers, biases, strict=True):
                moe.bias_E = bias_E
            routing: list[Tensor] = []
            h_BTD = decoder.hidden(decoder.embed(ids_BT), None, documents_BT, routing=routing)
            logits = decoder.logits(h_BTD.flatten(0, 1)[keep_M]).float()
            sets = [
                F.one_hot(choose(r[keep_M], m.top_k, m.bias_E)[1], r.shape[-1]).sum(1)
                for r, m in zip(routing, layers, strict=True)
            ]
            outcomes.append((logits, sets))
    finally:
        for moe, bias_E in zip(layers, held, strict=True):
            moe.bias_E = bias_E
    (ours, chosen), (theirs, other) = outcomes
    rerouted = [float((a != b).any(-1).float().mean()) for a, b in zip(chosen, other, strict=True)]
    p = ours.log_softmax(-1)
    apart = (p.exp() * (p - theirs.log_softmax(-1))).sum(-1).mean()
    return ExportChange(rerouted, float(apart), float((ours - theirs).abs().max()))
