"""Muon: momentum made orthogonal by a few Newton-Schulz steps, for the hidden matrices of a decoder.

The update of a matrix is its momentum with all singular values brought to about one (Jordan et al. 2024), scaled
so that its entries are of AdamW's size (Liu et al. 2025, "Muon is scalable"), so one rate and one weight decay
serve both. Stacked experts [E, O, I] are so many matrices. It knows no schedule; the oracle is `torch.optim.Muon`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from m27 import runtime

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # steepest at 0 of the quintics that stay near 1 (Jordan et al.)
_SCALE = 0.2  # the root mean square of an AdamW update, as measured by Liu et al.
# Rows of the vocabulary, routers, gains, maps and adapters are no hidden matrices: AdamW has them.
_OTHERS = re.compile(r"embed_tokens|lm_head|norm|\.gate\.|router|_map\.|_residual\.|^control\.|\.lora_")


def is_hidden(name: str, parameter: Tensor) -> bool:
    """Whether a parameter, by its name in the checkpoint, is a hidden matrix or a stack of them."""
    return parameter.dim() in (2, 3) and _OTHERS.search(name) is None


@torch.no_grad()
def orthogonal(update_OI: Tensor, steps: int = 5) -> Tensor:
    """The matrix [..., O, I] with its singular values brought to about one (0.7 to 1.2), same shape and dtype.

    Products run in bfloat16 where the device has it, else in float32.
    """
    device = update_OI.device
    narrow = runtime.dtype("auto", device) if device.type in ("cpu", "cuda") else torch.bfloat16
    x = update_OI.to(narrow).reshape(-1, *update_OI.shape[-2:])
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).reshape(update_OI.shape).to(update_OI.dtype)


class Ranks(Protocol):
    """What the optimiser asks where its parameters are one rank's parts of longer ones (`m27.train.parallel`)."""

    def clip(self, parameters: Mapping[str, nn.Parameter], limit: float) -> Tensor:
        """Bound the norm of the whole gradient; what it was comes back."""

    def matrices(self, name: str, part: Tensor) -> Tensor:
        """A parameter's matrices whole, of which a part is given."""

    def part(self, name: str, whole: Tensor) -> Tensor:
        """The part again."""


class Muon:
    """The update of named hidden matrices; `momentum` of each is its whole state, float32."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        momentum: float = 0.95,
        decay: float = 0.0,
        steps: int = 5,
        ranks: Ranks | None = None,
    ) -> None:
        self.ranks = ranks
        self.parameters = dict(parameters)
        self.beta, self.decay, self.steps = momentum, decay, steps
        self.momentum: dict[str, Tensor] = {}

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move every matrix along its gradient's orthogonalised momentum (Nesterov's) at this rate."""
        for name, parameter in self.parameters.items():
            gradient = parameter.grad
            if gradient is None:
                continue
            held = self.momentum.setdefault(name, torch.zeros_like(parameter))
            held.lerp_(gradient, 1 - self.beta)
            update = gradient.lerp(held, self.beta)
            whole = update if self.ranks is None else self.ranks.matrices(name, update)
            scale = _SCALE * max(whole.shape[-2:]) ** 0.5
            found = orthogonal(whole, self.steps)
            if self.ranks is not None and whole is not update:
                found = self.ranks.part(name, found)
            parameter.mul_(1 - rate * self.decay)
            parameter.add_(found, alpha=-rate * scale)
