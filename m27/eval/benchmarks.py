"""Public benchmarks as sets: the official file's reader, and the official rule of right and wrong on each answer.

Readers stand in `m27/eval/official`, rules in `m27/eval/scorers`; here one is put to the other. Their modules are
loaded when a benchmark is used. What a rule would draw at random is drawn by the question's id (MMMU's rule) or counts
as wrong (the others), and is marked in `extracted`. Figures of the whole set beside the mean (POPE's F1, MMBench's
circular score, BLEU) are those of `m27.eval.figures`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from m27.eval import figures
from m27.eval.metrics import METRICS, Mark, Metric
from m27.eval.samples import Sample

Judged = tuple[float | bool, str]  # the score of one answer, and what was read out of it
Rule = Callable[[Any, Sample, str], Judged]


class BenchmarkError(ValueError):
    """An official file without what scoring needs; the message names the question."""


def samples(name: str) -> Callable[[Path], Iterator[Sample]]:
    """The reader of a benchmark, as samples of ours. What its split keeps back cannot be scored: BenchmarkError."""

    def read(path: Path) -> Iterator[Sample]:
        for one in import_module(f"m27.eval.official.{name}").samples(path):
            if not one.references:
                raise BenchmarkError(f"{path}: {one.id}: the right answer is kept back; use a split that has it")
            yield one

    return read


def metric(
    name: str, scorer: str, rule: Rule, commit: str = "SCORER", told: figures.Of | None = None
) -> Metric:
    """A metric whose mark is `rule(module of the scorer, sample, answer)`; `commit`: the name that the official scorer
    and its commit have in that module; `told`: its figures of the whole set."""

    def scored(_: Any) -> Callable[[Sample, str], Mark]:
        module = import_module(f"m27.eval.scorers.{scorer}")

        def mark(sample: Sample, answer: str) -> Mark:
            score, extracted = rule(module, sample, answer)
            return Mark(float(score), extracted=extracted)

        return mark

    def follows() -> str:
        return str(getattr(import_module(f"m27.eval.scorers.{scorer}"), commit))

    return Metric(name, f"the official rule of {name}", scored, follows=follows, figures=told)


def _gold(sample: Sample) -> str | list[str]:
    golds = list(sample.references)
    return golds[0] if len(golds) == 1 else golds


def mmmu(module: Any, sample: Sample, answer: str) -> Judged:
    """A letter, guessed where none is named, or an open answer."""
    options = sample.meta.get("options")
    if options is None:
        found = module.open_answers(answer)
        return module.right_open(found, _gold(sample)), str(found)
    return _lettered(module, sample, module.choice(answer, options))


def mmmu_pro(module: Any, sample: Sample, answer: str) -> Judged:
    """A letter by MMMU-Pro's rule."""
    return _lettered(module, sample, module.pro_choice(answer, sample.meta["options"]))


def _lettered(module: Any, sample: Sample, letter: str | None) -> Judged:
    if letter is None:
        drawn = module.guess(sample.id, list(sample.meta["options"]))
        return module.right_choice(drawn, _gold(sample)), f"guessed {drawn}"
    return module.right_choice(letter, _gold(sample)), letter


def mathvista(module: Any, sample: Sample, answer: str) -> Judged:
    """What rules alone can read out of the reply; the official program asks a language model for the rest, which here
    is taken as it is and marked."""
    form = {name: sample.meta.get(name) for name in ("question_type", "answer_type", "choices")}
    found = module.extract(answer, quick=True, **form)
    form["precision"] = sample.meta.get("precision")
    said = module.normalised(answer if found is None else found, **form)
    note = "" if found is not None else " (no rule read it)"
    return module.right(said, sample.references[0]), f"{said}{note}"


def pope(module: Any, sample: Sample, answer: str) -> Judged:
    """Yes unless the first sentence says no."""
    said = "yes" if module.says_yes(answer) else "no"
    return said == sample.references[0], said


def vqav2(module: Any, sample: Sample, answer: str) -> Judged:
    """How many of ten people say so."""
    return module.vqav2(answer, sample.references), answer


def textvqa(module: Any, sample: Sample, answer: str) -> Judged:
    """How many of ten people say so, by TextVQA's forms."""
    return module.textvqa(answer, sample.references), module.textvqa_form(answer)


def mmbench(module: Any, sample: Sample, answer: str) -> Judged:
    """The letter that the rules find; where they find none the answer is wrong (the official program asks a model)."""
    letter = module.mmbench_letter(answer, sample.meta["options"])
    return letter == sample.references[0], letter or ""


def mmstar(module: Any, sample: Sample, answer: str) -> Judged:
    """Whether the reply begins with the letter."""
    return module.mmstar_right(answer, sample.references[0]), answer[:40]


def scienceqa(module: Any, sample: Sample, answer: str) -> Judged:
    """The letter of "The answer is B."; anything else is wrong (the official program draws)."""
    letter = module.scienceqa_letter(answer)
    return letter == sample.references[0], letter or ""


def mmau(module: Any, sample: Sample, answer: str) -> Judged:
    """All words of the right choice and none that only wrong ones have."""
    return module.right(sample.references[0], answer, sample.meta["choices"]), answer


def spoken(_: Any) -> Callable[[Sample, str], Mark]:
    """Word errors after Whisper's English normaliser, weighted by words."""
    english = import_module("m27.eval.scorers.spoken").english
    word_errors = import_module("m27.eval.scorers.wer").word_errors

    def mark(sample: Sample, answer: str) -> Mark:
        said = english(answer)
        errors, words = word_errors(english(sample.references[0]), said)
        return Mark(errors / max(words, 1), max(words, 1), said)

    return mark


def _wer_follows() -> str:
    modules = [import_module(f"m27.eval.scorers.{name}") for name in ("spoken", "wer")]
    return " and ".join(str(module.SCORER) for module in modules)


WER = Metric("wer", "word error rate after Whisper's normaliser", spoken, lower=True, follows=_wer_follows)
CIDER = METRICS["cider"]

BENCHMARKS: dict[str, tuple[str, Metric]] = {
    "mmmu": ("mmmu", metric("mmmu", "mmmu", mmmu, told=figures.mmmu)),
    "mmmu-pro": ("mmmu_pro", metric("mmmu-pro", "mmmu", mmmu_pro, told=figures.by("subject"))),
    "mathvista": (
        "mathvista",
        metric("mathvista", "mathvista", mathvista, told=figures.by("question_type", "answer_type")),
    ),
    "pope": ("pope", metric("pope", "pope", pope, told=figures.pope)),
    "vqav2": ("vqav2", metric("vqav2", "vqa", vqav2, "VQAV2_SCORER", figures.by("answer_type"))),
    "textvqa": ("textvqa", metric("textvqa", "vqa", textvqa, "TEXTVQA_SCORER")),
    "mmbench": ("mmbench", metric("mmbench", "choice", mmbench, "MMBENCH_SCORER", figures.mmbench)),
    "mmstar": ("mmstar", metric("mmstar", "choice", mmstar, "MMSTAR_SCORER", figures.by("category", "l2_category"))),
    "scienceqa": (
        "scienceqa", metric("scienceqa", "choice", scienceqa, "SCIENCEQA_SCORER", figures.by("subject"))
    ),
    "mmau": ("mmau", metric("mmau", "mmau", mmau, told=figures.by("task", "difficulty", "sub-category"))),
    "coco-captions": ("coco", CIDER),
    "audiocaps": ("audiocaps", CIDER),
    "clotho": ("clotho", CIDER),
    "librispeech": ("librispeech", WER),
}
