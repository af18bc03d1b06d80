"""The model under test, and what every task asks of it: answers to many conversations at once.

`answers` are greedy and text only, `generate` is whatever a request asks for, pictures and sounds
included; both under the same grammar and through the same processor as anyone's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from m27.data.progress import Progress
from m27.eval.report import Origin, Row
from m27.infer.batch import generate_batch
from m27.infer.engine import Engine
from m27.infer.many import answer_batch
from m27.infer.request import Request, Response
from m27.language.grammar import Grammar

Messages = list[dict[str, Any]]


@dataclass
class Bench:
    """An engine with the settings of a run: how many samples a task, the seed, rows at a time, and
    the folder for what a task wants to show."""

    engine: Engine
    folder: Path
    origin: Origin
    samples: int = 500
    validity: int = 500
    batch: int = 32
    out: Path = Path("out/eval")

    @property
    def seed(self) -> int:
        """The seed of the run: it picks the samples, the distractors and the random prompts."""
        return self.origin.seed

    def answers(
        self, conversations: Sequence[Messages], max_tokens: int, label: str = "answering"
    ) -> list[str]:
        """The model's greedy text answer to each conversation, cut at `max_tokens`."""
        processor = self.engine.processor
        vocabulary = processor.vocabulary
        with Progress(f"{label}: reading", len(conversations)) as bar:
            prompts = []
            for messages in conversations:
                prompts.append(processor.encode(messages, generate=True).ids)
                bar.add(1)
        with Progress(f"{label}: answering", len(conversations)) as bar:
            rows = generate_batch(
                self.engine.model,
                prompts,
                stop_ids={vocabulary.turn_end},
                max_tokens=max_tokens,
                constraints=[Grammar(vocabulary, modalities=("text",)) for _ in prompts],
                batch=self.batch,
                progress=bar.add,
            )
        decoded = [processor.decode(ids) for ids in rows]
        return ["".join(part["text"] for part in parts).strip() for parts in decoded]

    def generate(self, requests: Sequence[Request], label: str = "making") -> list[Response]:
        """The model's answers to whole requests, media and all, in their order.

        Give each its seed, made from the run's, so that the same run gives the same answers.
        """
        with Progress(label, len(requests)) as bar:
            return answer_batch(self.engine, requests, self.batch, bar.add)


Records = list[dict[str, Any]]  # one a sample: id, answer, prediction, right …


class Task(Protocol):
    """One thing that is measured. `run` gives its row and what was asked and answered."""

    @property
    def name(self) -> str:
        """The task's name in the table and on the command line."""

    def run(self, bench: Bench) -> tuple[Row, Records]:
        """Measure `bench.engine`."""
