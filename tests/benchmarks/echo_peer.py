"""A peer of few words, for tests: it answers with the prompt's own ids, over and over."""

import sys
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.peers.worker import Floats, Ids, Timed, serve


class Echo:
    def __init__(self, settings: dict[str, Any]) -> None:
        if settings.get("broken"):
            raise ValueError("not today\nnor tomorrow")
        self.short = settings.get("short", 0)

    def facts(self) -> dict[str, Any]:
        print("what a library prints")
        return {"versions": {"echo": "1"}, "bytes": 1000}

    def generate(self, prompt: Ids, count: int) -> Timed:
        return self.batch([prompt], count)

    def batch(self, prompts: Sequence[Ids], count: int) -> Timed:
        if prompts[0] == [13]:
            raise ValueError("unlucky")
        ids = [list(islice(cycle(prompt), count - self.short)) for prompt in prompts]
        return Timed(ids, 0.5, 0.5 + count - 1)

    def logits(self, ids: Ids) -> Floats:
        return np.eye(8, dtype=np.float32)[ids] * 3


if __name__ == "__main__":
    serve(Echo)
