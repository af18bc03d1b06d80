"""Is every output valid? Random prompts over all modality settings, sampled at temperature 1.

An output is valid if it parses by a reader written here, apart from the grammar that made it, and
by the processor: every picture has a size and exactly that many codes, every sound is closed,
nothing is produced that was not allowed, and the counts keep to their limits.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from m27.eval.bench import Bench, Messages, Records
from m27.eval.report import Row
from m27.eval.score import wilson
from m27.infer.request import Request
from m27.language.grammar import Grammar
from m27.language.vocabulary import Vocabulary

MEDIA = ("text", "image", "audio")
SPOKEN = (
    "draw a red fox please story two pictures of sound what is this the dog barks then say hello "
    "music piano and in snow 3 × 7 ? ! ü 你好 🦊 \n <|image|> <|im_end|> <|/audio|> <|h8|>"
)
WORDS = SPOKEN.split(" ")


@dataclass(frozen=True)
class Case:
    """A random prompt with its settings, which `Grammar` takes as keywords."""

    id: str
    messages: Messages
    settings: dict[str, Any]
    max_tokens: int


def cases(n: int, seed: int, vocabulary: Vocabulary) -> list[Case]:
    """`n` random prompts: texts, typed control tokens, random codes; every set of modalities in
    turn."""
    subsets = [[m for k, m in enumerate(MEDIA) if number >> k & 1] for number in range(1, 8)]
    made = []
    for number in range(n):
        draw = random.Random(f"m27-structure:{seed}:{number}")
        modalities = subsets[number % len(subsets)]
        settings: dict[str, Any] = {
            "modalities": tuple(modalities),
            "max_images": draw.choice([1, 2, 8]),
            "max_sounds": draw.choice([1, 4]),
            "image_grid": draw.choice([(8, 8), (8, 8), (4, 6), (1, 1), None]),
            "max_audio_codes": draw.choice([1, 12, 60, 400]),
        }
        if draw.random() < 0.4:
            plan = [draw.choice(modalities) for _ in range(draw.randint(1, 4))]
            few_images = plan.count("image") <= settings["max_images"]
            if few_images and plan.count("audio") <= settings["max_sounds"]:
                settings["plan"] = tuple(plan)
        messages = [{"role": "user", "content": content(draw, vocabulary)}]
        budget = draw.randint(8, 120)
        made.append(Case(f"structure/{seed}/{number}", messages, settings, budget))
    return made


def content(draw: random.Random, vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """The parts of a random user message: words, and now and then random picture or sound codes."""
    parts: list[dict[str, Any]] = [
        {"type": "text", "text": " ".join(draw.choices(WORDS, k=draw.randint(0, 12)))}
    ]
    if draw.random() < 0.2:
        rows = [[draw.randrange(vocabulary.image_size) for _ in range(3)] for _ in range(2)]
        parts.append({"type": "image", "codes": np.array(rows)})
    if draw.random() < 0.2:
        codes = [draw.randrange(vocabulary.audio_size) for _ in range(9)]
        parts.insert(0, {"type": "audio", "codes": np.array(codes)})
    return parts


def faults(ids: Sequence[int], vocabulary: Vocabulary, settings: dict[str, Any]) -> list[str]:
    """What is wrong with an answer's ids; an empty list if it is valid.

    A second reading of the format, sharing nothing with `Grammar` but the ids' meaning.
    """
    if not ids or ids[-1] != vocabulary.turn_end:
        return ["does not end its turn"]
    body, at = list(ids[:-1]), 0
    order: list[str] = []
    wrong: list[str] = []
    counts: Counter[str] = Counter()
    while at < len(body):
        if body[at] == vocabulary.image_begin:
            head = body[at + 1 : at + 3]
            sizes = zip(head, (vocabulary.heights, vocabulary.widths), strict=False)
            sized = len(head) == 2 and all(id in ids for id, ids in sizes)
            if not sized:
                return [*wrong, f"picture without a size at {at}"]
            h, w = vocabulary.heights.index(head[0]) + 1, vocabulary.widths.index(head[1]) + 1
            grid, end = settings.get("image_grid", (8, 8)), at + 3 + h * w
            codes = body[at + 3 : end]
            if grid is not None and (h, w) != tuple(grid):
                wrong.append(f"picture of {h} by {w} codes at {at}")
            if len(codes) != h * w or any(c not in vocabulary.image for c in codes):
                return [*wrong, f"picture without its {h * w} codes at {at}"]
            if body[end : end + 1] != [vocabulary.image_end]:
                return [*wrong, f"picture not closed at {end}"]
            medium, at = "image", end + 1
        elif body[at] == vocabulary.audio_begin:
            end = at + 1
            while end < len(body) and body[end] in vocabulary.audio:
                end += 1
            if body[end : end + 1] != [vocabulary.audio_end]:
                return [*wrong, f"sound not closed at {end}"]
            if not 1 <= end - at - 1 <= settings.get("max_audio_codes", 400):
                wrong.append(f"sound of {end - at - 1} codes at {at}")
            medium, at = "audio", end + 1
        elif vocabulary.kind(body[at]) == "text":
            while at < len(body) and vocabulary.kind(body[at]) == "text":
                at += 1
            medium = "text"
        else:
            return [*wrong, f"id {body[at]} outside its place at {at}"]
        order.append(medium)
        counts[medium] += 1
        if medium not in settings["modalities"]:
            wrong.append(f"{medium}, which is not allowed")
    if counts["image"] > settings["max_images"] or counts["audio"] > settings["max_sounds"]:
        wrong.append("more pictures or sounds than allowed")
    plan = settings.get("plan")
    if plan is not None:
        merged = [m for k, m in enumerate(plan) if k == 0 or m != "text" or plan[k - 1] != "text"]
        if order != merged:
            wrong.append(f"order {order}, not the plan {merged}")
    return wrong


class Structure:
    """The share of valid outputs; the bar is all of them."""

    name = "structure"

    def run(self, bench: Bench) -> tuple[Row, Records]:
        """`bench.validity` random prompts with the model's weights; every output read twice."""
        processor = bench.engine.processor
        vocabulary = processor.vocabulary
        made = cases(bench.validity, bench.seed, vocabulary)
        requests = [
            Request(
                case.messages, **case.settings, guidance=1.0, temperature=1.0, top_p=1.0,
                repetition_penalty=1.0, seed=bench.seed * 1_000_003 + number,
                # A plan may take more.
                max_tokens=max(case.max_tokens, Grammar(vocabulary, **case.settings).needed()),
            )
            for number, case in enumerate(made)
        ]  # fmt: skip
        answers = [list(response.ids) for response in bench.generate(requests, self.name)]
        records: Records = []
        for case, ids in zip(made, answers, strict=True):
            wrong = faults(ids, vocabulary, case.settings)
            try:
                processor.decode(ids)
            except ValueError as error:
                wrong.append(f"does not decode: {error}")
            records.append({"id": case.id, "faults": wrong, "right": not wrong, "ids": len(ids)})
        right, n = sum(r["right"] for r in records), len(records)
        low, high = wilson(right, n)
        digest = hashlib.sha256("\n".join(str(case) for case in made).encode())
        row = Row(
            task=self.name, n=n, score=right / max(n, 1), low=low, high=high, chance=None,
            frequent=None, by_kind=None, passed=right == n, bar="every output valid",
            data=digest.hexdigest()[:12], seconds=0.0, origin=bench.origin,
            note=f"{sum(len(a) for a in answers)} ids drawn at temperature 1",
        )  # fmt: skip
        return row, records
