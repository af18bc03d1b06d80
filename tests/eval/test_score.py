"""Scores, intervals and baselines against values worked out elsewhere."""

import math

import numpy as np
import pytest

from m27.eval.score import (
    bootstrap_ratio,
    clustered_mean,
    most_frequent,
    most_frequent_by_kind,
    named,
    normalise,
    perplexity,
    ratio_of_means,
    wilson,
)


def test_normalise():
    assert normalise("  A Golden-Retriever, the end. ") == "golden retriever end"


@pytest.mark.parametrize(
    ("prediction", "choice"),
    [
        ("A cat.", "cat"),
        ("This is a dog, not a cat", "dog"),
        ("a bass drum", "bass drum"),
        ("the bass", "bass"),
        ("category", None),
        ("car", "automobile"),
        ("", None),
        ("Smart Mirror!", "smart mirror"),
    ],
)
def test_named_takes_the_first_whole_and_longest_mention(prediction, choice):
    choices = ["cat", "dog", "bass", "bass drum", "automobile", "smart mirror"]
    assert named(prediction, choices, {"car": "automobile"}) == choice


def test_wilson_equals_the_published_example():
    # Newcombe (1998), method 3, 81 of 263 and 0 of 20
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(0, 0) == (0.0, 1.0)


def test_baselines():
    answers, kinds = ["yes", "no", "no", "red", "red", "blue"], ["y", "y", "y", "c", "c", "c"]
    assert most_frequent(answers) == ("no", 2 / 6)
    assert most_frequent_by_kind(answers, kinds) == 4 / 6
    assert most_frequent([]) == ("", 0.0)


def test_perplexity_of_a_fair_die_is_six():
    rows = [np.full(4, math.log(1 / 6)), np.full(9, math.log(1 / 6))]
    assert perplexity(rows) == pytest.approx(6)


def test_bootstrap_ratio_covers_a_known_ratio_and_none_other():
    rng = np.random.default_rng(1)
    before = [rng.normal(-3, 0.5, 100) for _ in range(24)]
    after = [row - math.log(1.1) + rng.normal(0, 0.02, 100) for row in before]
    low, high = bootstrap_ratio(before, after, seed=3)
    assert low < 1.1 < high < 1.12
    assert low > 1.08


def test_the_ratio_of_means_and_its_interval():
    ours, others = [1.0, 2.0, 3.0, 4.0] * 25, [2.0, 4.0, 6.0, 8.0] * 25
    assert ratio_of_means(ours, others) == pytest.approx((0.5, 0.5, 0.5))
    mixed = [4.0, 3.0, 2.0, 1.0] * 25
    ratio, low, high = ratio_of_means(mixed, others)
    assert ratio == pytest.approx(0.5)
    assert low < 0.48 < 0.52 < high
    assert ratio_of_means([1.0], [0.0]) == (math.inf, math.inf, math.inf)


def test_groups_widen_an_interval():
    values = [1.0] * 50 + [0.0] * 50
    alone = clustered_mean(values, [str(k) for k in range(100)])
    together = clustered_mean(values, [str(k // 10) for k in range(100)])
    assert alone[0] == together[0] == 0.5
    assert together[2] - together[1] > 2 * (alone[2] - alone[1])
    assert alone[:3] == pytest.approx((0.5, 0.4, 0.6), abs=0.03)
