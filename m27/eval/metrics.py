"""How an answer to a user's own question is scored: by rules alone, or by a judge, which is never mixed with rules.

A metric marks one answer at a time; a result is the mean of the marks, weighted (a word error rate by words).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from m27.eval.cider import CiderD
from m27.eval.figures import Of, captions
from m27.eval.samples import Sample
from m27.eval.scorers import caption
from m27.eval.whisper import word_errors


@dataclass(frozen=True)
class Mark:
    """The score of one answer, its weight in the mean, and what of the answer was scored."""

    score: float
    weight: float = 1.0
    extracted: str = ""


Scorer = Callable[[Sample, str], Mark]


@dataclass(frozen=True)
class Metric:
    """`scorer(samples)` is ready to mark answers to those; `lower`: less is better; `share`: 0 to 1, told in per cent.
    `metric` is judged by a model and has no scorer where that is None. `follows()`: the official scorer and its commit,
    for a metric that has one; None for our own rules. `figures`: what a row tells of the whole set besides the mean."""

    name: str
    says: str
    scorer: Callable[[Sequence[Sample]], Scorer] | None
    lower: bool = False
    share: bool = True
    follows: Callable[[], str] | None = None
    figures: Of | None = None


def plain(text: str) -> str:
    """Case, runs of spaces, quotation marks around it and the full stop behind it do not count; signs and articles do:
    "-5" is not "5", and "A" may be a choice."""
    text = " ".join(text.casefold().split())
    return text.strip("\"'`“”‘’*").rstrip(".!?").strip("\"'`“”‘’* ") or text


def exact(sample: Sample, answer: str) -> Mark:
    """1 where the answer is one of the references."""
    found = plain(answer)
    return Mark(float(any(found == plain(reference) for reference in sample.references)), extracted=found)


def contains(sample: Sample, answer: str) -> Mark:
    """1 where one of the references stands in the answer as whole words; "5" does not stand in "-5" or "5.2"."""
    text = " ".join(answer.casefold().split())
    for reference in sample.references:
        wanted = plain(reference)
        before = r"(?<![\w.,-])" if wanted[:1].isdigit() else r"(?<!\w)"
        after = r"(?!\w|[.,]\d)" if wanted[-1:].isdigit() else r"(?!\w)"
        if wanted and (found := re.search(before + re.escape(wanted) + after, text)):
            return Mark(1.0, extracted=found[0])
    return Mark(0.0)


def wer(sample: Sample, answer: str) -> Mark:
    """Word errors over words of the reference that is nearest."""
    errors, words = min((word_errors(r, answer) for r in sample.references), key=lambda e: e[0] / max(e[1], 1))
    return Mark(errors / max(words, 1), max(words, 1), answer)


def cider(samples: Sequence[Sample]) -> Scorer:
    """CIDEr-D over the words of the COCO caption evaluation; how rare words are is counted over all references of the
    set."""
    measure = CiderD([sample.references for sample in samples], words=caption.coco_words)
    return lambda sample, answer: Mark(measure.score(answer, sample.references), extracted=answer)


METRICS = {
    metric.name: metric
    for metric in (
        Metric("exact", "the answer is the reference", lambda _: exact),
        Metric("contains", "the reference stands in the answer", lambda _: contains),
        Metric("cider", "CIDEr-D, 0 to 10", cider, share=False, follows=lambda: caption.SCORER, figures=captions),
        Metric("wer", "word error rate, less is better", lambda _: wer, lower=True),
        Metric("judge", "a judge model's grade, 0 to 1", None),
    )
}
