"""Answers of text and pictures in turn: are they whole, are the pictures where and as many as asked
for, and do they fit the words?

Documents are those of `m27.data.makers.made_books`: `place_pictures` gives sentences and says
behind which a picture (or its sound too) belongs, `story_count` how many pictures a story has. The
model is free to choose: the grammar keeps every picture whole and asks for none. Two notes say what
comes of it when the plan is forced, as a caller of the engine can.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

from m27.data import catalogue
from m27.data.sources.base import Document
from m27.eval.bench import Bench, Records
from m27.eval.report import Row, bars
from m27.eval.score import most_frequent, ratio_of_means, wilson
from m27.eval.tasks.sample import Sample, data_hash
from m27.eval.tasks.structure import faults
from m27.infer.request import MEDIA, Request, Response
from m27.language.processor import Processor

Part = dict[str, Any]
Wish = Literal["place_pictures", "story_count"]
Answered = list[tuple[Document, Response]]
SOURCE = "made_books"
LIMITS: dict[str, Any] = {"max_images": 8, "max_sounds": 4, "max_audio_codes": 80}
MAX_TOKENS = 480
FORCED = 60  # documents answered with the plan forced, where that is a note beside the score
LEAST = 0.98


def documents(wish: Wish, n: int, seed: int) -> list[Document]:
    """The first `n` held-out documents of a task; an order in which any first `n` are fair."""
    every = catalogue.documents(SOURCE)("test", seed)
    return list(islice((document for document in every if document["task"] == wish), n))


@dataclass
class Answers:
    """What a bench answered, kept, so that three tasks read the same answers."""

    known: dict[tuple[int, Wish, int], tuple[Bench, Answered]] = field(default_factory=dict)

    def of(self, bench: Bench, wish: Wish, forced: int = 0) -> Answered:
        """Held-out documents with the model's answers. Free ones are greedy and without guidance; with `forced`
        so many at most are drawn with the defaults and the document's plan."""
        key = (id(bench), wish, forced)
        if key not in self.known:
            asked = documents(wish, min(bench.samples, forced or bench.samples), bench.seed)
            requests = [
                _request(document, bench.seed * 1_000_003 + k, forced > 0)
                for k, document in enumerate(asked)
            ]
            label = f"{wish}{', the plan forced' if forced else ''}"
            answers = bench.generate(requests, label=label)
            self.known[key] = bench, list(zip(asked, answers, strict=True))
        return self.known[key][1]


def _request(document: Document, seed: int, forced: bool) -> Request:
    messages = document["messages"][:-1]
    if not forced:
        return Request(messages, max_tokens=MAX_TOKENS, seed=seed, temperature=0.0,
                       repetition_penalty=1.0, guidance=1.0, **LIMITS)  # fmt: skip
    plan = tuple(part["type"] for part in wanted(document))
    return Request(messages, plan=plan, max_tokens=MAX_TOKENS, max_text=60, seed=seed,
                   repetition_penalty=1.0, **LIMITS)  # fmt: skip


def wanted(document: Document) -> list[Part]:
    """The parts of the answer that a document holds."""
    parts: list[Part] = document["messages"][-1]["content"]
    return parts


def marks(content: Sequence[Part]) -> Counter[tuple[str, int]]:
    """Each picture and sound of an answer as (medium, number of sentences before it)."""
    found: Counter[tuple[str, int]] = Counter()
    text = ""
    for part in content:
        if part["type"] == "text":
            text = f"{text} {part['text']}".strip()
        else:
            found[part["type"], sentences(text)] += 1
    return found


def sentences(text: str) -> int:
    """How many sentences a text has."""
    return len([piece for piece in re.split(r"(?<=[.!?])\s+", text.strip()) if piece])


def unsound(processor: Processor, document: Document, response: Response) -> list[str]:
    """What is wrong with an answer's structure, read again from its ids; [] if nothing is."""
    if not response.content:
        return ["says nothing"]
    before = document["messages"][:-1]
    parts = [
        {"type": "text", "text": part["text"]} if part["type"] == "text"
        else {"type": part["type"], "codes": part["codes"]}
        for part in response.content
    ]  # fmt: skip
    whole = processor.encode([*before, {"role": "assistant", "content": parts}]).ids
    ids = whole[len(processor.encode(before, generate=True).ids) :]
    end = processor.vocabulary.turn_end
    last = len(ids) - ids[::-1].index(end) if end in ids else len(ids)
    return faults(ids[:last], processor.vocabulary, {"modalities": MEDIA, **LIMITS})


class Structure:
    """The share of free answers in which every picture and sound is whole."""

    name = "interleave-structure"

    def __init__(self, answers: Answers) -> None:
        self.answers = answers

    def run(self, bench: Bench) -> tuple[Row, Records]:
        """Both tasks' free answers, read by the second reader of the format."""
        answered = self.answers.of(bench, "place_pictures") + self.answers.of(bench, "story_count")
        records: Records = []
        for document, response in answered:
            wrong = unsound(bench.engine.processor, document, response)
            records.append({"id": document["id"], "faults": wrong, "right": not wrong})
        cut = sum(response.usage.finish_reason == "length" for _, response in answered)
        right, n = sum(r["right"] for r in records), len(records)
        row = _row(bench, self.name, answered, (right / max(n, 1), *wilson(right, n)),
                   (None, None), (1.0, 1.0), f"{cut} answers cut at {MAX_TOKENS} ids")  # fmt: skip
        return row, records


class Placement:
    """F1 of where pictures and sounds stand, over all of them, free to choose."""

    name = "interleave-placement"

    def __init__(self, answers: Answers) -> None:
        self.answers = answers

    def run(self, bench: Bench) -> tuple[Row, Records]:
        """Beside it as many media at random ends of sentences, and a picture after every one."""
        answered = self.answers.of(bench, "place_pictures")
        records = placed(answered)
        asked = [sum(r["wanted"].values()) for r in records]
        ends = [sentences(_words(wanted(document))) for document, _ in answered]
        random = sum(k * k / max(c, 1) for k, c in zip(asked, ends, strict=True)) / sum(asked)
        every = 2 * sum(asked) / (sum(asked) + sum(ends))
        forced = f1(placed(self.answers.of(bench, "place_pictures", FORCED)))[0]
        exact = sum(r["right"] for r in records) / len(records)
        note = f"all of them right in {exact:.1%} of answers; with the plan forced {forced:.3f}"
        for r in records:
            r["wanted"], r["found"] = _spelled(r["wanted"]), _spelled(r["found"])
        row = _row(bench, self.name, answered, f1(records), (random, every), (LEAST, LEAST), note)
        return row, records


def placed(answered: Answered) -> Records:
    """For each answer what was wanted and found, and how many of them agree."""
    records: Records = []
    for document, response in answered:
        gold, found = marks(wanted(document)), marks(response.content)
        records.append(
            {"id": document["id"], "wanted": gold, "found": found, "right": gold == found,
             "hits": (gold & found).total(), "of": gold.total() + found.total(),
             "prediction": _words(response.content)}
        )  # fmt: skip
    return records


def f1(records: Records) -> tuple[float, float, float]:
    """F1 over all marks (twice the hits by wanted and found) and its interval over answers."""
    return ratio_of_means([2.0 * r["hits"] for r in records], [float(r["of"]) for r in records])


class Count:
    """The share of stories with exactly as many pictures as were asked for, free to choose."""

    name = "interleave-count"

    def __init__(self, answers: Answers) -> None:
        self.answers = answers

    def run(self, bench: Bench) -> tuple[Row, Records]:
        """Beside it one guess among one to four, and the commonest number."""
        answered = self.answers.of(bench, "story_count")
        records = counted(answered)
        forced = counted(self.answers.of(bench, "story_count", FORCED))
        right, n = sum(r["right"] for r in records), len(records)
        exact = sum(r["right"] for r in forced) / max(len(forced), 1)
        constant = most_frequent([str(r["answer"]) for r in records])[1]
        row = _row(bench, self.name, answered, (right / max(n, 1), *wilson(right, n)),
                   (0.25, constant), (LEAST, LEAST), f"with the plan forced {exact:.1%}")  # fmt: skip
        return row, records


def counted(answered: Answered) -> Records:
    """For each story the pictures asked for and made."""
    records: Records = []
    for document, response in answered:
        asked, made = (_pictures(parts) for parts in (wanted(document), response.content))
        records.append(
            {"id": document["id"], "answer": asked, "made": made, "right": asked == made,
             "prediction": _words(response.content)}
        )  # fmt: skip
    return records


def _pictures(content: Sequence[Part]) -> int:
    return sum(part["type"] == "image" for part in content)


def _words(content: Sequence[Part]) -> str:
    return " ".join(part["text"].strip() for part in content if part["type"] == "text")


def _spelled(found: Counter[tuple[str, int]]) -> str:
    return ", ".join(f"{medium} after {number}" for medium, number in sorted(found.elements()))


def _row(
    bench: Bench, name: str, answered: Answered, figures: tuple[float, float, float],
    rivals: tuple[float | None, float | None], levels: tuple[float, float], note: str,
) -> Row:  # fmt: skip
    """A row: (score, low, high), (chance, best constant), (floor, goal)."""
    passed, goal, bar = bars(figures[0], *levels)
    asked = [Sample(document["id"], [], _words(wanted(document))) for document, _ in answered]
    return Row(
        task=name, n=len(answered), score=figures[0], low=figures[1], high=figures[2],
        chance=rivals[0], frequent=rivals[1], by_kind=None, passed=passed, goal=goal, bar=bar,
        data=data_hash(asked), seconds=0.0, origin=bench.origin, note=note,
    )  # fmt: skip
