"""Made scenes of held-out cut-outs: how many, of what colour, and where from one another?

The model answers freely; a right answer names the right choice among those of its kind of question.
The scenes, their questions and the only right answers come from `m27.data.makers.scenes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from m27.data import catalogue
from m27.data.makers.scenes import COLORS, NUMBERS, RELATIONS
from m27.data.sources.base import Document
from m27.eval.bench import Bench, Records
from m27.eval.report import Row, bars
from m27.eval.score import most_frequent, most_frequent_by_kind, named, wilson
from m27.eval.tasks.naming import parts_note
from m27.eval.tasks.sample import Sample, data_hash

TASKS = {"scene_count": "count", "scene_color": "colour", "scene_relation": "relation"}
CHOICES: dict[str, tuple[str, ...]] = {
    "count": NUMBERS,
    "colour": tuple(COLORS),
    "where": RELATIONS,
    "is": ("yes", "no"),
}
DIGITS = {str(number): word for number, word in enumerate(NUMBERS)} | {"grey": "gray"}
MAX_TOKENS = 10
LEVELS = (0.60, 0.85)  # floor and goal


def asked(
    source: str, tasks: Sequence[str], n: int, seed: int, kind: Callable[[Document], str]
) -> list[Sample]:
    """The first `n` test documents of a source that have one of `tasks`, as questions.

    Test documents have one turn each, in an order in which any first `n` are a fair sample.
    """
    return list(islice(_questions(source, tasks, seed, kind), n))


def _questions(
    source: str, tasks: Sequence[str], seed: int, kind: Callable[[Document], str]
) -> Iterator[Sample]:
    for document in catalogue.documents(source)("test", seed):
        if document["task"] in tasks:
            *before, last = document["messages"]
            (answer,) = last["content"]
            yield Sample(document["id"], before, answer["text"], kind=kind(document))


def kind_of(document: Document) -> str:
    """What a scene's document asks for: "count", "colour", "where", "what" or "is"."""
    part = TASKS[document["task"]]
    return document["id"].rsplit("/", 1)[1] if part == "relation" else part


class Scenes:
    """The share of questions about scenes answered rightly, all three parts alike."""

    name = "scenes"

    def run(self, bench: Bench) -> tuple[Row, Records]:
        """Ask, and compare with guessing, the commonest answer, and the commonest of each kind."""
        samples = asked("scenes", tuple(TASKS), bench.samples, bench.seed, kind_of)
        things = sorted({s.answer for s in samples if s.kind == "what"})
        choices = CHOICES | {"what": tuple(things)}
        answers = bench.answers([s.messages for s in samples], MAX_TOKENS, self.name)
        records: Records = []
        for sample, answer in zip(samples, answers, strict=True):
            choice = named(answer, choices[sample.kind], _spellings(sample.kind))
            part = sample.kind if sample.kind in TASKS.values() else "relation"
            records.append(
                {"id": sample.id, "kind": sample.kind, "part": part, "answer": sample.answer,
                 "prediction": answer, "choice": choice, "right": choice == sample.answer}
            )  # fmt: skip
        golds, kinds = [s.answer for s in samples], [s.kind for s in samples]
        right, n = sum(r["right"] for r in records), len(records)
        low, high = wilson(right, n)
        passed, goal, bar = bars(right / max(n, 1), *LEVELS)
        row = Row(
            task=self.name, n=n, score=right / max(n, 1), low=low, high=high,
            chance=sum(1 / len(choices[kind]) for kind in kinds) / max(n, 1),
            frequent=most_frequent(golds)[1], by_kind=most_frequent_by_kind(golds, kinds),
            passed=passed, goal=goal, bar=bar, data=data_hash(samples), seconds=0.0,
            origin=bench.origin, note=parts_note(records),
        )  # fmt: skip
        return row, records


def _spellings(kind: str) -> dict[str, str]:
    """Other words for the answers to a kind of question: "3" for "three", "grey" for "gray"."""
    known = CHOICES.get(kind, ())
    return {word: choice for word, choice in DIGITS.items() if choice in known}
