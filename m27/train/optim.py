"""AdamW with a learning rate a group, gradient clipping, and schedules by steps or by the clock.

Shapes: none; parameters of any shape, by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class OptimConfig:
    """AdamW (Loshchilov & Hutter 2019) and its schedule.

    `lr` is the peak rate of the adapters (or of all weights), `map_lr` of the code maps, `control_lr` of
    the control rows. `schedule` "wsd" warms up over the share `warmup` of the run, holds, and decays over
    the share `decay` to `floor` times the peak; "cosine" decays from the warm-up's end. `clip` bounds the
    norm of the whole gradient; 0 does not.
    """

    lr: float = 1e-3
    map_lr: float = 2e-3
    control_lr: float = 2e-3
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0
    schedule: Literal["wsd", "cosine", "constant"] = "wsd"
    warmup: float = 0.03
    decay: float = 0.25
    floor: float = 0.02


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
    """AdamW over named parameters, whose whole state is a flat dictionary of tensors."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: OptimConfig) -> None:
        self.config = config
        self.parameters = dict(parameters)
        peaks: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.parameters.items():
            peaks.setdefault(_peak(config, name), []).append(parameter)
        self.peaks = list(peaks)
        groups = [{"params": members, "lr": peak} for peak, members in peaks.items()]
        self.adamw = torch.optim.AdamW(
            groups,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=True,
        )

    def step(self, progress: float) -> tuple[float, float]:
        """Clip, update at the rate for `progress`, clear gradients; (rate's factor, gradient norm)."""
        scale = factor(self.config, progress)
        for group, peak in zip(self.adamw.param_groups, self.peaks, strict=True):
            group["lr"] = peak * scale
        limit = self.config.clip or math.inf
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), limit)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"the gradient's norm is {float(norm)}")
        self.adamw.step()
        self.clear()
        return scale, float(norm)

    def clear(self) -> None:
        """Forget all gradients."""
        self.adamw.zero_grad(set_to_none=False)

    def state(self) -> dict[str, Tensor]:
        """Moments and step counts by parameter name: `NAME.exp_avg`, `NAME.exp_avg_sq`, `NAME.step`."""
        out = {}
        for name, parameter in self.parameters.items():
            for key, value in self.adamw.state.get(parameter, {}).items():
                out[f"{name}.{key}"] = value
        return out

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up a state that `state` gave. Raises KeyError for a parameter of which it holds a part only."""
        for name, parameter in self.parameters.items():
            if f"{name}.step" in tensors:
                self.adamw.state[parameter] = {
                    key: tensors[f"{name}.{key}"].clone().to(parameter.device)
                    for key in ("step", "exp_avg", "exp_avg_sq")
                }


def _peak(config: OptimConfig, name: str) -> float:
    if "_map." in name or "_residual." in name:
        return config.map_lr
    return config.control_lr if name.startswith("control.") else config.lr
