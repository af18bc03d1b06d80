"""Held-out emoji: does the model's caption find the right name among fifty?

The model describes the picture; of fifty held-out names the one nearest in meaning to the caption
(MiniLM) must be the right one. A caption may so be right in other words than the name's.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence

from torch import Tensor

from m27.data.sources import emoji
from m27.data.sources.base import Item, of_split
from m27.eval.bench import Bench, Records
from m27.eval.report import Row
from m27.eval.score import wilson
from m27.eval.sentence import SentenceEncoder
from m27.eval.tasks.naming import BAR
from m27.eval.tasks.sample import Sample, ask, data_hash, question, rank

AMONG = 50


class EmojiCaptions:
    """Retrieval R@1 of generated captions among `AMONG` held-out names."""

    name = "emoji-captions"

    def run(self, bench: Bench) -> tuple[Row, Records]:
        """Caption, embed, and find the nearest name; the baseline always says the commonest
        caption."""
        samples = self.samples(bench.samples, bench.seed)
        captions = bench.answers([s.messages for s in samples], 20, self.name)
        names = sorted({s.answer for s in samples})
        encoder = SentenceEncoder.load()
        vectors = dict(zip(names, encoder.encode(names), strict=True))
        concept = {s.answer: s.kind for s in samples}
        candidates = [among(concept, s.answer, f"{bench.seed}:{s.id}") for s in samples]
        found = nearest(encoder.encode(captions), candidates, vectors)
        constant = Counter(captions).most_common(1)[0][0] if captions else ""
        same = encoder.encode([constant]).expand(len(samples), -1)
        by_constant = nearest(same, candidates, vectors)
        records = [
            {"id": s.id, "answer": s.answer, "prediction": caption, "choice": choice,
             "right": choice == s.answer}
            for s, caption, choice in zip(samples, captions, found, strict=True)
        ]  # fmt: skip
        right, n = sum(bool(r["right"]) for r in records), len(records)
        low, high = wilson(right, n)
        chance = 1 / max(1, min(AMONG, len(names)))
        pairs = zip(by_constant, samples, strict=True)
        frequent = sum(choice == s.answer for choice, s in pairs) / max(n, 1)
        row = Row(
            task=self.name, n=n, score=right / max(n, 1), low=low, high=high, chance=chance,
            frequent=frequent, by_kind=None, passed=low > max(chance, frequent), bar=BAR,
            data=data_hash(samples), seconds=0.0, origin=bench.origin,
            note=f"R@1 among {min(AMONG, len(names))}; says most: {constant!r}",
        )  # fmt: skip
        return row, records

    def samples(self, n: int, seed: int) -> list[Sample]:
        """`n` pictures of held-out emoji: each concept once, then again in another style or
        tone."""
        rounds: dict[str, int] = {}
        queue: list[tuple[int, str, Item]] = []
        items = [i for i in of_split(iter(emoji.items()), "test") if not i.meta["tone"]]
        for item in sorted(items, key=lambda i: rank(seed, i.key)):
            turn = rounds.get(item.concept, 0)
            rounds[item.concept] = turn + 1
            queue.append((turn, rank(seed, item.key), item))
        queue.sort(key=lambda row: row[:2])
        text = question("caption_picture")
        return [
            Sample(i.key, ask(i, text), i.text, kind=i.concept, part=i.meta["style"])
            for _, _, i in queue[:n]
        ]


def among(concept: Mapping[str, str], right: str, draw: str) -> list[str]:
    """The right name and up to 49 names of other concepts, drawn by `draw`, in a random order.

    `concept` maps each name to its concept: "man running" is no distractor of "woman running".
    """
    chosen = random.Random(draw)
    others = sorted(name for name in concept if concept[name] != concept[right])
    picked = [right, *chosen.sample(others, min(AMONG - 1, len(others)))]
    chosen.shuffle(picked)
    return picked


def nearest(
    captions_BD: Tensor, candidates: Sequence[Sequence[str]], vectors: dict[str, Tensor]
) -> list[str]:
    """For each caption the candidate whose unit vector has the largest dot product with it."""
    return [
        max(options, key=lambda name: float(vectors[name] @ caption))
        for caption, options in zip(captions_BD, candidates, strict=True)
    ]
