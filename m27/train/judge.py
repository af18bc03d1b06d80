"""How often a model prefers what it should, on pairs that it has not learnt from.

Goes through the run's own pass, forwards alone, so what is judged is what is trained.

Shapes: P pairs.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from m27.data.loader import Batch
from m27.data.mixture import Corpus, Draw
from m27.train import feed
from m27.train.loop import Trainer


@torch.no_grad()
def judge(trainer: Trainer, corpus: Corpus, limit: int | None = None) -> Tensor:
    """Of each pair of `corpus` (or of the first `limit`), in its order: rewards of the chosen and the
    rejected answer against what the run began with, then their log-probabilities in nats, [P, 4], float64
    on the CPU.

    Raises SettingError for a document that is no pair, and ValueError for one longer than a row.
    """
    config = replace(trainer.config, data=replace(trainer.config.data, tasks=None))
    scoring = feed.scoring(corpus, config)
    trainer.rows.refresh()
    trainer.way.refresh()
    found = []
    for host in _batches(trainer, corpus, limit):
        plan = replace(scoring.plan(host), learn=False)
        batch = replace(host.to(trainer.device), documents_BT=host.documents_BT)
        losses = trainer.way.run(batch, plan.to(trainer.device), 1.0, trainer.way.prepare(host))
        if losses.figures_P4 is None:
            raise ValueError("the run's objective compares no answers")
        found.append(losses.figures_P4.cpu())
    return torch.cat(found)


def _batches(trainer: Trainer, corpus: Corpus, limit: int | None) -> Iterator[Batch]:
    """All documents in their order, as many in a row as fit."""
    data = trainer.config.data
    loader = feed.loader(feed.packer(corpus, replace(trainer.config, data=replace(data, tasks=None)), None),
                         trainer.config)  # fmt: skip
    rows: list[list[Draw]] = [[]]
    room = data.row
    for number, length in enumerate(corpus.lengths.tolist()[:limit]):
        if length > data.row:
            raise ValueError(f"pair {number} is {length} ids long; a row holds {data.row}")
        if length > room:
            if len(rows) == data.rows:
                yield loader.collate(rows)
                rows = []
            rows.append([])
            room = data.row
        rows[-1].append(Draw(number, length))
        room -= length
    yield loader.collate(rows)


@dataclass(frozen=True)
class Share:
    """A share of pairs and its 95 % interval, by resampling the pairs."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def share(better: Sequence[float] | Tensor, seed: int = 0, draws: int = 2000) -> Share:
    """The mean of what is 1 where a pair is the right way round, 0 where it is not and 1/2 for a tie."""
    values = [float(value) for value in better]
    rng = random.Random(seed)
    means = sorted(sum(rng.choices(values, k=len(values))) / len(values) for _ in range(draws))
    low, high = means[int(0.025 * draws)], means[int(0.975 * draws) - 1]
    return Share(sum(values) / len(values), low, high)


def right(figures_P4: Tensor) -> tuple[Share, Share]:
    """Of what `judge` gives: in how many pairs the chosen answer's reward is the higher, and in how many
    the chosen answer is the likelier in itself."""
    parts = [
        share((figures_P4[:, i] > figures_P4[:, i + 1]).double()
              + (figures_P4[:, i] == figures_P4[:, i + 1]) / 2)
        for i in (0, 2)
    ]  # fmt: skip
    return parts[0], parts[1]
