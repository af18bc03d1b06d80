"""Logits to one id: penalty, redirect, temperature, top-k, top-p, min-p, then a draw.

A draw is a function of (seed, index of the answer, number of the id in it): each candidate's id is
hashed with these three into a random number of its own, and the candidate that wins the exponential
race (the same as Gumbel-max, Maddison et al. 2014) is taken. So what is drawn depends neither on
what else is in the batch nor on how the work was cut into steps, and the rounding of logits moves a
draw only where two candidates are all but level.

Each medium has its own settings. Works on one row of logits at a time, which for the thousands of
ids of a row costs no more than many rows at once, and stays in the processor's cache. Knows no
model. K ids asked for, in ascending order; C candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from m27.infer.request import Sampling
from m27.infer.runner import Draw

Spans = tuple[tuple[int, int], ...]  # half-open ranges of ids, ascending
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_MASK = (1 << 64) - 1
_STEP, _MIX1, _MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_LONG = 20_000  # more logits than this are thinned out before anything else
_EIGHT = np.arange(8)
_NP = {n: np.uint64(n) for n in (_STEP, _MIX1, _MIX2, 27, 30, 31, 41)}


@lru_cache(maxsize=256)
def ids_of(spans: Spans) -> Ints:
    """The ids [K] of spans, ascending; not to be written to."""
    return np.concatenate([np.arange(a, b, dtype=np.int64) for a, b in spans] or [np.zeros(0, int)])


def place_of(spans: Spans, id: int) -> int:
    """Where an id stands among those of `spans`; -1 if it is not there."""
    before = 0
    for start, end in spans:
        if start <= id < end:
            return before + id - start
        before += end - start
    return -1


def guide(conditional_K: Floats, unconditional_K: Floats, guidance: float) -> Floats:
    """Classifier-free guidance u + g * (c - u) (Ho & Salimans 2022)."""
    out: Floats = conditional_K - unconditional_K
    out *= np.float32(guidance)
    out += unconditional_K
    return out


class Sampler:
    """How the ids of one answer are drawn. `number` is how many have been taken, by a draw or not."""

    def __init__(self, settings: Mapping[str, Sampling], seed: int, index: int = 0) -> None:
        """`settings` by medium; `index` tells several answers to one request apart."""
        self.settings = settings
        self.number = 0
        self._key = _mix(_mix(seed & _MASK) ^ (index * _STEP & _MASK))
        self._penalized = any(s.repetition_penalty != 1.0 for s in settings.values())
        self._seen: set[int] = set()  # the different ids produced so far
        # Where these stand among the ids of the spans that were last asked for.
        self._spans: Spans = ()
        self._places = np.zeros(64, dtype=np.int64)
        self._count = 0

    def take(self, id: int) -> None:
        """Take note of an id of the answer; ids of the prompt are not held against repetition."""
        self.number += 1
        if self._penalized and id not in self._seen:
            self._seen.add(id)
            self._place(place_of(self._spans, id))

    def _place(self, place: int) -> None:
        if place >= 0:
            if self._count == len(self._places):
                self._places = np.concatenate([self._places, np.zeros_like(self._places)])
            self._places[self._count] = place
            self._count += 1

    def _seen_among(self, spans: Spans) -> Ints:
        """Where the ids produced so far stand among those of `spans`."""
        if spans != self._spans:
            self._spans, self._count = spans, 0
            for id in self._seen:
                self._place(place_of(spans, id))
        return self._places[: self._count]

    def choose(
        self,
        logits_K: Floats,
        spans: Spans,
        medium: str,
        redirects: Sequence[tuple[int, int]] = (),
        mask_K: Bools | None = None,
    ) -> int:
        """One of the ids of `spans`, given their logits, which may be changed in place.

        `redirects` are pairs (from, to) of ids: what the model gives to `from` is meant for `to`.
        `mask_K` says which ids may be taken at all. Where one id is left, it is taken without a
        draw. Raises ValueError where there is none.
        """
        settings = self.settings[medium]
        if mask_K is not None:
            logits_K = np.where(mask_K, logits_K, np.float32(-np.inf))
        if settings.repetition_penalty != 1.0 and self._seen:
            penalize(logits_K, self._seen_among(spans), settings)
        for source, target in redirects:
            redirect(logits_K, place_of(spans, source), place_of(spans, target))
        place = self._pick(logits_K, spans, settings)
        for start, end in spans:
            if place < end - start:
                return start + place
            place -= end - start
        raise ValueError("no id is allowed here")

    def draw(
        self,
        spans: Spans,
        medium: str,
        redirects: Sequence[tuple[int, int]] = (),
        row: int = 0,
        other: int = -1,
        guidance: float = 1.0,
    ) -> Draw:
        """What `choose` would do, for a runner that draws: from row `row` of its logits, guided by row
        `other`."""
        s = self.settings[medium]
        seen = self._seen_among(spans) if s.repetition_penalty != 1.0 else self._places[:0]
        return Draw(
            row, other, guidance, self._draw_key(), s.temperature, s.top_k, s.top_p, s.min_p,
            s.repetition_penalty, seen, redirects,
        )  # fmt: skip

    def _draw_key(self) -> int:
        return _mix((self._key + self.number * _STEP) & _MASK)

    def _pick(self, logits_K: Floats, spans: Spans, settings: Sampling) -> int:
        if settings.temperature == 0.0:
            best = int(logits_K.argmax()) if len(logits_K) else 0
            if not len(logits_K) or not logits_K[best] > -np.inf:
                raise ValueError("no id is allowed here")
            return best
        places_C, weights_C = candidates(logits_K, settings)
        if len(places_C) == 1:
            return int(places_C[0])
        ids_C = ids_of(spans)[places_C] if len(places_C) < len(logits_K) else ids_of(spans)
        return int(places_C[int((race(ids_C, self._draw_key()) / weights_C).argmin())])


def penalize(logits_K: Floats, places: Ints, settings: Sampling) -> None:
    """Make ids that were already produced less likely by the penalty's factor, in place (CTRL,
    Keskar et al. 2019). `places` [N] are where they stand, each once."""
    if len(places):
        penalty = np.float32(settings.repetition_penalty)
        old = logits_K[places]
        logits_K[places] = np.where(old > 0, old / penalty, old * penalty)


def redirect(logits_K: Floats, source: int, target: int) -> None:
    """Add the probability of the id at place `source` to that at `target`, in place; nothing where
    one of them is not there (-1)."""
    if source >= 0 and target >= 0:
        logits_K[target] = np.logaddexp(logits_K[target], logits_K[source])
        logits_K[source] = -np.inf


def candidates(logits_K: Floats, settings: Sampling) -> tuple[Ints, Floats]:
    """The places of the ids that survive, ascending, and their weights: two arrays [C], C >= 1.

    Cuts in the usual order: temperature, top-k, top-p (nucleus, Holtzman et al. 2020), min-p
    (relative to the likeliest, Nguyen et al. 2024); each keeps the best so many, and of equal ones
    the first. A weight is the probability relative to the best one's. Raises ValueError where no id
    is allowed.
    """
    best = logits_K.max() if len(logits_K) else np.float32(-np.inf)
    if not -np.inf < best < np.inf:
        raise ValueError("no id is allowed here")
    temperature = np.float32(settings.temperature)
    places_C: Ints | None = None
    if len(logits_K) > _LONG:  # most of a vocabulary need not be exponentiated
        places_C = where(logits_K >= best - np.float32(50.0) * temperature)
        logits_K = logits_K[places_C]
    weights_C: Floats = logits_K - best
    weights_C /= temperature
    np.exp(weights_C, out=weights_C)
    top_k = settings.top_k if settings.top_k < len(weights_C) else 0
    least, total = np.float32(2e-22), 0.0  # e^-50 times as likely as the best is never drawn
    if settings.top_p < 1.0 and not top_k:
        # Those so unlikely that all together they miss the nucleus need no place in the order.
        total = float(weights_C.sum())
        least = max(least, np.float32(0.999 * (1.0 - settings.top_p) * total / len(weights_C)))
    likely = where(weights_C >= least)
    if len(likely) < len(weights_C):
        weights_C = weights_C[likely]
        places_C = likely if places_C is None else places_C[likely]
    elif places_C is None:
        places_C = likely
    if not top_k and settings.top_p == 1.0 and settings.min_p == 0.0:
        return places_C, weights_C
    sorted_C = np.sort(weights_C)[::-1]
    if top_k:
        sorted_C = sorted_C[:top_k]
    keep = len(sorted_C)
    if settings.top_p < 1.0:
        running_C = np.cumsum(sorted_C, dtype=np.float64)
        total = total or float(running_C[-1])
        # An id is kept if those before it do not yet make up the nucleus.
        keep = 1 + int(np.searchsorted(running_C[:-1], settings.top_p * total, side="left"))
    if settings.min_p > 0.0:
        keep = min(keep, len(sorted_C) - int(np.searchsorted(sorted_C[::-1], settings.min_p)))
    edge = sorted_C[max(keep, 1) - 1]
    kept = np.flatnonzero(weights_C >= edge)
    if len(kept) > max(keep, 1):  # equal ones at the edge: the first of them
        tied = kept[weights_C[kept] == edge]
        kept = np.setdiff1d(kept, tied[len(tied) - (len(kept) - max(keep, 1)) :])
    return places_C[kept], weights_C[kept]


def where(mask_K: Bools) -> Ints:
    """The places of what is true, ascending; quick where that is little of much."""
    count = len(mask_K) & ~7
    if count > 4096:
        words = mask_K[:count].view(np.uint64).nonzero()[0]
        if len(words) * 8 < count // 8:
            near = (words[:, None] * 8 + _EIGHT).ravel()
            found: Ints = near[mask_K[near]]
            rest = mask_K[count:].nonzero()[0]
            return np.concatenate([found, rest + count]) if len(rest) else found
    return mask_K.nonzero()[0]


def race(ids_C: Ints, key: int) -> Floats:
    """Exponentially distributed numbers [C], each a function of its id and of the 64-bit key.

    The hash is SplitMix64 (Steele et al. 2014); 23 bits of it are used.
    """
    x = ids_C.astype(np.uint64)
    x *= _NP[_STEP]
    x += np.uint64(key)
    x ^= x >> _NP[30]
    x *= _NP[_MIX1]
    x ^= x >> _NP[27]
    x *= _NP[_MIX2]
    x ^= x >> _NP[31]
    odd = ((x >> _NP[41]).astype(np.int32) << 1) + 1
    out: Floats = -np.log(odd.astype(np.float32) * np.float32(2.0**-24))
    return out


def log_probabilities(logits_K: Floats, spans: Spans, id: int, most: int) -> dict[str, Any]:
    """The log probability of `id`, and the `most` likeliest ids with theirs, among those of `spans`,
    by the logits as they are."""
    wide = logits_K.astype(np.float64)
    wide -= wide.max()
    wide -= np.log(np.exp(wide).sum())
    ids_K = ids_of(spans)
    count = min(most, len(wide))
    top = np.argpartition(-wide, count - 1)[:count] if count else np.zeros(0, int)
    top = top[np.lexsort((top, -wide[top]))]
    at = place_of(spans, id)
    return {
        "id": id,
        "logprob": float(wide[at]),
        "top": [(int(ids_K[place]), float(wide[place])) for place in top],
    }


def _mix(x: int) -> int:
    x = (x + _STEP) & _MASK
    x = ((x ^ (x >> 30)) * _MIX1) & _MASK
    x = ((x ^ (x >> 27)) * _MIX2) & _MASK
    return x ^ (x >> 31)
