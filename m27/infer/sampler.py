"""Logits to one id: penalty, temperature, top-k, top-p, min-p, then a draw from a seeded generator.

Each medium has its own settings; which one is being spelled is asked of the grammar at every step.
Knows no model. V vocabulary, K candidates, N ids so far.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
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
        logits_V = logits_V.detach().to("cpu", torch.float32)
        allowed_K = torch.nonzero(logits_V > -torch.inf).flatten()
        return self.among(logits_V[allowed_K], allowed_K, ids)

    def among(self, logits_K: Tensor, allowed_K: Tensor, ids: Sequence[int]) -> int:
        """One of the ids `allowed_K`, which ascend, given their float32 logits alone.

        Where one id is left, it is taken without a draw. Raises ValueError where there is none.
        """
        settings = self.settings[self.steering.medium()]
        penalty = settings.repetition_penalty
        if penalty != 1.0:
            produced = places(allowed_K, ids[self.start :])
            logits_K = penalize(logits_K, produced, penalty)
        for pair in self.steering.redirects():
            if len(found := places(allowed_K, pair)) == 2:
                logits_K = redirect(logits_K, found[0], found[1])
        if not len(logits_K):
            raise ValueError("no id is allowed here")
        if settings.temperature == 0.0:
            return int(allowed_K[logits_K.argmax()])
        candidates_K, probs_K = candidates(logits_K, settings)
        if len(candidates_K) == 1:
            return int(allowed_K[candidates_K[0]])
        drawn = torch.multinomial(probs_K, 1, generator=self.generator)
        return int(allowed_K[candidates_K[drawn]])


def places(allowed_K: Tensor, ids: Sequence[int]) -> list[int]:
    """Where `ids` stand in the ascending `allowed_K`, in their order; those not there are left
    out."""
    if not len(allowed_K) or not ids:
        return []
    wanted = torch.as_tensor(list(ids))
    at = torch.searchsorted(allowed_K, wanted).clamp_(max=len(allowed_K) - 1)
    found: list[int] = at[allowed_K[at] == wanted].tolist()
    return found


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
    keep = min(settings.top_k or len(allowed), len(allowed))
    if settings.top_p == 1.0 and settings.min_p == 0.0 and keep == len(allowed):
        return allowed, (logits_V[allowed].double() / settings.temperature).softmax(0)
    # What is e^-50 times as likely as the best is never drawn: most of a vocabulary is not sorted.
    floor = logits_V.max() - 50.0 * settings.temperature
    allowed = torch.nonzero(logits_V >= floor).flatten()
    allowed = allowed[best_first(logits_V[allowed])]
    probs = (logits_V[allowed].double() / settings.temperature)[:keep].softmax(0)
    before = probs.cumsum(0) - probs
    # Rounding may bring the sum to 1 early; a nucleus of everything still holds everything.
    kept = (before < settings.top_p) | (settings.top_p == 1.0)
    kept &= probs >= settings.min_p * probs[0]
    kept[0] = True
    survivors = probs[kept]
    return allowed[:keep][kept], survivors / survivors.sum()


def best_first(scores_K: Tensor) -> Tensor:
    """The order [K] that sorts finite float32 scores downwards, equal ones by their place.

    The same as a stable descending argsort; ten times faster, since value and place are packed into
    one integer that numpy's vectorised sort takes.
    """
    bits = (scores_K.to(torch.float32) + 0.0).numpy().view(np.int32)  # + 0.0: -0.0 equals 0.0
    ascending = bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))
    keys = (~ascending).astype(np.int64) << 32 | np.arange(len(bits), dtype=np.int64)
    keys.sort()
    return torch.from_numpy(keys & 0xFFFFFFFF)
