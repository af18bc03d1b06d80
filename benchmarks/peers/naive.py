"""Our own naive path: the decoder in torch, float32, one token a step. The oracle of every figure."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch

from benchmarks.peers.worker import Floats, Ids, Timed, serve
from m27.model import checkpoint
from m27.model.generate import generate


class Naive:
    """Settings: `model`, `threads`."""

    def __init__(self, settings: dict[str, Any]) -> None:
        torch.set_num_threads(settings["threads"])
        self.model = checkpoint.load(settings["model"])

    def facts(self) -> dict[str, Any]:
        """Versions and bytes."""
        size = sum(p.numel() * p.itemsize for p in self.model.parameters())
        return {"versions": {"torch": version("torch")}, "bytes": size}

    def generate(self, prompt: Ids, count: int) -> Timed:
        """As the protocol says."""
        began, first = time.perf_counter(), 0.0
        answer: Ids = []
        stream = generate(
            self.model, prompt, choose=lambda logits_V, ids: int(logits_V.argmax()), max_tokens=count
        )
        for token in stream:
            first = first or time.perf_counter() - began
            answer.append(token)
        return Timed([answer], first, time.perf_counter() - began)

    def batch(self, prompts: Sequence[Ids], count: int) -> Timed:
        """One after the other: it knows no batch."""
        began = time.perf_counter()
        timed = [self.generate(prompt, count) for prompt in prompts]
        return Timed([t.ids[0] for t in timed], timed[0].first, time.perf_counter() - began)

    @torch.inference_mode()
    def logits(self, ids: Ids) -> Floats:
        """One pass over all ids."""
        hidden_BTD = self.model.hidden(self.model.embed(torch.tensor([list(ids)])))
        return self.model.logits(hidden_BTD[0]).float().numpy()


if __name__ == "__main__":
    serve(Naive)
