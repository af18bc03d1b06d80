"""Noise told from difference: intervals that cover, exact tests, and what is said."""

import math

import numpy as np
import pytest

from m27.eval.statistics import difference, estimate, holm, mcnemar


def test_an_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        scores = (rng.random(150) < 0.3).astype(float)
        found = estimate([[x] for x in scores], draws=500)
        covered += found.low <= 0.3 <= found.high
    assert 180 <= covered <= 200


def test_the_mean_is_weighted_and_seeds_of_a_sample_stay_together():
    found = estimate([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]], weights=[2, 1, 1])
    assert (found.mean, found.low, found.high, found.n) == (0.5, 0.5, 0.5, 3)
    assert found.between == pytest.approx(0.25 / math.sqrt(2))
    weighted = estimate([[0.0], [1.0]], weights=[3, 1])
    assert weighted.mean == 0.25
    assert (weighted.low, weighted.high) == (0.0, 1.0)
    assert estimate([[0.3]]).high == math.inf


def test_all_right_is_not_certainty():
    found = estimate([[1.0]] * 20)
    assert (found.mean, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(0.8316, abs=1e-4)  # Clopper-Pearson of 20 of 20
    assert estimate([[0.0]] * 20).high == pytest.approx(1 - 0.8316, abs=1e-4)


@pytest.mark.parametrize(
    ("wins", "losses", "p"),
    [(0, 0, 1.0), (5, 0, 0.0625), (6, 0, 0.03125), (10, 2, 0.03857421875), (3, 3, 1.0), (600, 400, 2.73e-10)],
)
def test_mcnemar_is_the_binomial_test(wins, losses, p):
    found = mcnemar(wins, losses)
    n, k = wins + losses, min(wins, losses)
    exact = min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)
    assert found == pytest.approx(exact, rel=1e-9)
    assert found == pytest.approx(p, rel=0.05)


def test_a_real_difference_is_found_and_noise_is_called_noise():
    rng = np.random.default_rng(1)
    a = (rng.random(300) < 0.5).astype(float)
    better = np.where(rng.random(300) < 0.25, 1.0, a)
    same = np.where(rng.random(300) < 0.1, (rng.random(300) < 0.5).astype(float), a)
    found = difference(list(a), list(better))
    assert (found.test, found.noise(), found.losses) == ("McNemar exact", False, 0)
    assert found.low > 0
    assert found.says("a", "b").startswith("b is better than a")
    assert found.says("a", "b", lower=True).startswith("a is better than b")
    noise = difference(list(a), list(same))
    assert noise.noise()
    assert "do not differ beyond noise" in noise.says("a", "b")
    assert difference(list(better), list(a)).p == found.p


def test_scores_that_are_no_shares_are_resampled_in_pairs():
    rng = np.random.default_rng(2)
    a = rng.random(80) * 10
    found = difference(list(a), list(a + 0.2 + rng.normal(0, 0.3, 80)))
    assert (found.test, found.noise()) == ("paired bootstrap", False)
    assert found.low > 0
    other = difference(list(a), list(a + rng.normal(0, 3, 80)))
    assert other.p > 0.05
    assert difference(list(a), list(a)).p == 1.0
    with pytest.raises(ValueError, match="2 and 1 samples"):
        difference([1, 2], [1])


def test_false_alarms_are_as_rare_as_the_level():
    rng = np.random.default_rng(3)
    alarms = 0
    for _ in range(200):
        pair = rng.normal(0, 1, (2, 40))
        alarms += not difference(list(pair[0]), list(pair[1]), draws=400).noise()
    assert alarms <= 22


def test_holm_corrects_for_the_number_of_comparisons():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]
