"""Questions whose answer is one of a few words: what is this picture, instrument or spoken word?

The model answers freely; a right answer names the right choice (see `score.named`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from m27.data.sources import cifar10, easy_vqa, instruments, spoken_words
from m27.data.sources.base import Item, of_split
from m27.eval.bench import Bench, Records
from m27.eval.report import Row, bars
from m27.eval.score import most_frequent, most_frequent_by_kind, named, wilson
from m27.eval.tasks.sample import Sample, ask, data_hash, picked, question, rank

BAR = "interval above chance and most frequent"


@dataclass(frozen=True)
class Naming:
    """Free answers scored by the choice they name. `samples(n, seed)` gives the questions;
    `choices` are all answers there are; chance is one in the answers of that kind of question.
    `levels` are a floor and a goal; without them the bar is to be better than not looking."""

    name: str
    samples: Callable[[int, int], list[Sample]]
    choices: tuple[str, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)
    choices_of_kind: Callable[[str], int] | None = None
    max_tokens: int = 8
    levels: tuple[float, float] | None = None

    def run(self, bench: Bench) -> tuple[Row, Records]:
        """Ask, score, and compare with guessing and with always giving the commonest answer."""
        samples = self.samples(bench.samples, bench.seed)
        answers = bench.answers([s.messages for s in samples], self.max_tokens, self.name)
        records: Records = []
        for sample, answer in zip(samples, answers, strict=True):
            choice = named(answer, self.choices, self.aliases)
            records.append(
                {
                    "id": sample.id,
                    "kind": sample.kind,
                    "part": sample.part,
                    "answer": sample.answer,
                    "prediction": answer,
                    "choice": choice,
                    "right": choice == sample.answer,
                }
            )
        return self._row(bench, samples, records), records

    def _row(self, bench: Bench, samples: list[Sample], records: Records) -> Row:
        golds, kinds = [s.answer for s in samples], [s.kind for s in samples]
        right, n = sum(r["right"] for r in records), len(records)
        low, high = wilson(right, n)
        count = self.choices_of_kind or (lambda kind: len(self.choices))
        chance = sum(1 / count(kind) for kind in kinds) / max(n, 1)
        frequent = most_frequent(golds)[1]
        by_kind = most_frequent_by_kind(golds, kinds) if len(set(kinds)) > 1 else None
        if self.levels is not None:
            passed, goal, bar = bars(right / max(n, 1), *self.levels)
        else:
            passed, goal, bar = low > max(chance, frequent), False, BAR
        return Row(
            task=self.name, n=n, score=right / max(n, 1), low=low, high=high, chance=chance,
            frequent=frequent, by_kind=by_kind, passed=passed, goal=goal, bar=bar,
            data=data_hash(samples), seconds=0.0, origin=bench.origin, note=parts_note(records),
        )  # fmt: skip


def parts_note(records: Records) -> str:
    """Scores by part of the data, where there are several, and the commonest predictions."""
    notes = []
    parts = sorted({r["part"] for r in records})
    if len(parts) > 1:
        for part in parts:
            rows = [r["right"] for r in records if r["part"] == part]
            notes.append(f"{part}: {100 * sum(rows) / len(rows):.1f} % of {len(rows)}")
    common = Counter(r["choice"] or "(none)" for r in records).most_common(3)
    notes.append("says most: " + ", ".join(f"{choice} {count}" for choice, count in common))
    return "; ".join(notes)


def _items(source: Callable[[], Iterable[Item]], task: str) -> Callable[[int, int], list[Sample]]:
    """Samples of a source whose items' text is the answer; their part is the item's sound font."""

    def samples(n: int, seed: int) -> list[Sample]:
        return [
            Sample(i.key, ask(i, question(task)), i.text, part=str(i.meta.get("font", "")))
            for i in picked(source(), n, seed)
        ]

    return samples


def vqa_kind(text: str) -> str:
    """What an easy-VQA question asks for: "colour", "shape", "is there" or "is there not".

    The last two are apart because four fifths of the answers are no to the one, yes to the other:
    what the words alone give away is no sign of sight.
    """
    asked = text.lower().rstrip("?").split()
    if asked[:1] == ["what"]:
        return "colour" if {"color", "colour"} & set(asked) else "shape"
    return "is there not" if {"no", "not"} & set(asked) else "is there"


VQA_COUNTS = {
    "colour": len(easy_vqa.COLOURS),
    "shape": len(easy_vqa.SHAPES),
    "is there": 2,
    "is there not": 2,
}


def _vqa(n: int, seed: int) -> list[Sample]:
    """Test questions, drawn from all of them, not one a picture."""
    asked = [
        (rank(seed, f"{item.key}/{number}"), f"{item.key}/{number}", item, text, answer)
        for item in of_split(iter(easy_vqa.items()), "test")
        for number, (text, answer) in enumerate(item.meta["questions"])
    ]
    asked.sort(key=lambda row: row[0])
    return [
        Sample(key, ask(item, text), answer, kind=vqa_kind(text), part=vqa_kind(text))
        for _, key, item, text, answer in asked[:n]
    ]


CIFAR10 = Naming(
    "cifar10",
    _items(cifar10.items, "name_picture"),
    cifar10.CLASSES,
    aliases={"car": "automobile", "plane": "airplane", "aeroplane": "airplane"},
    levels=(0.50, 0.85),
)
EASY_VQA = Naming(
    "easy-vqa",
    _vqa,
    (*easy_vqa.COLOURS, *easy_vqa.SHAPES, "yes", "no"),
    choices_of_kind=VQA_COUNTS.__getitem__,
    levels=(0.85, 0.97),
)
INSTRUMENTS = Naming(
    "instruments", _items(instruments.items, "name_instrument"), tuple(instruments.INSTRUMENTS)
)
SPOKEN_WORDS = Naming("spoken-words", _items(spoken_words.items, "name_word"), spoken_words.WORDS)
