"""The Fréchet distance against a second way to reckon it, cases in closed form, and what pytorch-fid says."""

import json
from pathlib import Path

import numpy as np
import pytest

from m27.eval.scorers.frechet import FrechetError, Gaussian, Moments, Stream, distance, estimate

FROZEN = json.loads(Path(__file__).with_name("frozen_frechet.json").read_text(encoding="utf-8"))


def streamed(rows, one_by_one=True):
    stream = Stream()
    for row in rows:
        stream.add(row)
    return stream


def oracle(a, b):
    """Of the rows themselves, by the singular values of one product: no root of a matrix is taken."""
    centred = [(x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (a, b)]
    product = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    trace = sum((x**2).sum() for x in centred)
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + trace - 2 * product


def features(seed, n, size, shift=0.0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, size)) @ rng.normal(size=(size, size)) + shift


@pytest.mark.parametrize(("n", "m", "size"), [(400, 300, 16), (60, 900, 48), (20, 25, 64)])
def test_the_stream_says_what_the_rows_say(n, m, size):
    a, b = features(0, n, size), features(1, m, size, 0.5)
    wanted = oracle(a, b)
    assert estimate(streamed(a), streamed(b)).distance == pytest.approx(wanted, rel=1e-6)
    assert distance(Moments.of(a).gaussian(), Moments.of(b).gaussian()) == pytest.approx(wanted, rel=1e-6)


def test_moments_in_any_parts_are_those_of_two_passes():
    rows = features(3, 1000, 12, 1e3)  # far from the origin, where sums of squares would lose digits
    groups = streamed(rows).groups()
    total = sum(groups[1:], groups[0])
    assert np.allclose(total.gaussian().covariance_FF, np.cov(rows, rowvar=False), rtol=1e-9, atol=1e-9)
    rest = total.without(groups[3])
    kept = np.delete(rows, np.arange(3, 1000, 10), 0)
    assert np.allclose(rest.mean_F, kept.mean(0))
    assert np.allclose(rest.gaussian().covariance_FF, np.cov(kept, rowvar=False), rtol=1e-8, atol=1e-8)


def test_memory_does_not_grow_with_samples():
    stream = streamed(np.zeros((9_000, 4)))
    assert max(sum(map(len, waiting)) for waiting in stream._waiting) < 256
    assert sum(group.n for group in stream.groups()) == 9_000


def test_cases_in_closed_form():
    a = Gaussian(np.zeros(3), np.diag([1.0, 4.0, 9.0]))
    b = Gaussian(np.array([1.0, 2.0, 0.0]), np.diag([4.0, 4.0, 1.0]))
    assert distance(a, b) == pytest.approx(5 + (1 - 2) ** 2 + 0 + (3 - 1) ** 2)
    assert distance(a, a) == pytest.approx(0, abs=1e-9)
    flat = Gaussian(np.zeros(3), np.zeros((3, 3)))
    assert distance(a, flat) == pytest.approx(14)


@pytest.mark.parametrize("case", FROZEN, ids=lambda case: case["name"])
def test_pytorch_fid_says_the_same_of_stored_features(case):
    a, b = (np.array(case[side]) for side in "ab")
    ours = estimate(streamed(a), streamed(b)).distance
    assert ours == pytest.approx(case["pytorch-fid"], abs=1e-3)
    assert ours == pytest.approx(case["torchmetrics"], abs=1e-3)


def test_the_interval_is_as_wide_as_chance_and_the_bias_goes():
    """Forty pairs of sets of the same two Gaussians: their spread is what each pair alone says of itself."""
    size, rng = 6, np.random.default_rng(0)
    true = distance(Gaussian(np.zeros(size), np.eye(size)), Gaussian(np.full(size, 0.5), 2 * np.eye(size)))
    found = [
        estimate(streamed(rng.normal(size=(200, size))), streamed(rng.normal(0.5, 2**0.5, (200, size))))
        for _ in range(40)
    ]
    spread = np.std([one.distance for one in found], ddof=1)
    told = np.mean([(one.high - one.distance) / 2.262157 for one in found])
    assert told == pytest.approx(spread, rel=0.35)
    bias, left = (np.mean([getattr(one, name) for one in found]) - true for name in ("distance", "extrapolated"))
    assert bias > 0.02
    assert abs(left) < 0.6 * bias
    covered = np.mean([one.low <= true + bias <= one.high for one in found])
    assert covered >= 0.8


def test_few_samples_have_no_interval_and_few_rows_no_extrapolation():
    few = estimate(streamed(features(0, 12, 3)), streamed(features(1, 30, 3)))
    assert (few.low, few.high, few.extrapolated) == (None, None, None)
    wide = estimate(streamed(features(0, 30, 40)), streamed(features(1, 30, 40)))
    assert wide.low is not None and wide.extrapolated is None
    known = estimate(streamed(features(0, 60, 3)), Moments.of(features(1, 60, 3)).gaussian())
    assert known.low is not None and known.extrapolated is None


def test_what_has_no_distance_is_said():
    with pytest.raises(FrechetError, match="no sample"):
        estimate(Stream(), Stream())
    with pytest.raises(FrechetError, match="two rows"):
        estimate(streamed(np.zeros((1, 3))), streamed(np.zeros((5, 3))))
    with pytest.raises(FrechetError, match="3 features and 4"):
        estimate(streamed(np.zeros((5, 3))), streamed(np.zeros((5, 4))))
    with pytest.raises(FrechetError, match="sample 0: features that are not finite"):
        streamed(np.full((1, 3), np.nan))
    with pytest.raises(FrechetError, match="not of one length"):
        estimate(streamed([np.zeros(3)] * 10 + [np.zeros(4)] * 10), streamed(np.zeros((5, 3))))
