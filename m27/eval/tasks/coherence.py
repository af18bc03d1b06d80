"""Do the pictures of a story fit the words before them better than those of another story?

A linear map, fitted on training pictures with their captions and sentences, takes the vision
teacher's features of a picture to the space of sentence vectors; similarity is the cosine there.
The score is the mean over pairs of one story less the mean over pairs of different stories, and the
note has the same of the documents' own pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from m27.data import catalogue
from m27.eval.bench import Bench, Records
from m27.eval.report import Row
from m27.eval.score import clustered_mean
from m27.eval.sentence import SentenceEncoder
from m27.eval.tasks.caption_quality import captioned
from m27.eval.tasks.interleave import SOURCE, Answers, Count, Placement, Structure, wanted
from m27.eval.tasks.sample import Sample, data_hash
from m27.eval.teacher import Pixels, Ridge, Teacher
from m27.language.codecs import ImageCodec

PENALTY = 0.3
STORIES = 200  # of the training side, beside all captioned pictures

Pair = tuple[str, str, Pixels]  # document, the words before a picture, the picture


def pairs(name: str, content: Sequence[dict[str, Any]]) -> list[Pair]:
    """Every picture of an answer that has words before it, with the nearest of them."""
    found: list[Pair] = []
    text = ""
    for part in content:
        if part["type"] == "text" and part["text"].strip():
            text = part["text"].strip()
        elif part["type"] == "image" and text:
            found.append((name, text, part["image"]))
    return found


class Judge:
    """Pictures and sentences in one space."""

    def __init__(self, codec: ImageCodec | None, seed: int = 0) -> None:
        """`codec`: the one whose trunk is the vision teacher; `seed` picks the stories that the map is fitted on."""
        self.teacher = Teacher(codec)
        self.sentences = SentenceEncoder.load()
        items = list(captioned("train"))
        books: list[Pair] = []
        for document in islice(_stories(seed), STORIES):
            books += pairs(document["id"], wanted(document))
        seen = self.teacher.of_items(items, "captions-train")
        seen = torch.cat([seen, self.teacher.features([picture for _, _, picture in books])])
        said = [item.text for item in items] + [text for _, text, _ in books]
        self._map = Ridge(seen, self.sentences.encode(said), PENALTY)

    def advantages(self, made: Sequence[Pair]) -> list[float]:
        """For each pair its cosine less the mean cosine of its words with the pictures of other
        documents. Empty where there is only one document."""
        seen = self.pictures([picture for _, _, picture in made])
        texts = self.sentences.encode([text for _, text, _ in made])
        return advantages([name for name, _, _ in made], texts, seen)

    def pictures(self, pictures: Sequence[Pixels]) -> Tensor:
        """Pictures uint8 [H, W, 3] of one size → (N, D), in the space of sentences."""
        return self._map(self.teacher.features(pictures))


def advantages(names: Sequence[str], texts_ND: Tensor, pictures_ND: Tensor) -> list[float]:
    """Row by row: cosine with the own picture less the mean with those of other documents."""
    if len(set(names)) < 2:
        return []
    alike = (
        torch.nn.functional.normalize(texts_ND, dim=1)
        @ torch.nn.functional.normalize(pictures_ND - pictures_ND.mean(0), dim=1).T
    )
    order = {name: k for k, name in enumerate(dict.fromkeys(names))}
    owner = torch.tensor([order[name] for name in names])
    others = (owner[:, None] != owner[None]).float()
    shuffled = (alike * others).sum(1) / others.sum(1)
    return [float(value) for value in alike.diagonal() - shuffled]


def _stories(seed: int) -> Any:
    every = catalogue.documents(SOURCE)("train", seed)
    return (document for document in every if document["task"] == "story_count")


class Coherence:
    """Similarity of picture and words within a story over that across stories."""

    name = "interleave-coherence"
    decodes = "image"

    def __init__(self, answers: Answers) -> None:
        self.answers = answers

    def run(self, bench: Bench) -> tuple[Row, Records]:
        """Stories drawn with the plan forced, so that every one has its pictures."""
        answered = self.answers.of(bench, "story_count", max(1, bench.samples))
        judge = Judge(bench.engine.processor.image_codec, bench.seed)
        made = [pair for document, response in answered
                for pair in pairs(document["id"], response.content)]  # fmt: skip
        real = [
            pair for document, _ in answered for pair in pairs(document["id"], wanted(document))
        ]
        ours, theirs = (judge.advantages(some) if some else [] for some in (made, real))
        score, low, high = _mean(ours, made, bench.seed)
        reference, _, _ = _mean(theirs, real, bench.seed)
        error = (high - low) / 3.92
        asked = [Sample(document["id"], [], "") for document, _ in answered]
        records: Records = [
            {"id": name, "prediction": text, "advantage": value}
            for (name, text, _), value in zip(made, ours, strict=bool(ours))
        ]
        row = Row(
            task=self.name, n=len(made), score=score, low=low, high=high, chance=0.0,
            frequent=None, by_kind=None, passed=score > 2 * error,
            goal=score > 2 * error and score >= reference / 2,
            bar="above 0 by two standard errors; goal half of the real", data=data_hash(asked),
            seconds=0.0, origin=bench.origin, unit="cosine",
            note=f"the documents' own pictures {reference:.3f}; standard error {error:.4f}; "
            f"n in pictures, {len(answered)} stories",
        )  # fmt: skip
        return row, records


def _mean(values: list[float], found: list[Pair], seed: int) -> tuple[float, float, float]:
    """Mean and interval over whole stories; 0 with the widest interval where there is nothing."""
    if not values:
        return 0.0, -1.0, 1.0
    return clustered_mean(values, [name for name, _, _ in found], seed)


_ANSWERS = Answers()
INTERLEAVE = (Structure(_ANSWERS), Placement(_ANSWERS), Count(_ANSWERS), Coherence(_ANSWERS))
