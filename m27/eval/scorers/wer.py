"""Word and character error rates of transcripts: all errors over all words of the references.

Both take texts that are normalised already, by `spoken.english`, `spoken.basic` or not at all; a
figure must say by which.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from m27.eval.scorers.distance import edits

SCORER = "pypi.org/project/jiwer==4.0.0"


def word_errors(reference: str, hypothesis: str) -> tuple[int, int]:
    """Fewest words inserted, left out or changed, and the words of the reference."""
    words = reference.split()
    return edits(words, hypothesis.split()), len(words)


def character_errors(reference: str, hypothesis: str) -> tuple[int, int]:
    """As `word_errors` for characters; spaces between words count, those at the ends do not."""
    text = reference.strip()
    return edits(text, hypothesis.strip()), len(text)


def rate(counts: Iterable[tuple[int, int]]) -> float:
    """Errors over units of all samples; above 1 where much is inserted.

    Raises ValueError where the references hold nothing at all.
    """
    every: Sequence[tuple[int, int]] = list(counts)
    units = sum(of for _, of in every)
    if not units:
        raise ValueError("no error rate: the references hold no words")
    return sum(errors for errors, _ in every) / units
