"""Figures of interleaved answers that need no judge: structure, placement, count, and coherence by an encoder.

All are rules over what was answered and the data set's own (gold) answer; none says whether an answer is good.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from m27.data.media_parts import heard, pixels
from m27.eval.interleaved.content import Part, blocks, kinds
from m27.eval.score import clustered_mean, ratio_of_means, wilson
from m27.eval.tasks.coherence import Pair, advantages, pairs


class Encoder(Protocol):
    """Pictures and texts in one space."""

    @property
    def name(self) -> str:
        """What it is, and its revision."""
        ...

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Vectors (N, D) of N texts."""
        ...

    def pictures(self, pictures: Sequence[Any]) -> Tensor:
        """Vectors (N, D) of N pictures, uint8 [H, W, 3] each."""
        ...


@dataclass(frozen=True)
class Answered:
    """One answer beside the gold one, both as parts with media by path. `error`: there is no answer."""

    id: str
    content: list[Part]
    gold: list[Part]
    cut: bool = False
    error: str = ""


Figures = dict[str, Any]


def faults(answer: Answered) -> list[str]:
    """What is wrong with an answer's structure: none, cut short, or a medium that cannot be opened."""
    if answer.error or not answer.content:
        return [answer.error or "says nothing"]
    wrong = ["cut short"] if answer.cut else []
    for part in answer.content:
        try:
            if part["type"] == "image":
                pixels(part)
            elif part["type"] == "audio":
                heard(part)
        except (ValueError, OSError) as error:
            wrong.append(f"{part['type']}: {' '.join(str(error).split())}")
    return wrong


def marks(content: Sequence[Mapping[str, Any]]) -> Counter[tuple[str, int]]:
    """Each picture and sound as (medium, number of blocks of text before it)."""
    found: Counter[tuple[str, int]] = Counter()
    texts = 0
    for part in blocks(content):
        if part["type"] == "text":
            texts += 1
        else:
            found[part["type"], texts] += 1
    return found


def share(name: str, says: str, right: Sequence[bool], **more: Any) -> Figures:
    """A share of answers, with Wilson's interval."""
    n, hits = len(right), sum(right)
    low, high = wilson(hits, n)
    return {"metric": name, "says": says, "n": n, "score": hits / max(n, 1), "low": low, "high": high, **more}


def measured(answers: Sequence[Answered], encoder: Encoder | None = None) -> list[Figures]:
    """The figures of all answers, a row each; an answer that there is not counts as wrong everywhere."""
    wrong = {a.id: faults(a) for a in answers}
    rows = [
        share("structure-valid", "every medium opens, not cut short, not empty", [not wrong[a.id] for a in answers],
              faults=dict(Counter(f.partition(":")[0] for found in wrong.values() for f in found))),
        share("structure-same", "the order of texts and media is the gold answer's",
              [not a.error and kinds(a.content) == kinds(a.gold) for a in answers]),
        share("count-pictures", "as many pictures as the gold answer", [_pictures(a.content) == _pictures(a.gold)
              for a in answers], constant=_constant(answers)),
    ]  # fmt: skip
    both = [(marks(a.content), marks(a.gold)) for a in answers]
    hits = [2.0 * (found & gold).total() for found, gold in both]
    of = [float(found.total() + gold.total()) for found, gold in both]
    if sum(of):
        score, low, high = ratio_of_means(hits, of)
        says = "F1 of (medium, blocks of text before it) over all answers"
        rows.append({"metric": "placement-f1", "says": says, "n": len(answers), "score": score, "low": low,
                     "high": high})  # fmt: skip
    if encoder is not None:
        rows.append(coherence(answers, encoder, wrong))
    return rows


def _pictures(content: Sequence[Mapping[str, Any]]) -> int:
    return sum(part["type"] == "image" for part in content)


def _constant(answers: Sequence[Answered]) -> float:
    """The share that the commonest number of pictures would get right."""
    counts = Counter(_pictures(a.gold) for a in answers)
    return max(counts.values(), default=0) / max(len(answers), 1)


def coherence(answers: Sequence[Answered], encoder: Encoder, wrong: Mapping[str, list[str]]) -> Figures:
    """Mean cosine of a picture with the text before it, less that of the text with other answers' pictures; the gold
    answers' own beside it, where their pictures lie there. Intervals resample whole answers."""
    made = _paired((a.id, a.content) for a in answers if not wrong[a.id])
    real = _paired((a.id, a.gold) for a in answers)
    score, low, high = _advantage(made, encoder)
    return {
        "metric": "coherence", "says": "cosine of picture and text before it, less that over other answers' pictures",
        "n": len(made), "score": score, "low": low, "high": high, "gold": _advantage(real, encoder)[0],
        "encoder": encoder.name, "unit": "cosine",
    }  # fmt: skip


def _paired(answers: Any) -> list[Pair]:
    found: list[Pair] = []
    for name, content in answers:
        parts = []
        for part in blocks(content):
            if part["type"] == "image":
                if not Path(part["path"]).is_file():
                    continue
                part = {"type": "image", "image": pixels(part)}
            parts.append(part)
        found += pairs(name, parts)
    return found


def _advantage(made: Sequence[Pair], encoder: Encoder) -> tuple[float | None, float | None, float | None]:
    if len({name for name, _, _ in made}) < 2:
        return None, None, None  # nothing to shuffle with
    names = [name for name, _, _ in made]
    seen = encoder.pictures([np.asarray(picture, np.uint8) for _, _, picture in made])
    values = advantages(names, encoder.texts([text for _, text, _ in made]), seen)
    return clustered_mean(values, names)
