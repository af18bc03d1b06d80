"""Captions of held-out clip art and stamps: CIDEr-D against a nearest-neighbour captioner.

The rival looks for the training picture that the vision teacher finds most alike, and says that
one's caption; the score is the model's CIDEr-D as a ratio to the rival's. The references of a
picture are all that is known of it: the title of a clip-art picture and each of its keywords, the
caption of a stamp.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

import torch

from m27.data.sources import emoji, openclipart, stamps
from m27.data.sources.base import Item, Side, of_split
from m27.eval.bench import Bench, Records
from m27.eval.cider import CiderD
from m27.eval.report import Row, bars
from m27.eval.score import ratio_of_means
from m27.eval.tasks.sample import Sample, ask, data_hash, question, rank
from m27.eval.teacher import Teacher, unit

LEVELS = (0.7, 1.2)  # floor and goal
MAX_TOKENS = 24
MAX_WORDS = 6  # of a caption that training shows


def captioned(side: Side) -> Iterator[Item]:
    """Clip art and stamps of a side with a caption; for training also emoji."""
    for item in of_split(openclipart.items(), side):
        if item.text:
            yield item
    for item in of_split(stamps.items(), side):
        if item.text and len(item.text.split()) <= MAX_WORDS:
            yield item
    if side == "train":
        yield from (i for i in of_split(emoji.items(), side) if not i.meta["tone"])


def references(item: Item) -> list[str]:
    """Everything that is known to be said of a picture: its caption, then its keywords."""
    keywords = str(item.meta.get("keywords", "")).split(", ")
    return list(dict.fromkeys([item.text, *filter(None, keywords)]))


def chosen(n: int, seed: int) -> list[Item]:
    """`n` held-out pictures, one a caption: twenty flags say no more than one."""
    distinct: dict[str, Item] = {}
    for item in sorted(captioned("test"), key=lambda item: rank(seed, item.key)):
        distinct.setdefault(item.text, item)
    return list(distinct.values())[:n]


class Captions:
    """CIDEr-D of the model divided by that of the nearest neighbour."""

    name = "captions"

    def run(self, bench: Bench) -> tuple[Row, Records]:
        """Caption; beside it a random caption (chance) and the model's own commonest one."""
        items = chosen(bench.samples, bench.seed)
        text = question("caption_picture")
        samples = [Sample(item.key, ask(item, text), item.text) for item in items]
        said = bench.answers([s.messages for s in samples], MAX_TOKENS, self.name)
        train = list(captioned("train"))
        near = neighbours(Teacher(bench.engine.processor.image_codec), items, train)
        known = [references(item) for item in items]
        draw = random.Random(f"captions:{bench.seed}")
        constant = Counter(said).most_common(1)[0][0]
        scores = {
            "ours": scored(said, known),
            "rival": scored(near, known),
            "random": scored([draw.choice(train).text for _ in items], known),
            "constant": scored([constant] * len(items), known),
        }
        ratio, low, high = ratio_of_means(scores["ours"], scores["rival"], bench.seed)
        titles = [[item.text] for item in items]
        alone, _, _ = ratio_of_means(scored(said, titles), scored(near, titles), bench.seed)
        mean = {name: sum(values) / len(values) for name, values in scores.items()}
        rival = mean["rival"] or 1.0
        passed, goal, bar = bars(ratio, *LEVELS, unit="ratio")
        row = Row(
            task=self.name, n=len(items), score=ratio, low=low, high=high,
            chance=mean["random"] / rival, frequent=mean["constant"] / rival, by_kind=None,
            passed=passed, goal=goal, bar=bar, data=data_hash(samples), seconds=0.0,
            origin=bench.origin, unit="ratio",
            note=f"CIDEr-D {mean['ours']:.3f}, nearest neighbour {mean['rival']:.3f} (of "
            f"{len(train)} pictures); against titles alone the ratio is {alone:.3f}",
        )  # fmt: skip
        records: Records = [
            {"id": item.key, "answer": "; ".join(refs), "prediction": caption, "nearest": rivals,
             "cider": ours, "nearest_cider": theirs}
            for item, refs, caption, rivals, ours, theirs in zip(
                items, known, said, near, scores["ours"], scores["rival"], strict=True
            )
        ]  # fmt: skip
        return row, records


def scored(captions: list[str], known: list[list[str]]) -> list[float]:
    """CIDEr-D of each caption; the pictures' references are the corpus that weighs words."""
    measure = CiderD(known)
    return [measure.score(one, refs) for one, refs in zip(captions, known, strict=True)]


def neighbours(teacher: Teacher, items: list[Item], train: list[Item]) -> list[str]:
    """The caption of the training picture that is most like each item, by the teacher's features
    about their mean."""
    known = teacher.of_items(train, "captions-train")
    middle = known.mean(0)
    alike = unit(teacher.of_items(items, "captions-test"), middle) @ unit(known, middle).T
    return [train[int(k)].text for k in torch.argmax(alike, 1)]
