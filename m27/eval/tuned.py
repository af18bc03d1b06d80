"""What fine-tuning changed: losses before and after in pairs, and short answers marked right or wrong.

Plain functions of numbers, strings and an engine. A change counts where its 95 % interval, resampled by whole
documents in pairs (Efron 1979), lies on one side of zero.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from m27.data.progress import Progress
from m27.eval.score import normalise, wilson
from m27.infer.engine import Engine
from m27.infer.request import Request, Response

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Change:
    """Mean loss in nats before and after over `targets`, and the difference with its 95 % interval."""

    before: float
    after: float
    low: float
    high: float
    documents: int
    targets: int

    @property
    def worse(self) -> bool:
        """Whether it grew by more than its noise."""
        return self.low > 0

    def to_json(self) -> dict[str, Any]:
        """The same as a dict, with perplexities and the difference."""
        return {
            "documents": self.documents, "targets": self.targets,
            "loss_before": round(self.before, 4), "loss_after": round(self.after, 4),
            "perplexity_before": round(float(np.exp(self.before)), 3),
            "perplexity_after": round(float(np.exp(self.after)), 3),
            "change": round(self.after - self.before, 4),
            "interval": [round(self.low, 4), round(self.high, 4)], "worse": self.worse,
        }  # fmt: skip


def change(
    before: npt.NDArray[np.float64],
    after: npt.NDArray[np.float64],
    counts: npt.NDArray[np.int64],
    seed: int = 0,
    draws: int = 2000,
) -> Change | None:
    """The change of the mean loss; sums of losses [N] and targets [N] of the same documents.

    None where they have no target. With one document there is no telling noise: the interval is infinite.
    """
    kept = counts > 0
    if not kept.any():
        return None
    before, after, counts = before[kept], after[kept], counts[kept]
    total, n = int(counts.sum()), len(counts)
    low, high = -np.inf, np.inf
    if n > 1:
        picks = np.random.default_rng(seed).integers(0, n, (draws, n))
        moved = (after - before)[picks].sum(1) / counts[picks].sum(1)
        low, high = (float(x) for x in np.quantile(moved, [0.025, 0.975]))
    return Change(float(before.sum()) / total, float(after.sum()) / total, low, high, n, total)


@dataclass(frozen=True)
class Question:
    """A conversation up to the last answer, and that answer, which is words alone."""

    id: str
    messages: Messages
    answer: str


def question(document: Mapping[str, Any]) -> Question | None:
    """The question of a document that ends in an answer of words; None for another."""
    *asked, last = document["messages"]
    content = last["content"]
    if last["role"] != "assistant" or not asked:
        return None
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if any(part["type"] != "text" for part in parts):
        return None
    return Question(str(document["id"]), list(asked), "".join(part["text"] for part in parts))


def answers(
    engine: Engine,
    questions: Sequence[Question],
    adapter: str | None,
    max_tokens: int,
    label: str = "answering",
) -> list[str]:
    """The engine's greedy answer in words to each question, with `adapter` or as it is."""
    requests = [
        Request(
            q.messages, modalities=("text",), max_tokens=max_tokens + 1, temperature=0.0,
            repetition_penalty=1.0, seed=0, adapter=adapter,
        )
        for q in questions
    ]  # fmt: skip
    with Progress(label, len(requests)) as bar:
        return [response.text.strip() for response in engine.answer(requests, bar.add)]


def drawn(
    engine: Engine,
    document: Mapping[str, Any],
    adapter: str | None,
    seed: int,
    max_tokens: int = 700,
) -> Response:
    """The engine's answer with media to the conversation before a document's last message."""
    return engine.chat(
        Request(
            list(document["messages"][:-1]), plan=_media(document["messages"][-1]), seed=seed,
            max_tokens=max_tokens, adapter=adapter,
        )
    )  # fmt: skip


def _media(message: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(part["type"] for part in message["content"])


def fields(text: str) -> dict[str, str] | None:
    """The fields of a JSON object as plain strings, or None where the text is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    return {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in found.items()
    }


def marks(expected: str, given: str) -> dict[str, float]:
    """How far an answer is right, each 0 or 1: `exact` but for case, articles and punctuation;
    `contains` the expected words; and where a JSON object is expected `json` (it is one) and
    `field KEY` for each of its keys."""
    want, have = normalise(expected), normalise(given)
    out = {"exact": float(want == have), "contains": float(f" {want} " in f" {have} ")}
    wanted = fields(expected)
    if wanted is None:
        return out
    found = fields(given)
    out |= {"exact": float(found is not None and found == wanted), "json": float(found is not None)}
    del out["contains"]
    for key, value in wanted.items():
        out[f"field {key}"] = float(
            found is not None and normalise(found.get(key, "")) == normalise(value)
        )
    return out


def shares(marked: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """The mean of each mark over the answers that have it, with its 95 % interval and number."""
    out: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(name for one in marked for name in one):
        values = [one[name] for one in marked if name in one]
        low, high = wilson(round(sum(values)), len(values))
        out[name] = {
            "share": round(sum(values) / len(values), 4), "interval": [round(low, 4), round(high, 4)],
            "n": len(values),
        }  # fmt: skip
    return out
