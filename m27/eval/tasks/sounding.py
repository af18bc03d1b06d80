"""Making sounds: is the asked instrument heard, and does the sound fit the picture?

The instrument is named by a probe: ridge regression from the features of `m27.eval.ear`, trained on
real notes of the training side, as rendered and as the codec gives them back. The fit to a picture
is retrieval: of ten real held-out sounds the nearest must be the picture's own. Ceilings, in the
notes, are what real sounds get that only went through the codec.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from m27.data.makers import heard_pictures, triples
from m27.data.sources import environment, instruments, sonic_pi, stamps
from m27.data.sources.base import Item, of_split
from m27.data.sources.clips import loudest, on_side
from m27.eval.bench import Bench, Records
from m27.eval.ear import Whitening, listen_all, listen_items
from m27.eval.report import Row, bars
from m27.eval.score import most_frequent, wilson
from m27.eval.tasks.sample import Sample, data_hash, picked, rank
from m27.eval.tasks.speech import coded
from m27.eval.teacher import Ridge
from m27.infer.request import Request

PER_INSTRUMENT = 16  # training notes of each that the probe sees
CHECKED = 120  # real held-out notes that the probe is checked on
AMONG = 10
PENALTY = 0.3


def made(bench: Bench, samples: Sequence[Sample], codes: int, label: str) -> list[Any]:
    """One sound a sample, float32 [T], with the seed of its place and the default guidance."""
    requests = [
        Request(s.messages, modalities=("audio",), plan=("audio",), max_tokens=codes + 40,
                max_audio_codes=codes, seed=bench.seed * 1_000_003 + number)
        for number, s in enumerate(samples)
    ]  # fmt: skip
    return [r.content[0]["audio"] for r in bench.generate(requests, label=label)]


class MakeSounds:
    """The share of notes in which the probe hears the instrument that was asked for."""

    name = "make-sounds"
    decodes = "audio"

    def run(self, bench: Bench) -> tuple[Row, Records]:
        """Ask for held-out notes, and let the probe name the instrument of each."""
        samples = wishes(bench.samples, bench.seed)
        names = list(instruments.INSTRUMENTS)
        hear, ceilings = probe(bench, names)
        heard = hear(listen_all(made(bench, samples, 60, self.name), self.name)).argmax(1)
        family = instruments.FAMILIES
        records: Records = []
        for sample, place in zip(samples, heard.tolist(), strict=True):
            choice = names[place]
            alike = family[choice] == family[sample.answer]
            records.append({"id": sample.id, "answer": sample.answer, "choice": choice,
                            "family": alike, "right": choice == sample.answer})  # fmt: skip
        alike_share = sum(bool(r["family"]) for r in records) / max(1, len(records))
        note = (
            f"family right {100 * alike_share:.1f} %; the probe on real held-out notes "
            f"{100 * ceilings[0]:.1f} %, after the codec {100 * ceilings[1]:.1f} %"
        )
        row = share_row(self.name, bench, samples, records, (0.50, 0.80), 1 / len(names))
        golds = [s.answer for s in samples]
        return replace(row, note=note, frequent=most_frequent(golds)[1]), records


def wishes(n: int, seed: int) -> list[Sample]:
    """Requests for notes of held-out pairs, as training words them; the answer is the
    instrument."""
    asked = [
        Sample(d["id"], d["messages"][:1], d["id"].split("/")[2])
        for d in instruments.documents("test")
        if d["task"] == "sound_for_text"
    ]
    return sorted(asked, key=lambda s: rank(seed, s.id))[:n]


def probe(bench: Bench, names: list[str]) -> tuple[Ridge, tuple[float, float]]:
    """Features → a score for each name; its accuracy on held-out notes, before and after the
    codec."""
    notes = [i for i in instruments.items() if i.meta["kind"] == "note"]
    fluid = [i for i in notes if i.meta["font"] == instruments.FLUID]
    learned: list[Item] = []
    for name in names:
        mine = sorted((i for i in on_side(fluid, "train") if i.text == name), key=_drawn)
        learned += mine[:PER_INSTRUMENT]
    checked = picked(fluid, CHECKED, 0)
    raw = listen_items([*learned, *checked], "notes")
    revision = getattr(bench.engine.processor.audio_codec, "revision", "none")
    again = [replace(i, audio=coded(bench, i.audio)) for i in (*learned, *checked)]
    through = listen_items(again, f"notes-{revision}")
    count = len(learned)
    places = [names.index(item.text) for item in (*learned, *checked)]
    targets = torch.nn.functional.one_hot(torch.tensor(places), len(names)).float()
    hear = Ridge(
        torch.cat([raw[:count], through[:count]]),
        torch.cat([targets[:count], targets[:count]]),
        PENALTY,
    )
    gold = targets[count:].argmax(1)
    before, after = ((hear(x[count:]).argmax(1) == gold).float().mean() for x in (raw, through))
    return hear, (float(before), float(after))


def _drawn(item: Item) -> str:
    return rank(0, item.key)


class SoundForPicture:
    """Retrieval R@1 of a made sound among the real sounds of ten held-out pictures."""

    name = "sound-for-picture"
    decodes = "audio"

    def run(self, bench: Bench) -> tuple[Row, Records]:
        """Show, let the model sound, and look for the nearest real sound."""
        samples, sounds = shown(bench.samples, bench.seed)
        whiten = Whitening(listen_items(known(), "sounds"))
        real = whiten(listen_all(sounds, self.name))
        mine = whiten(listen_all(made(bench, samples, 100, self.name), self.name))
        options = [_among(samples, k, bench.seed) for k in range(len(samples))]
        found = nearest(mine, real, options)
        always = nearest(mine.mean(0).expand_as(mine), real, options)
        some = range(min(40, len(samples)))
        again = whiten(listen_all([coded(bench, sounds[k]) for k in some], self.name))
        ceiling = nearest(again, real, options[: len(some)])
        records: Records = [
            {"id": s.id, "part": s.part, "answer": s.answer, "choice": samples[choice].answer,
             "right": choice == k}
            for k, (s, choice) in enumerate(zip(samples, found, strict=True))
        ]  # fmt: skip
        chance = sum(1 / len(places) for places in options) / max(1, len(options))
        row = share_row(self.name, bench, samples, records, (0.20, 0.50), chance)
        share = sum(choice == k for k, choice in enumerate(always)) / max(1, len(samples))
        top = sum(choice == k for k, choice in enumerate(ceiling)) / max(1, len(some))
        parts = sorted({s.part for s in samples})
        told = ", ".join(f"{p} {sum(s.part == p for s in samples)}" for p in parts)
        note = f"R@1 among {AMONG}; {told}; the true sounds after the codec {100 * top:.1f} %"
        return replace(row, note=note, frequent=share), records


def shown(n: int, seed: int) -> tuple[list[Sample], list[Any]]:
    """Held-out pictures with a request, and the real sound of each; the stamps come first."""
    pairs: list[tuple[Sample, Any]] = []
    for module in (triples, heard_pictures):
        documents = list(module.documents("test", 0))
        names = {
            d["id"].split(":", 1)[1]: d["messages"][1]["content"][0].get("text", "")
            for d in documents
            if d["task"] == "name_sound"
        }
        found = []
        for d in documents:
            if d["task"] == "sound_for_picture":
                key = d["id"].split(":", 1)[1]
                name = names.get(key) or key.rsplit("/", 1)[1].replace("_", " ")
                sample = Sample(d["id"], d["messages"][:1], name, part=d["source"])
                found.append((sample, d["messages"][1]["content"][0]["audio"]))
        pairs += sorted(found, key=lambda pair: rank(seed, pair[0].id))
    return [sample for sample, _ in pairs[:n]], [audio for _, audio in pairs[:n]]


def known() -> list[Item]:
    """Real sounds of the training side, from which the comparison learns what varies."""
    found = [
        *on_side(environment.items(), "train"),
        *of_split(stamps.sounds(), "train"),
        *on_side(sonic_pi.items(), "train"),
    ]
    return [
        replace(i, audio=loudest(i.audio, 2.0))
        for i in found
        if i.audio is not None and i.audio.size
    ]


def _among(samples: Sequence[Sample], right: int, seed: int) -> list[int]:
    """The sample's own place and nine of others, each of another name."""
    draw = random.Random(f"{seed}:{samples[right].id}")
    by_name: dict[str, list[int]] = {}
    for place, sample in enumerate(samples):
        if sample.answer != samples[right].answer:
            by_name.setdefault(sample.answer, []).append(place)
    names = draw.sample(sorted(by_name), min(AMONG - 1, len(by_name)))
    return [right, *(draw.choice(by_name[name]) for name in names)]


def nearest(queries_NE: Tensor, real_ME: Tensor, options: Sequence[Sequence[int]]) -> list[int]:
    """For each query the place among its options whose unit vector is most like it."""
    found = []
    for query_E, places in zip(queries_NE, options, strict=True):
        likeness = real_ME[list(places)] @ query_E
        found.append(places[int(likeness.argmax())])
    return found


def share_row(
    name: str,
    bench: Bench,
    samples: list[Sample],
    records: Records,
    levels: tuple[float, float],
    chance: float,
) -> Row:
    """The row of a share of right records with a floor and a goal."""
    right, n = sum(bool(r["right"]) for r in records), len(records)
    low, high = wilson(right, n)
    passed, goal, bar = bars(right / max(n, 1), *levels)
    return Row(
        task=name, n=n, score=right / max(n, 1), low=low, high=high, chance=chance,
        frequent=None, by_kind=None, passed=passed, goal=goal, bar=bar,
        data=data_hash(samples), seconds=0.0, origin=bench.origin,
    )  # fmt: skip
