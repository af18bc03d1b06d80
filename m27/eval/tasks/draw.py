"""Can the drawing be recognised? Held-out emoji and CIFAR classes, drawn and found again by the
vision teacher.

Emoji: of fifty held-out concepts, the one whose real pictures (all styles, mean of their features)
are most like the drawing must be the one asked for. CIFAR: a linear classifier on the teacher's
features, trained on real training photographs that went through the codec as drawings do.
The notes say what real pictures get that went through the codec: no drawing can do better.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor

from m27.data.prompts import ask
from m27.data.sources import cifar10, emoji, fluent
from m27.data.sources.base import Item, of_split, with_article
from m27.eval.bench import Bench, Records
from m27.eval.report import Row, bars
from m27.eval.score import wilson
from m27.eval.sheet import contact_sheet
from m27.eval.tasks.captions import AMONG, among
from m27.eval.tasks.sample import Sample, data_hash, picked, rank
from m27.eval.teacher import Pixels, Ridge, Teacher, means, unit
from m27.infer.request import Request

TRAIN_PER_CLASS = 100
CHECKED = 200  # real test photographs that the classifier is checked on
PENALTY = 0.3


def drawings(bench: Bench, samples: Sequence[Sample], label: str) -> list[Pixels]:
    """One drawing a sample, with the seed of its place and the default guidance."""
    requests = [
        Request(s.messages, modalities=("image",), plan=("image",), max_tokens=128,
                seed=bench.seed * 1_000_003 + number)
        for number, s in enumerate(samples)
    ]  # fmt: skip
    pictures: list[Pixels] = []
    for response in bench.generate(requests, label=label):
        (made,) = [part["image"] for part in response.content if part["type"] == "image"]
        pictures.append(made)
    contact_sheet(bench.out / f"{label}.png", pictures[:50], [s.answer for s in samples[:50]])
    return pictures


def wish(text: str) -> list[dict[str, str]]:
    """A user's message that asks for a drawing of `text`."""
    return [{"role": "user", "content": ask("draw", None, text=text)}]


class DrawEmoji:
    """Retrieval R@1 among `AMONG` held-out concepts; a drawing a concept, all of them at most."""

    name = "draw-emoji"
    decodes = "image"

    def run(self, bench: Bench) -> tuple[Row, Records]:
        """Draw, look, find; then the same with what the codec makes of real pictures."""
        items = held_out()
        concepts = sorted({item.concept for item in items})
        order = sorted(concepts, key=lambda name: rank(bench.seed, f"draw/{name}"))
        names = {item.concept: item.text for item in reversed(items)}
        samples = [
            Sample(f"draw/{c}", wish(with_article(names[c])), c) for c in order[: bench.samples]
        ]
        options = [among({c: c for c in concepts}, s.answer, s.id) for s in samples]
        teacher = Teacher(bench.engine.processor.image_codec)
        real = teacher.of_items(items, "draw-emoji")
        coded = teacher.of_items(items, "draw-emoji", coded=True)
        seen = teacher.features(drawings(bench, samples, self.name))
        owners = [item.concept for item in items]
        found = nearest(seen, real, owners, options)
        by_coded = nearest(seen, coded, owners, options)
        ceiling = _ceiling(real, coded, owners, [s.answer for s in samples], options)
        records: Records = [
            {"id": s.id, "answer": s.answer, "choice": choice, "right": choice == s.answer}
            for s, choice in zip(samples, found, strict=True)
        ]
        n = len(records)
        also = sum(choice == s.answer for s, choice in zip(samples, by_coded, strict=True)) / n
        note = (
            f"R@1 among {AMONG} concepts; real pictures after the codec get {ceiling:.1%}; against "
            f"pictures after the codec the drawings get {also:.1%}"
        )
        return _row(bench, self.name, samples, records, 1 / AMONG, (0.10, 0.40), note), records


def held_out() -> list[Item]:
    """Every picture of a held-out emoji, in each style, without the skin tones."""
    every = [*of_split(emoji.items(), "test"), *of_split(fluent.items(), "test")]
    return [item for item in every if not item.meta["tone"]]


def nearest(
    seen_NF: Tensor, real_MF: Tensor, owners: Sequence[str], options: Sequence[Sequence[str]]
) -> list[str]:
    """For each row the one of its options whose mean of `real` features is most like it."""
    names, prototypes = means(real_MF, owners)
    middle = prototypes.mean(0)
    alike = unit(seen_NF, middle) @ unit(prototypes, middle).T
    at = {name: k for k, name in enumerate(names)}
    return [
        max(some, key=lambda name: float(row[at[name]]))
        for row, some in zip(alike, options, strict=True)
    ]


def _ceiling(
    real_MF: Tensor,
    coded_MF: Tensor,
    owners: Sequence[str],
    answers: Sequence[str],
    options: Sequence[Sequence[str]],
) -> float:
    """R@1 of one real picture a concept after the codec, found by the concept's other pictures."""
    right = []
    for answer, some in zip(answers, options, strict=True):
        own = [k for k, owner in enumerate(owners) if owner == answer]
        if len(own) < 2:
            continue
        kept = [k for k in range(len(owners)) if k != own[0]]
        others = [owners[k] for k in kept]
        (choice,) = nearest(coded_MF[own[:1]], real_MF[kept], others, [some])
        right.append(choice == answer)
    return sum(right) / max(len(right), 1)


class DrawCifar:
    """The share of drawings of a CIFAR class that a classifier of photographs takes for it."""

    name = "draw-cifar"
    decodes = "image"

    def run(self, bench: Bench) -> tuple[Row, Records]:
        """The classes in turn, each time with another seed."""
        classes = cifar10.CLASSES
        samples = [
            Sample(f"draw/{number}", wish(f"a photo of {with_article(name)}"), name)
            for number in range(bench.samples)
            for name in (classes[number % len(classes)],)
        ]
        teacher = Teacher(bench.engine.processor.image_codec)
        train, test = _photographs(bench.seed)
        seen = teacher.features(drawings(bench, samples, self.name))
        guesses, checked = {}, {}
        for coded in (True, False):
            known = teacher.of_items(train, "draw-cifar", coded)
            labels = torch.tensor([classes.index(item.text) for item in train])
            network = Ridge(known, torch.nn.functional.one_hot(labels).float(), PENALTY)
            guesses[coded] = [classes[k] for k in network(seen).argmax(1).tolist()]
            real = network(teacher.of_items(test, "draw-cifar", coded=True)).argmax(1).tolist()
            checked[coded] = _share([classes[k] for k in real], [item.text for item in test])
        answers = [s.answer for s in samples]
        records: Records = [
            {"id": s.id, "answer": s.answer, "choice": choice, "right": choice == s.answer}
            for s, choice in zip(samples, guesses[True], strict=True)
        ]
        note = (
            f"real photographs after the codec get {checked[True]:.1%}; by a classifier of "
            f"photographs as they are {_share(guesses[False], answers):.1%} ({checked[False]:.1%})"
        )
        return _row(bench, self.name, samples, records, 0.1, (0.40, 0.75), note), records


def _photographs(seed: int) -> tuple[list[Item], list[Item]]:
    """Training photographs, as many of each class, and test ones to check the classifier on."""
    by_class: dict[str, list[Item]] = {name: [] for name in cifar10.CLASSES}
    for item in islice(of_split(cifar10.items(), "train"), 4 * 10 * TRAIN_PER_CLASS):
        if len(by_class[item.text]) < TRAIN_PER_CLASS:
            by_class[item.text].append(item)
    return [i for some in by_class.values() for i in some], picked(cifar10.items(), CHECKED, seed)


def _share(choices: Sequence[str], answers: Sequence[str]) -> float:
    pairs = zip(choices, answers, strict=True)
    return sum(choice == answer for choice, answer in pairs) / max(len(answers), 1)


def _row(
    bench: Bench, name: str, samples: Sequence[Sample], records: Records, chance: float,
    levels: tuple[float, float], note: str,
) -> Row:  # fmt: skip
    """The row of a task of drawing; `levels` are its floor and its goal."""
    n, right = len(records), sum(r["right"] for r in records)
    low, high = wilson(right, n)
    passed, goal, bar = bars(right / n, *levels)
    return Row(
        task=name, n=n, score=right / n, low=low, high=high, chance=chance, frequent=None,
        by_kind=None, passed=passed, goal=goal, bar=bar, data=data_hash(samples), seconds=0.0,
        origin=bench.origin, note=note,
    )  # fmt: skip
