"""CIDEr-D against values worked out by hand, and what must hold of any such measure."""

import math

import pytest

from m27.eval.cider import CiderD, grams, tokens


def test_words_are_lower_case_and_without_marks():
    assert tokens("The fox's den, red_hot!") == ["the", "fox's", "den", "red", "hot"]
    assert tokens(" ?! ") == []


def test_grams_of_one_to_four_words():
    counted = grams("a b a b a".split())
    assert counted[("a",)] == 3
    assert counted[("a", "b")] == 2
    assert counted[("a", "b", "a", "b")] == 1
    assert sum(counted.values()) == 5 + 4 + 3 + 2


def test_the_right_caption_of_four_words_gets_ten_and_of_one_word_a_quarter():
    corpus = [["red fox on snow"], ["owl"], ["blue car"]]
    measure = CiderD(corpus)
    assert measure.score("Red fox on snow.", corpus[0]) == pytest.approx(10)
    assert measure.score("owl", corpus[1]) == pytest.approx(2.5)
    assert measure.score("blue car", corpus[2]) == pytest.approx(5)
    assert measure.score("owl", corpus[2]) == 0
    assert measure.score("", corpus[0]) == 0


def test_by_hand_weights_clipping_and_length():
    # Four pictures; "fox" is in two of them, "red" and "dog" in one: log 4, log 2 weights.
    measure = CiderD([["red fox"], ["fox"], ["dog"], ["cat"]])
    rare, common = math.log(4), math.log(2)
    norm = math.hypot(rare, common)
    penalty = math.exp(-1 / 72)
    # "fox" for "red fox": unigrams share fox alone, no bigram in the candidate; one word shorter.
    assert measure.score("fox", ["red fox"]) == pytest.approx(
        10 / 4 * common * common / (common * norm) * penalty
    )
    # "fox fox" for "fox": the second fox is clipped; its own bigram counts for nothing.
    assert measure.score("fox fox", ["fox"]) == pytest.approx(10 / 4 * (1 / 2) * penalty)
    # Over two references the mean is taken.
    both = (measure.score("fox", ["red fox"]) + measure.score("fox", ["dog"])) / 2
    assert measure.score("fox", ["red fox", "dog"]) == pytest.approx(both)


def test_a_word_of_every_picture_says_nothing():
    measure = CiderD([["a fox"], ["a dog"]])
    assert measure.score("a cat", ["a fox"]) == 0


def test_an_unknown_word_weighs_as_one_that_a_single_picture_has():
    measure = CiderD([["fox"], ["dog"]])
    unknown, known = (measure.score(f"fox {word}", ["fox"]) for word in ("zebra", "dog"))
    assert unknown == pytest.approx(known)


def test_a_picture_without_a_reference_is_refused():
    with pytest.raises(ValueError, match="picture 1 has no reference"):
        CiderD([["fox"], []])
