"""POPE: yes or no in a reply, and the figures of the whole. Yes is the positive class."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

SCORER = "github.com/AoiDragon/POPE@08d957b917e5a378a2f99d35b6293c536a66298b"

NO = frozenset({"No", "no", "not"})


def says_yes(reply: str) -> bool:
    """False if the words up to the first full stop hold "No", "no" or "not"; else True, whatever
    the reply is."""
    words = reply.partition(".")[0].replace(",", "").split(" ")
    return NO.isdisjoint(words)


@dataclass(frozen=True)
class Figures:
    """The figures of a set of answers, each a share of 1. 0 where a share is of nothing."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes: float


def figures(pairs: Iterable[tuple[bool, bool]]) -> Figures:
    """From (said yes, yes is right) of every question."""
    every = list(pairs)
    hits = sum(said and label for said, label in every)
    said = sum(said for said, _ in every)
    labels = sum(label for _, label in every)
    precision, recall = _share(hits, said), _share(hits, labels)
    return Figures(
        accuracy=_share(sum(said == label for said, label in every), len(every)),
        precision=precision,
        recall=recall,
        f1=_share(2 * precision * recall, precision + recall),
        yes=_share(said, len(every)),
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
