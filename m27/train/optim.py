"""AdamW with a learning rate a group, Muon for hidden matrices, gradient clipping, an average of the weights,
and schedules by steps or by the clock.

Shapes: none; parameters of any shape, by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from m27.train.average import Average
from m27.train.muon import Muon, Ranks, is_hidden


class OptimError(ValueError):
    """Settings of the optimiser that suit no parameter of the run."""


@dataclass(frozen=True)
class OptimConfig:
    """AdamW (Loshchilov & Hutter 2019) or Muon (Jordan et al. 2024), and the schedule.

    With `kind` "muon" hidden matrices are moved by `m27.train.muon` at `momentum`, at the rate and the
    weight decay that AdamW has for all others. `weight_decay` is of matrices, not of vectors. `lr` is the
    peak rate of the adapters (or of all weights), `map_lr` of the code maps, `control_lr` of the control
    rows. `schedule` "wsd" warms up over the share `warmup` of the run, holds, and decays over the share
    `decay` to `floor` times the peak; "cosine" decays from the warm-up's end. `clip` bounds the norm of the
    whole gradient; 0 does not. `average` is the decay of the weights' moving average, 0 for none.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-3
    map_lr: float = 2e-3
    control_lr: float = 2e-3
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-8
    momentum: float = 0.95
    weight_decay: float = 0.0
    clip: float = 1.0
    schedule: Literal["wsd", "cosine", "constant"] = "wsd"
    warmup: float = 0.03
    decay: float = 0.25
    floor: float = 0.02
    average: float = 0.0


def factor(config: OptimConfig, progress: float) -> float:
    """The schedule's factor on the peak rate, at `progress` in 0..1 of the run.

    The decay of "wsd" goes as 1 - sqrt (Hägele et al. 2024).
    """
    progress = min(max(progress, 0.0), 1.0)
    if config.warmup > 0 and progress < config.warmup:
        return max(progress / config.warmup, 1e-3)
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "cosine":
        done = (progress - config.warmup) / max(1 - config.warmup, 1e-9)
        return config.floor + (1 - config.floor) * 0.5 * (1 + math.cos(math.pi * done))
    begin = 1 - config.decay
    if config.decay <= 0 or progress <= begin:
        return 1.0
    return config.floor + (1 - config.floor) * (1 - math.sqrt((progress - begin) / config.decay))


class Optimiser:
    """The update of named parameters, whose whole state is a flat dictionary of tensors.

    `adamw` moves what Muon does not. Parameters may be parts that `ranks` knows the whole of. Raises
    OptimError for "muon" where no hidden matrix is trained.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], config: OptimConfig, ranks: Ranks | None = None
    ) -> None:
        self.config, self.ranks = config, ranks
        self.parameters = dict(parameters)
        hidden = {n: p for n, p in self.parameters.items() if config.kind == "muon" and is_hidden(n, p)}
        if config.kind == "muon" and not hidden:
            raise OptimError("optim.kind=muon: the run trains no hidden matrix; it goes with body=full")
        self.muon = Muon(hidden, config.momentum, config.weight_decay, ranks=ranks)
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.parameters.items():
            if name not in hidden:
                decay = config.weight_decay if parameter.dim() > 1 else 0.0
                groups.setdefault((_peak(config, name), decay), []).append(parameter)
        self.peaks = [peak for peak, _ in groups]
        self.adamw = torch.optim.AdamW(
            [
                {"params": members, "lr": peak, "weight_decay": decay}
                for (peak, decay), members in groups.items()
            ],
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            fused=True,
        )
        self.average = Average(self.parameters, config.average) if config.average > 0 else None

    def step(self, progress: float) -> tuple[float, float]:
        """Clip, update at the rate for `progress`, clear gradients; (rate's factor, gradient norm)."""
        scale = factor(self.config, progress)
        for group, peak in zip(self.adamw.param_groups, self.peaks, strict=True):
            group["lr"] = peak * scale
        limit = self.config.clip or math.inf
        if self.ranks is None:
            learned = list(self.parameters.values())
            norm = nn.utils.get_total_norm([p.grad for p in learned if p.grad is not None])
            if norm > limit:  # else gradients need not be gone through once more
                nn.utils.clip_grads_with_norm_(learned, limit, norm)
        else:
            norm = self.ranks.clip(self.parameters, limit)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"the gradient's norm is {float(norm)}")
        self.adamw.step()
        self.muon.step(self.config.lr * scale)
        if self.average is not None:
            self.average.update()
        self.clear()
        return scale, float(norm)

    def clear(self) -> None:
        """Forget all gradients."""
        self.adamw.zero_grad(set_to_none=False)
        for parameter in self.muon.parameters.values():
            if parameter.grad is not None:
                parameter.grad.zero_()

    def state(self) -> dict[str, Tensor]:
        """By parameter name AdamW's `NAME.exp_avg`, `NAME.exp_avg_sq` and `NAME.step`, Muon's
        `NAME.momentum`, and the averages, as `Average.state` has them."""
        out = {f"{name}.momentum": tensor for name, tensor in self.muon.momentum.items()}
        for name, parameter in self.parameters.items():
            for key, value in self.adamw.state.get(parameter, {}).items():
                out[f"{name}.{key}"] = value
        return out if self.average is None else out | self.average.state()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up a state that `state` gave. Raises KeyError for a parameter of which it holds a part only."""
        for name, parameter in self.parameters.items():
            if f"{name}.step" in tensors:
                self.adamw.state[parameter] = {
                    key: tensors[f"{name}.{key}"].clone().to(parameter.device)
                    for key in ("step", "exp_avg", "exp_avg_sq")
                }
            if f"{name}.momentum" in tensors and name in self.muon.parameters:
                self.muon.momentum[name] = tensors[f"{name}.momentum"].clone().to(parameter.device)
        if self.average is not None:
            self.average.load(tensors)


def _peak(config: OptimConfig, name: str) -> float:
    if "_map." in name or "_residual." in name:
        return config.map_lr
    return config.control_lr if name.startswith("control.") else config.lr
