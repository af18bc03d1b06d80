"""Answers → right or wrong, and counts → a score with its interval and its baselines.

Plain functions of strings and numbers; knows no model and no data set.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

ARTICLES = frozenset({"a", "an", "the", "some"})


def normalise(text: str) -> str:
    """Lower case, punctuation to spaces, articles dropped: "A Golden-Retriever." → "golden
    retriever"."""
    words = re.sub(r"[^\w\s]|_", " ", text.lower()).split()
    return " ".join(word for word in words if word not in ARTICLES)


def named(
    prediction: str, choices: Sequence[str], aliases: Mapping[str, str] | None = None
) -> str | None:
    """The choice that a free answer names, or None.

    The earliest mention as whole words wins, and of those that start at one place the longest, so
    "bass drum" is not "bass". `aliases` maps other words for a choice to it ("car" → "automobile").
    """
    text = f" {normalise(prediction)} "
    best: tuple[int, int, str] | None = None
    spelled = [(normalise(choice), choice) for choice in choices]
    spelled += [(normalise(word), choice) for word, choice in (aliases or {}).items()]
    for words, choice in spelled:
        at = text.find(f" {words} ") if words else -1
        if at >= 0 and (best is None or (at, -len(words)) < best[:2]):
            best = (at, -len(words), choice)
    return best[2] if best else None


def wilson(right: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927): honest also near 0 and 1. (0, 1) where n is 0."""
    if n == 0:
        return 0.0, 1.0
    p, square = right / n, z * z
    middle = (p + square / (2 * n)) / (1 + square / n)
    half = z / (1 + square / n) * math.sqrt(p * (1 - p) / n + square / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def most_frequent(answers: Sequence[str]) -> tuple[str, float]:
    """The best constant answer to these very questions, and the share it gets right."""
    if not answers:
        return "", 0.0
    answer, count = min(Counter(answers).items(), key=lambda pair: (-pair[1], pair[0]))
    return answer, count / len(answers)


def most_frequent_by_kind(answers: Sequence[str], kinds: Sequence[str]) -> float:
    """The share that the best constant answer for each kind of question gets right: what can be had
    from the question alone, without the picture or the sound."""
    groups: dict[str, list[str]] = {}
    for answer, kind in zip(answers, kinds, strict=True):
        groups.setdefault(kind, []).append(answer)
    right = sum(most_frequent(group)[1] * len(group) for group in groups.values())
    return right / len(answers) if answers else 0.0


def perplexity(log_probs: Sequence[npt.NDArray[np.float64]]) -> float:
    """exp of the mean negative natural-log probability over all tokens of all rows."""
    flat = np.concatenate(log_probs)
    return float(np.exp(-flat.mean()))


def bootstrap_ratio(
    before: Sequence[npt.NDArray[np.float64]],
    after: Sequence[npt.NDArray[np.float64]],
    seed: int = 0,
    draws: int = 2000,
) -> tuple[float, float]:
    """The 95 % interval of perplexity after / before, resampling whole rows in pairs (Efron
    1979)."""
    totals = np.array([[b.sum(), a.sum(), len(a)] for b, a in zip(before, after, strict=True)])
    picks = np.random.default_rng(seed).integers(0, len(totals), (draws, len(totals)))
    sums = totals[picks].sum(1)
    ratios = np.exp((sums[:, 0] - sums[:, 1]) / sums[:, 2])
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(low), float(high)


def ratio_of_means(
    ours: Sequence[float], others: Sequence[float], seed: int = 0, draws: int = 2000
) -> tuple[float, float, float]:
    """mean(ours) / mean(others) and its 95 % interval, resampling the samples in pairs.

    Infinite where the others' mean is 0.
    """
    pairs = np.array([ours, others], dtype=np.float64).T
    picks = np.random.default_rng(seed).integers(0, len(pairs), (draws, len(pairs)))
    sums = np.concatenate([pairs.sum(0)[None], pairs[picks].sum(1)])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(sums[:, 1] > 0, sums[:, 0] / sums[:, 1], np.inf)
    low, high = np.quantile(ratios[1:], [0.025, 0.975], method="nearest")
    return float(ratios[0]), float(low), float(high)


def clustered_mean(
    values: Sequence[float], groups: Sequence[str], seed: int = 0, draws: int = 2000
) -> tuple[float, float, float]:
    """The mean of all values and its 95 % interval, resampling whole groups: several drawings of
    one thing are no independent samples."""
    names = {name: k for k, name in enumerate(dict.fromkeys(groups))}
    index = np.array([names[name] for name in groups])
    sums = np.bincount(index, np.asarray(values, dtype=np.float64), len(names))
    counts = np.bincount(index, minlength=len(names)).astype(np.float64)
    picks = np.random.default_rng(seed).integers(0, len(names), (draws, len(names)))
    means = sums[picks].sum(1) / counts[picks].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(sums.sum() / counts.sum()), float(low), float(high)
