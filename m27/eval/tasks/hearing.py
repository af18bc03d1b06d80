"""Hearing what is no speech: the family of an instrument, and which of twenty sounds this is.

Notes are of instrument-and-pitch pairs, and of a sound font, never trained on. The sounds are
ESC-10's held-out fold, held-out stamps and held-out samples; a caption counts as right if of
twenty held-out names the nearest in meaning (MiniLM) is the sound's own.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from m27.data.makers import triples
from m27.data.messages import sound, words
from m27.data.prompts import ask
from m27.data.sources import environment, instruments, sonic_pi
from m27.data.sources.base import Document
from m27.data.sources.clips import loudest, on_side
from m27.eval.bench import Bench, Records
from m27.eval.report import Row, bars
from m27.eval.score import wilson
from m27.eval.sentence import SentenceEncoder
from m27.eval.tasks.captions import nearest
from m27.eval.tasks.naming import Naming
from m27.eval.tasks.sample import Sample, data_hash, picked, rank
from m27.eval.tasks.sample import ask as asked

AMONG = 20


def families(n: int, seed: int) -> list[Sample]:
    """Held-out notes; the answer is the family of their instrument, the part their sound font."""
    return [
        Sample(i.key, asked(i, ask("name_family")), instruments.FAMILIES[i.text],
               part=str(i.meta["font"]))
        for i in picked(instruments.items(), n, seed)
    ]  # fmt: skip


# Who names the instrument has named its family.
INSTRUMENT_FAMILY = Naming(
    "instrument-family",
    families,
    tuple(dict.fromkeys(instruments.FAMILIES.values())),
    aliases={"string": "strings", "woodwinds": "woodwind", "keys": "keyboard"}
    | {name: family for name, family in instruments.FAMILIES.items() if name != family},
    levels=(0.60, 0.85),
)


class SoundsAmong:
    """Retrieval R@1 of the model's names for held-out sounds among `AMONG` held-out names."""

    name = "sounds-r20"

    def run(self, bench: Bench) -> tuple[Row, Records]:
        """Name, embed, find the nearest name; the baseline always says the commonest answer."""
        every = held_out(bench.seed)
        samples = every[: bench.samples]
        said = bench.answers([s.messages for s in samples], 16, self.name)
        names = sorted({s.answer for s in every})
        encoder = SentenceEncoder.load()
        vectors = dict(zip(names, encoder.encode(names), strict=True))
        options = [candidates(names, s.answer, f"{bench.seed}:{s.id}") for s in samples]
        found = nearest(encoder.encode(said), options, vectors)
        common = Counter(said).most_common(1)[0][0] if said else ""
        same = encoder.encode([common]).expand(len(samples), -1)
        by_constant = nearest(same, options, vectors)
        records: Records = [
            {"id": s.id, "part": s.part, "answer": s.answer, "prediction": text, "choice": choice,
             "right": choice == s.answer}
            for s, text, choice in zip(samples, said, found, strict=True)
        ]  # fmt: skip
        right, n = sum(bool(r["right"]) for r in records), len(records)
        low, high = wilson(right, n)
        pairs = zip(by_constant, samples, strict=True)
        passed, goal, bar = bars(right / max(n, 1), 0.15, 0.40)
        row = Row(
            task=self.name, n=n, score=right / max(n, 1), low=low, high=high,
            chance=sum(1 / len(o) for o in options) / max(n, 1),
            frequent=sum(choice == s.answer for choice, s in pairs) / max(n, 1),
            by_kind=None, passed=passed, goal=goal, bar=bar, data=data_hash(samples),
            seconds=0.0, origin=bench.origin, note=f"{by_part(records)}; says most: {common!r}",
        )  # fmt: skip
        return row, records


def by_part(records: Records) -> str:
    """The share right in each part of the data."""
    said = []
    for part in sorted({r["part"] for r in records}):
        rows = [r["right"] for r in records if r["part"] == part]
        said.append(f"{part} {100 * sum(rows) / len(rows):.1f} % of {len(rows)}")
    return ", ".join(said)


def candidates(names: Sequence[str], right: str, draw: str) -> list[str]:
    """The right name and up to 19 others, drawn by `draw`, in a random order."""
    chosen = random.Random(draw)
    others = [name for name in names if name != right]
    options = [right, *chosen.sample(others, min(AMONG - 1, len(others)))]
    chosen.shuffle(options)
    return options


def held_out(seed: int) -> list[Sample]:
    """The held-out sounds of the three sources, each with its plain name, in the order of the
    seed."""
    documents: list[Document] = [*environment.documents("test"), *triples.documents("test", 0)]
    samples = [
        Sample(d["id"], d["messages"][:1], d["messages"][1]["content"][0]["text"], part=d["source"])
        for d in documents
        if d["task"] == "name_sound"
    ]
    for item in on_side(sonic_pi.items(), "test"):
        if item.audio is not None and item.text:
            content = [sound(loudest(item.audio, 2.0)), words(ask("name_sound"))]
            messages = [{"role": "user", "content": content}]
            samples.append(Sample(item.key, messages, item.text, part=item.source))
    return sorted(samples, key=lambda s: rank(seed, s.id))
