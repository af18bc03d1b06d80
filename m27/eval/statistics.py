"""Is it noise? Intervals of a mean, and tests between two models on the same samples.

Plain functions of numbers; knows no model and no task. Everything resamples whole samples with a seeded generator
(Efron 1979), so the same answers give the same figures. One comparison at a time: with k pairs of models, `holm` keeps
the chance of any false "better" below the level.

Shapes: N samples, S seeds, D draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
DRAWS = 10_000
_CHUNK = 2_000_000  # numbers drawn at once


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval over `n` samples; `between`: the standard deviation of the mean from seed to seed
    (None with one seed)."""

    mean: float
    low: float
    high: float
    n: int
    between: float | None = None


@dataclass(frozen=True)
class Difference:
    """What b has over a on the same `n` samples: the difference of means, its 95 % interval, and the two-sided p of
    `test` ("McNemar exact" where every sample is right or wrong, else "paired bootstrap"); wins and losses of b."""

    mean: float
    low: float
    high: float
    p: float
    n: int
    wins: int
    losses: int
    test: str

    def noise(self, level: float = 0.05) -> bool:
        """Whether it is within noise at this level."""
        return not self.p < level

    def says(self, a: str, b: str, lower: bool = False, level: float = 0.05) -> str:
        """One clause in words; with `lower` less is better."""
        if self.noise(level):
            return f"{b} and {a} do not differ beyond noise (p = {self.p:.2g})"
        better = b if (self.mean < 0) == lower else a
        return f"{better} is better than {a if better == b else b} (p = {self.p:.2g})"


def _means(weighted_ND: Floats, weights_N: Floats, seed: int, draws: int) -> Floats:
    """[draws, D]: weighted means of resampled rows."""
    rng, n = np.random.default_rng(seed), len(weights_N)
    columns = np.concatenate([weighted_ND, weights_N[:, None]], 1)
    out = []
    step = max(1, _CHUNK // n)
    for start in range(0, draws, step):
        sums = columns[rng.integers(0, n, (min(step, draws - start), n))].sum(1)
        out.append(sums[:, :-1] / np.where(sums[:, -1:] > 0, sums[:, -1:], 1.0))
    return np.concatenate(out)


def estimate(
    scores: Sequence[Sequence[float]], weights: Sequence[float] | None = None, seed: int = 0, draws: int = DRAWS
) -> Estimate:
    """The mean of scores [N][S], weighted by sample, resampling samples (their seeds stay together).

    Raises ValueError without a sample. One sample tells no noise: its interval is infinite.
    """
    if not scores:
        raise ValueError("no sample, no mean")
    counts = {len(row) for row in scores}
    score_NS = np.array([np.mean(row) for row in scores])[:, None]
    weight_N = np.ones(len(scores)) if weights is None else np.asarray(weights, np.float64)
    total = max(float(weight_N.sum()), 1e-12)
    mean = float((score_NS[:, 0] * weight_N).sum() / total)
    low, high = -math.inf, math.inf
    if len(scores) > 1:
        drawn = _means(score_NS * weight_N[:, None], weight_N, seed, draws)[:, 0]
        low, high = (float(x) for x in np.quantile(drawn, [0.025, 0.975]))
        if score_NS.min() == score_NS.max() and set(np.unique(score_NS)) <= {0.0, 1.0}:
            low, high = _unanimous(mean, len(scores))
    between = None
    if counts == {count := max(counts)} and count > 1:
        by_seed = (np.array(scores) * weight_N[:, None]).sum(0) / total
        between = float(by_seed.std(ddof=1))
    return Estimate(mean, low, high, len(scores), between)


def _unanimous(mean: float, n: int) -> tuple[float, float]:
    """All right or all wrong: a resample shows no spread, yet n answers prove only so much (Clopper & Pearson 1934)."""
    edge = 0.025 ** (1 / n)
    return (edge, 1.0) if mean == 1.0 else (0.0, 1.0 - edge)


def difference(
    a: Sequence[float],
    b: Sequence[float],
    weights: Sequence[float] | None = None,
    seed: int = 0,
    draws: int = DRAWS,
) -> Difference:
    """b against a, sample by sample in the same order. Raises ValueError for unequal numbers or none."""
    if len(a) != len(b) or not a:
        raise ValueError(f"{len(a)} and {len(b)} samples cannot be compared in pairs")
    a_N, b_N = np.asarray(a, np.float64), np.asarray(b, np.float64)
    weight_N = np.ones(len(a)) if weights is None else np.asarray(weights, np.float64)
    change_N = b_N - a_N
    total = max(float(weight_N.sum()), 1e-12)
    mean = float((change_N * weight_N).sum() / total)
    wins, losses = int((change_N > 0).sum()), int((change_N < 0).sum())
    low, high = -math.inf, math.inf
    if len(a) > 1:
        drawn = _means((change_N * weight_N)[:, None], weight_N, seed, draws)[:, 0]
        low, high = (float(x) for x in np.quantile(drawn, [0.025, 0.975]))
    binary = weights is None and set(np.unique(np.concatenate([a_N, b_N]))) <= {0.0, 1.0}
    if binary:
        return Difference(mean, low, high, mcnemar(wins, losses), len(a), wins, losses, "McNemar exact")
    p = 1.0
    if len(a) > 1 and np.any(change_N):
        # How often chance alone, of a true difference of nothing, goes as far (Efron & Tibshirani 1993, 16.4).
        far = int((np.abs(drawn - mean) >= abs(mean) - 1e-15).sum())
        p = min(1.0, (far + 1) / (draws + 1))
    return Difference(mean, low, high, p, len(a), wins, losses, "paired bootstrap")


def mcnemar(wins: int, losses: int) -> float:
    """Two-sided exact p that of wins + losses disagreements the side is a fair coin's (McNemar 1947, binomial)."""
    n, k = wins + losses, min(wins, losses)
    if n == 0:
        return 1.0
    log_half = -n * math.log(2)
    logs = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) + log_half for i in range(k + 1)]
    return min(1.0, 2 * math.fsum(math.exp(x) for x in logs))


def holm(p: Sequence[float]) -> list[float]:
    """p values of several comparisons made at once, each corrected for their number (Holm 1979)."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    out, most = [0.0] * len(p), 0.0
    for place, i in enumerate(order):
        most = max(most, min(1.0, (len(p) - place) * p[i]))
        out[i] = most
    return out
