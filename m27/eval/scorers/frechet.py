"""The Fréchet distance between two sets of features (FID, FAD): that of two Gaussians with their means and covariances.

Heusel et al. 2017 for pictures, Kilgour et al. 2019 for sounds. Means and covariances are summed up as features come
(Chan, Golub and LeVeque 1983), so memory does not grow with their number; the trace of the root of the product is had
from two symmetric eigenproblems, which a covariance without full rank does not upset. numpy alone; knows no encoder.

Shapes: N rows, F features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SCORER = "pypi.org/project/pytorch-fid==0.3.0"

Floats = npt.NDArray[np.float64]
GROUPS = 10
T_QUANTILE = 2.262157  # 97.5 % of Student's t with GROUPS - 1 degrees of freedom
ROWS = 256  # gathered before they are added: a product of matrices costs less than one a row


class FrechetError(ValueError):
    """Features that no distance can be reckoned of."""


@dataclass(frozen=True)
class Moments:
    """Mean [F] and scatter [F, F] (squared deviations, summed) of n rows, float64."""

    n: int
    mean_F: Floats
    scatter_FF: Floats

    @classmethod
    def of(cls, features_NF: npt.ArrayLike) -> Moments:
        """Of rows, in two passes."""
        rows = np.asarray(features_NF, np.float64)
        mean = rows.mean(0)
        apart = rows - mean
        return cls(len(rows), mean, apart.T @ apart)

    def __add__(self, other: Moments) -> Moments:
        n = self.n + other.n
        apart = other.mean_F - self.mean_F
        between = np.outer(apart, apart) * (self.n * other.n / n)
        return Moments(n, self.mean_F + apart * (other.n / n), self.scatter_FF + other.scatter_FF + between)

    def without(self, other: Moments) -> Moments:
        """The rest, where `other` was a part."""
        n = self.n - other.n
        mean = (self.mean_F * self.n - other.mean_F * other.n) / n
        apart = other.mean_F - mean
        between = np.outer(apart, apart) * (n * other.n / self.n)
        return Moments(n, mean, self.scatter_FF - other.scatter_FF - between)

    def gaussian(self) -> Gaussian:
        """With the covariance over n - 1. Raises FrechetError with fewer than two rows."""
        if self.n < 2:
            raise FrechetError(f"a covariance needs two rows of features at least, not {self.n}")
        return Gaussian(self.mean_F, self.scatter_FF / (self.n - 1), self.n)


@dataclass(frozen=True)
class Gaussian:
    """Mean [F] and covariance [F, F]; `n` rows, None where only these two are known."""

    mean_F: Floats
    covariance_FF: Floats
    n: int | None = None


def distance(a: Gaussian, b: Gaussian) -> float:
    """|mean a - mean b|² + tr(A + B - 2 (A B)^½). Raises FrechetError where they have not the same features."""
    if a.mean_F.shape != b.mean_F.shape:
        raise FrechetError(f"{len(a.mean_F)} features and {len(b.mean_F)} cannot be compared")
    values, vectors = np.linalg.eigh(a.covariance_FF)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    inner = root @ b.covariance_FF @ root
    product = np.sqrt(np.linalg.eigvalsh((inner + inner.T) / 2).clip(0)).sum()
    apart = a.mean_F - b.mean_F
    trace = np.trace(a.covariance_FF) + np.trace(b.covariance_FF) - 2 * product
    return max(0.0, float(apart @ apart + trace))


class Stream:
    """Rows of features as they come, in `GROUPS` groups of samples by turns, so that each can be left out."""

    def __init__(self) -> None:
        self.samples = 0
        self._moments: list[Moments | None] = [None] * GROUPS
        self._waiting: list[list[Floats]] = [[] for _ in range(GROUPS)]

    def add(self, sample_NF: npt.ArrayLike) -> None:
        """The rows of one picture or sound. Raises FrechetError for other numbers of features, or none finite."""
        rows = np.atleast_2d(np.asarray(sample_NF, np.float64))
        if rows.ndim != 2 or not rows.size:
            raise FrechetError(f"sample {self.samples}: features are [N, F], not {list(rows.shape)}")
        if not np.isfinite(rows).all():
            raise FrechetError(f"sample {self.samples}: features that are not finite")
        group = self.samples % GROUPS
        self.samples += 1
        self._waiting[group].append(rows)
        if sum(map(len, self._waiting[group])) >= ROWS:
            self._settle(group)

    def _settle(self, group: int) -> None:
        if waiting := self._waiting[group]:
            try:
                new = Moments.of(np.concatenate(waiting))
                old = self._moments[group]
                self._moments[group] = new if old is None else old + new
            except ValueError:
                raise FrechetError("features of different samples are not of one length") from None
            waiting.clear()

    def groups(self) -> list[Moments]:
        """Those that hold anything. Raises FrechetError where none does."""
        for group in range(GROUPS):
            self._settle(group)
        known = [one for one in self._moments if one is not None]
        if not known:
            raise FrechetError("no sample, no distance")
        return known


@dataclass(frozen=True)
class Estimate:
    """The distance; its 95 % interval by leaving out each tenth of the samples of both sets at once (None: too few, or
    a set of which only mean and covariance are known); and the distance less its bias of first order in 1/n, by the
    same (None where a set has not more rows than features, and the bias is of another kind)."""

    distance: float
    low: float | None
    high: float | None
    extrapolated: float | None


def estimate(a: Stream | Gaussian, b: Stream | Gaussian) -> Estimate:
    """The distance of two sets. Of a Gaussian nothing is left out, so its own chance is not in the interval."""
    wholes, parts = zip(*(_whole(one) for one in (a, b)), strict=True)
    found = distance(wholes[0], wholes[1])
    streams = [one for one in (a, b) if isinstance(one, Stream)]
    if not streams or any(one.samples < 2 * GROUPS for one in streams):
        return Estimate(found, None, None, None)
    left = np.array([distance(*(part[k] if part else whole for part, whole in zip(parts, wholes, strict=True)))
                     for k in range(GROUPS)])  # fmt: skip
    deviation = math.sqrt((GROUPS - 1) / GROUPS * float(((left - left.mean()) ** 2).sum()))
    half = T_QUANTILE * deviation
    extrapolated = None
    if len(streams) == 2 and all(one.n is not None and one.n > len(one.mean_F) for one in wholes):
        extrapolated = float(GROUPS * found - (GROUPS - 1) * left.mean())
    return Estimate(found, max(0.0, found - half), found + half, extrapolated)


def _whole(one: Stream | Gaussian) -> tuple[Gaussian, Sequence[Gaussian]]:
    """All of it, and all but each group."""
    if isinstance(one, Gaussian):
        return one, ()
    groups = one.groups()
    total = groups[0]
    for group in groups[1:]:
        total = total + group
    if one.samples < 2 * GROUPS:
        return total.gaussian(), ()
    return total.gaussian(), [total.without(group).gaussian() for group in groups]
