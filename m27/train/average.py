"""The moving average of a run's weights (Polyak 1992), in float32: often a better model than the last step's.

Kept, saved and resumed with the optimiser's state. It knows no schedule.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Average:
    """Averages of named parameters, each `decay` of itself and 1 - `decay` of the weight a step.

    Early steps count for less than `decay` would have it, (1 + step) / (10 + step), so that the beginning
    is forgotten soon. Begun with the first update.
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        self.parameters, self.decay = dict(parameters), decay
        self.tensors: dict[str, Tensor] = {}
        self.steps = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take up the weights as they are after a step."""
        self.steps += 1
        share = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, parameter in self.parameters.items():
            held = self.tensors.get(name)
            if held is None:
                self.tensors[name] = parameter.detach().float().clone()
            else:
                held.lerp_(parameter.detach().float(), share)

    def state(self) -> dict[str, Tensor]:
        """The averages as `NAME.average`, and how many steps they span."""
        return {
            **{f"{name}.average": tensor for name, tensor in self.tensors.items()},
            "average_steps": torch.tensor(self.steps),
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave; averages of a run that kept none begin with its next step."""
        self.steps = int(tensors.get("average_steps", torch.tensor(0)))
        for name, parameter in self.parameters.items():
            if (found := tensors.get(f"{name}.average")) is not None:
                self.tensors[name] = found.clone().to(parameter.device)
