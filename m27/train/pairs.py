"""Preferences: what a pair of answers costs, and how much each target of the two is to blame for it.

A model is to put the chosen answer before the rejected one, measured against the model that the run began with
(direct preference optimisation, Rafailov et al. 2023; IPO, Azar et al. 2023). Knows log-probabilities alone: no
model, no ids. An answer may hold words, pictures and sounds; its log-probability is the sum over all of them.

Shapes: M targets, P pairs; a half is one answer of a pair, number 2p the chosen and 2p + 1 the rejected.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class PreferenceConfig:
    """The loss of a pair, of the margin h = log-ratio of the chosen - log-ratio of the rejected answer.

    `loss` "sigmoid" is -log sigmoid(beta h), "ipo" (h - 1 / (2 beta))². `label_smoothing` e is the share of
    pairs that are taken to be the wrong way round: (1 - e) loss(h) + e loss(-h). `by_length` divides an
    answer's log-probability by its length. `sft` adds so much of the chosen answer's mean loss a target
    (RPO, Pang et al. 2024), which keeps it likely in itself. Raises ValueError for a value out of range.
    """

    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0
    by_length: bool = False
    sft: float = 0.0

    def __post_init__(self) -> None:
        if self.loss not in ("sigmoid", "ipo"):
            raise ValueError(f"preference.loss is {self.loss!r}; it is sigmoid or ipo")
        if not self.beta > 0:
            raise ValueError(f"preference.beta is {self.beta}; it must be above 0")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"preference.label_smoothing is {self.label_smoothing}; it lies in [0, 0.5)")
        if not self.sft >= 0:
            raise ValueError(f"preference.sft is {self.sft}; it must not be below 0")

    def of_margins(self, h_P: Tensor) -> tuple[Tensor, Tensor]:
        """Losses [P] of margins [P], and their derivatives."""
        forth, slope = self._one_way(h_P)
        back, against = self._one_way(-h_P)
        e = self.label_smoothing
        return (1 - e) * forth + e * back, (1 - e) * slope - e * against

    def _one_way(self, h_P: Tensor) -> tuple[Tensor, Tensor]:
        if self.loss == "ipo":
            off_P = h_P - 1 / (2 * self.beta)
            return off_P.square(), 2 * off_P
        return F.softplus(-self.beta * h_P), -self.beta * torch.sigmoid(-self.beta * h_P)


@dataclass(frozen=True)
class Outcome:
    """Of one micro-batch: the weighted losses of its pairs summed, and each target's weight [M] in them.

    The weight is what d loss / d (cross-entropy of the target) is, so negative for a rejected answer's.
    `figures_P4` are rewards of chosen and rejected, then their log-probabilities, in nats.
    """

    whole: Tensor
    weights_M: Tensor
    figures_P4: Tensor


@dataclass(frozen=True)
class Pairs:
    """Which half each target belongs to (2P where both share it, which no margin sees), its weight within
    its answer, and the weight of each pair."""

    halves_M: Tensor
    weights_M: Tensor
    weights_P: Tensor
    config: PreferenceConfig

    def to(self, device: torch.device) -> Pairs:
        """The same on a device."""
        halves_M, weights_M, weights_P = (
            tensor.to(device, non_blocking=True)
            for tensor in (self.halves_M, self.weights_M, self.weights_P)
        )
        return Pairs(halves_M, weights_M, weights_P, self.config)

    def outcome(self, policy_M: Tensor, reference_M: Tensor) -> Outcome:
        """What the pairs cost, from each target's cross-entropy under the policy and under the reference."""
        config, pairs = self.config, len(self.weights_P)
        weights_M, weights_P = self.weights_M.double(), self.weights_P.double()

        def summed(values_M: Tensor) -> Tensor:
            zeros = torch.zeros(2 * pairs + 1, dtype=torch.float64, device=values_M.device)
            return zeros.index_add_(0, self.halves_M, values_M)[:-1].view(pairs, 2)

        lengths_P2 = summed(weights_M)
        scale_P2 = 1 / lengths_P2 if config.by_length else torch.ones_like(lengths_P2)
        own_P2 = -summed(weights_M * policy_M.double()) * scale_P2
        gains_P2 = own_P2 + summed(weights_M * reference_M.double()) * scale_P2
        losses_P, slopes_P = config.of_margins(gains_P2[:, 0] - gains_P2[:, 1])
        # A margin grows with the chosen answer's log-probability and falls with the rejected one's, and
        # either is minus a sum of cross-entropies.
        signs_2 = torch.tensor([-1.0, 1.0], dtype=torch.float64, device=slopes_P.device)
        blame_P2 = slopes_P[:, None] * signs_2 * scale_P2
        if config.sft:
            means_P = -own_P2[:, 0] / scale_P2[:, 0] / lengths_P2[:, 0]
            losses_P = losses_P + config.sft * means_P
            blame_P2[:, 0] += config.sft / lengths_P2[:, 0]
        blame_H = F.pad((blame_P2 * weights_P[:, None]).flatten(), (0, 1))  # none for what is shared
        return Outcome(
            (losses_P * weights_P).sum(),
            (blame_H[self.halves_M] * weights_M).float(),
            torch.cat([config.beta * gains_P2, own_P2], dim=1),
        )
