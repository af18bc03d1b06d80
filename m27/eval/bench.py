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
from m27.infer.engine import Engine
from m27.infer.request import Request, Response

Messages = list[dict[str, Any]]


@dataclass
class Bench:
    """An engine with the settings of a run: how many samples a task, the seed, and the folder for
    what a task wants to show. How many are answered together is the engine's own setting."""

    engine: Engine
    folder: Path
    origin: Origin
    samples: int = 500
    validity: int = 500
    out: Path = Path("out/eval")

    @property
    def seed(self) -> int:
        """The seed of the run: it picks the samples, the distractors and the random prompts."""
        return self.origin.seed

    def answers(
        self, conversations: Sequence[Messages], max_tokens: int, label: str = "answering"
    ) -> list[str]:
        """The model's greedy text answer to each conversation, cut at `max_tokens`."""
        requests = [
            Request(
                messages, modalities=("text",), max_tokens=max_tokens + 1, temperature=0.0,
                repetition_penalty=1.0, seed=0,
            )
            for messages in conversations
        ]  # fmt: skip
        return [response.text.strip() for response in self.generate(requests, label)]

    def generate(self, requests: Sequence[Request], label: str = "making") -> list[Response]:
        """The model's answers to whole requests, media and all, in their order.

        Give each its seed, made from the run's, so that the same run gives the same answers.
        """
        with Progress(label, len(requests)) as bar:
            return self.engine.answer(requests, bar.add)


Records = list[dict[str, Any]]  # one a sample: id, answer, prediction, right …


class Task(Protocol):
    """One thing that is measured. `run` gives its row and what was asked and answered."""

    @property
    def name(self) -> str:
        """The task's name in the table and on the command line."""

    def run(self, bench: Bench) -> tuple[Row, Records]:
        """Measure `bench.engine`."""
