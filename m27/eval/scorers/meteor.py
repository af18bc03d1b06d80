"""METEOR with exact and stemmed matches (Lavie and Agarwal 2007), without Java and without lists of words.

Follows nltk's `meteor_score` where its WordNet has no synonyms. It is not METEOR 1.5, the figure of the COCO caption
evaluation, whose synonyms, paraphrases and weights stand in its own program: that one is run by `scorers.java`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from m27.eval.scorers.stem import stem

SCORER = "pypi.org/project/nltk==3.10.4"
NAME = "METEOR (exact and stem)"

ALPHA, BETA, GAMMA = 0.9, 3.0, 0.5


def matches(candidate: Sequence[str], reference: Sequence[str]) -> list[tuple[int, int]]:
    """(place in the candidate, place in the reference) of matched words, in order of the candidate: equal ones first,
    then those of one stem; from the end, each to the last that is left."""
    found: list[tuple[int, int]] = []
    left = set(range(len(candidate))), set(range(len(reference)))
    forms: tuple[Callable[[str], str], ...] = (str, stem)
    for form in forms:
        places: dict[str, list[int]] = {}
        for place in sorted(left[1]):
            places.setdefault(form(reference[place]), []).append(place)
        for place in sorted(left[0], reverse=True):
            if known := places.get(form(candidate[place])):
                found.append((place, known.pop()))
        left = left[0] - {a for a, _ in found}, left[1] - {b for _, b in found}
    return sorted(found)


def _single(candidate: Sequence[str], reference: Sequence[str]) -> float:
    found = matches(candidate, reference)
    if not found:
        return 0.0
    precision, recall = len(found) / len(candidate), len(found) / len(reference)
    mean = precision * recall / (ALPHA * precision + (1 - ALPHA) * recall)
    chunks = 1 + sum((a + 1, b + 1) != after for (a, b), after in pairwise(found))
    return (1 - GAMMA * (chunks / len(found)) ** BETA) * mean


def score(candidate: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """0 to 1, of the reference that it is nearest to; words are split already. ValueError without references."""
    if not references:
        raise ValueError("METEOR needs a reference, got none")
    words = [word.lower() for word in candidate]
    return max(_single(words, [word.lower() for word in reference]) for reference in references)
