"""Figures of a whole set beside the mean mark: POPE's F1, MMBench's circular score, BLEU, a category's share.

Each takes what was asked and answered and gives names to numbers, with a note where one of them cannot be had. Shares
are 0 to 1. Knows samples and rules; no model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

from m27.eval.samples import Sample


class Answered(NamedTuple):
    """One question of a set, what came, and its mark."""

    sample: Sample
    answer: str
    score: float


@dataclass(frozen=True)
class Figures:
    """Numbers by name, in the order in which they are told, and what must be said of them."""

    values: Mapping[str, float]
    notes: tuple[str, ...] = ()


Of = Callable[[Sequence[Answered]], Figures]


def averaged(several: Sequence[Figures]) -> Figures:
    """The mean over seeds of each figure that all of them have."""
    first = several[0]
    shared = [name for name in first.values if all(name in one.values for one in several)]
    mean = {name: sum(one.values[name] for one in several) / len(several) for name in shared}
    return Figures(mean, tuple(dict.fromkeys(note for one in several for note in one.notes)))


def by(*keys: str) -> Of:
    """The mean mark of each category, of each key of `meta` in turn, in alphabetical order: "key: category"."""

    def figures(answered: Sequence[Answered]) -> Figures:
        return Figures({name: mean for key in keys for name, mean in _groups(answered, key).items()})

    return figures


def _groups(answered: Sequence[Answered], key: str, also: Callable[[Any], str] = str) -> dict[str, float]:
    marks: dict[str, list[float]] = {}
    for one in answered:
        if one.sample.meta.get(key) not in (None, ""):
            marks.setdefault(also(one.sample.meta[key]), []).append(one.score)
    return {f"{key}: {name}": sum(marks[name]) / len(marks[name]) for name in sorted(marks)}


DISCIPLINES = {
    "Art and Design": "Art Art_Theory Design Music",
    "Business": "Accounting Economics Finance Manage Marketing",
    "Science": "Biology Chemistry Geography Math Physics",
    "Health and Medicine": "Basic_Medical_Science Clinical_Medicine Diagnostics_and_Laboratory_Medicine Pharmacy "
    "Public_Health",
    "Humanities and Social Science": "History Literature Sociology Psychology",
    "Tech and Engineering": "Agriculture Architecture_and_Engineering Computer_Science Electronics Energy_and_Power "
    "Materials Mechanical_Engineering",
}
_DISCIPLINE = {subject: name for name, subjects in DISCIPLINES.items() for subject in subjects.split()}


def mmmu(answered: Sequence[Answered]) -> Figures:
    """MMMU's six disciplines and its thirty subjects, each the share of its questions; how many were guessed."""
    wide = [
        one._replace(sample=Sample("", [], (), {"discipline": _DISCIPLINE.get(one.sample.meta.get("subject", ""))}))
        for one in answered
    ]
    return Figures(_groups(wide, "discipline") | _groups(answered, "subject"))


def pope(answered: Sequence[Answered]) -> Figures:
    """Accuracy, precision, recall, F1 and the share of yes, as the official script tells them; yes is positive."""
    rule = import_module("m27.eval.scorers.pope")
    told = rule.figures((rule.says_yes(one.answer), one.sample.references[0] == "yes") for one in answered)
    return Figures({
        "accuracy": told.accuracy, "precision": told.precision, "recall": told.recall, "F1": told.f1,
        "yes ratio": told.yes,
    })  # fmt: skip


def mmbench(answered: Sequence[Answered]) -> Figures:
    """Vanilla: the share right with the options unrotated. Circular: right in every rotation, which takes the file for
    circular evaluation; then the circular score by category of either kind, else the vanilla one."""
    rule = import_module("m27.eval.scorers.choice")
    by_index = {int(one.sample.meta["index"]): one for one in answered}
    plain = {index: one for index, one in by_index.items() if index < rule.CYCLE}
    if not plain:
        return Figures({}, ("no question is here with its options unrotated",))
    values = {"vanilla": rule.accuracy(one.score == 1 for one in plain.values())}
    notes: tuple[str, ...] = ()
    if len(by_index) > len(plain):
        every = rule.circular({index: one.score == 1 for index, one in by_index.items()})
        values["circular"] = rule.accuracy(every.values())
        plain = {index: one._replace(score=float(every[index])) for index, one in plain.items()}
    else:
        notes = ("no circular score: the file holds no rotated options",)
    groups = [_groups(list(plain.values()), key) for key in ("l2-category", "category")]
    return Figures(values | groups[0] | groups[1], notes)


def captions(answered: Sequence[Answered]) -> Figures:
    """BLEU-1 to -4 of the corpus, ROUGE-L, CIDEr-D, METEOR, and SPICE and SPIDEr where SPICE is to be had.

    CIDEr-D here is over the words of the COCO caption evaluation, as are BLEU and ROUGE-L; METEOR and SPICE have
    tokenizers of their own.
    """
    rule, meteor, java = (import_module(f"m27.eval.scorers.{name}") for name in ("caption", "meteor", "java"))
    cider = import_module("m27.eval.cider")
    said = [rule.coco_words(one.answer) for one in answered]
    known = [[rule.coco_words(text) for text in one.sample.references] for one in answered]
    values = {f"BLEU-{n}": score for n, score in enumerate(rule.bleu(said, known)[0], 1)}
    values["ROUGE-L"] = _mean([rule.rouge_l(*pair) for pair in zip(said, known, strict=True)])
    measure = cider.CiderD([one.sample.references for one in answered], words=rule.coco_words)
    values["CIDEr-D"] = _mean([measure.score(one.answer, one.sample.references) for one in answered])
    texts = [one.answer for one in answered], [list(one.sample.references) for one in answered]
    notes = []
    if java.METEOR.there():
        values["METEOR"], version = java.meteor(*texts)
        notes.append(f"METEOR by {version}")
    else:
        values[meteor.NAME] = _mean([meteor.score(*pair) for pair in zip(said, known, strict=True)])
        notes.append(f"METEOR's own program is not here ({java.METEOR.missing()}); {meteor.NAME} knows no synonyms")
    if java.SPICE.there():
        each, version = java.spice(*texts)
        values["SPICE"] = _mean(each)
        values["SPIDEr"] = (values["CIDEr-D"] + values["SPICE"]) / 2
        notes.append(f"SPICE by {version}")
    else:
        notes.append(f"no SPICE and no SPIDEr: {java.SPICE.missing()}")
    return Figures(values, tuple(notes))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
