"""Logits to one id: penalty, temperature, top-k, top-p, min-p, then a draw from a seeded generator.

Each medium has its own settings; which one is being spelled is asked of the grammar at every step.
Knows no model. V vocabulary, K candidates, N ids so far.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from m27.infer.request import Sampling


class Steering(Protocol):
    """What the sampler asks at each step; `m27.language.grammar.Grammar` answers it."""

    def medium(self) -> str:
        """The medium of the id to be chosen."""

    def redirects(self) -> list[tuple[int, int]]:
        """Pairs (from, to) of ids: what the model gives to `from` is meant for `to`."""


class Sampler:
    """The `choose` of `generate`: called with masked logits [V] (forbidden ids at -inf) and the ids
    so far, returns one id. The same seed and logits give the same ids."""

    def __init__(
        self, settings: Mapping[str, Sampling], steering: Steering, seed: int, start: int = 0
    ) -> None:
        """`settings` by medium; ids before `start` (the prompt) are not held against repetition."""
        self.settings = settings
        self.steering = steering
        self.start = start
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, logits_V: Tensor, ids: Sequence[int]) -> int:
        """One allowed id. Raises ValueError where no id is allowed."""
        settings = self.settings[self.steering.medium()]
        logits_V = logits_V.detach().to("cpu", torch.float32)
        penalty = settings.repetition_penalty
        if penalty != 1.0:
            logits_V = penalize(logits_V, ids[self.start :], penalty)
        for source, target in self.steering.redirects():
            logits_V = redirect(logits_V, source, target)
        if settings.temperature == 0.0:
            best = int(logits_V.argmax())
            if logits_V[best] == -torch.inf:
                raise ValueError("no id is allowed here")
            return best
        candidates_K, probs_K = candidates(logits_V, settings)
        return int(candidates_K[torch.multinomial(probs_K, 1, generator=self.generator)])


def redirect(logits_V: Tensor, source: int, target: int) -> Tensor:
    """Add the probability of id `source` to that of `target`. Returns new logits [V]."""
    out = logits_V.clone()
    out[target] = torch.logaddexp(logits_V[target], logits_V[source])
    out[source] = -torch.inf
    return out


def penalize(logits_V: Tensor, ids: Sequence[int], penalty: float) -> Tensor:
    """Make ids [N] that were already produced less likely by the factor `penalty` (CTRL, Keskar et
    al. 2019). Returns new logits [V]."""
    if not ids:
        return logits_V
    seen = torch.tensor(sorted(set(ids)))
    old = logits_V[seen]
    return logits_V.index_copy(0, seen, torch.where(old > 0, old / penalty, old * penalty))


def candidates(logits_V: Tensor, settings: Sampling) -> tuple[Tensor, Tensor]:
    """The ids that survive, best first, and their probabilities: two tensors [K], K >= 1.

    Cuts in the usual order: temperature, top-k, top-p (nucleus, Holtzman et al. 2020), min-p
    (relative to the likeliest, Nguyen et al. 2024). Raises ValueError where no id is allowed.
    """
    allowed = torch.nonzero(logits_V > -torch.inf).flatten()
    if len(allowed) == 0:
        raise ValueError("no id is allowed here")
    scaled = logits_V[allowed].double() / settings.temperature
    keep = min(settings.top_k or len(allowed), len(allowed))
    if settings.top_p == 1.0 and settings.min_p == 0.0 and keep == len(allowed):
        return allowed, scaled.softmax(0)
    scaled, order = scaled.sort(descending=True, stable=True)
    probs = scaled[:keep].softmax(0)
    before = probs.cumsum(0) - probs
    # Rounding may bring the sum to 1 early; a nucleus of everything still holds everything.
    kept = (before < settings.top_p) | (settings.top_p == 1.0)
    kept &= probs >= settings.min_p * probs[0]
    kept[0] = True
    survivors = probs[kept]
    return allowed[order[:keep][kept]], survivors / survivors.sum()
