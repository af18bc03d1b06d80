"""Our engine, asked as a user asks it: whole requests in, events out, grammar and sampler included.

The end of the turn is put off until the last id, as it is for every peer ("ignore_eos"), and what was
computed for an earlier prompt is not found again, since no peer is allowed that here either.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from benchmarks.peers.worker import Floats, Ids, Timed, serve
from m27.infer.engine import Engine
from m27.infer.request import Request
from m27.infer.runner import Batch, Wanted
from m27.infer.scheduler import Limits

BEFORE, AFTER = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"


class Ours:
    """Settings: `model`, `threads`, and what `Engine.load` takes (`precision`, `cache`, …)."""

    def __init__(self, settings: dict[str, Any]) -> None:
        options = {k: v for k, v in settings.items() if k not in ("model", "limits")}
        limits = Limits(reuse=False, **settings.get("limits", {}))
        self.tokenizer = Tokenizer.from_file(f"{settings['model']}/tokenizer.json")
        self.engine = Engine.load(settings["model"], limits=limits, **options)

    def facts(self) -> dict[str, Any]:
        """What the runner says of itself."""
        found = self.engine.runner.facts()
        return {"versions": {}, "runner": found, "bytes": found.get("weight_bytes")}

    def _request(self, prompt: Ids, count: int) -> Request:
        """The request whose prompt has these ids. Raises ValueError where they are not a chat's."""
        text = self.tokenizer.decode(list(prompt), skip_special_tokens=False)
        if not (text.startswith(BEFORE) and text.endswith(AFTER)):
            raise ValueError("our engine takes conversations, and these ids are none")
        content = text.removeprefix(BEFORE).removesuffix(AFTER)
        return Request(
            messages=[{"role": "user", "content": content}], modalities=("text",),
            max_tokens=count + 1, min_text=count, temperature=0.0, repetition_penalty=1.0, seed=0,
        )  # fmt: skip

    def generate(self, prompt: Ids, count: int) -> Timed:
        """As the protocol says."""
        return self.batch([prompt], count)

    def batch(self, prompts: Sequence[Ids], count: int) -> Timed:
        """All requests added, then steps until the engine has nothing left to do."""
        requests = [self._request(prompt, count) for prompt in prompts]
        began, first = time.perf_counter(), 0.0
        places = {self.engine.add(request): i for i, request in enumerate(requests)}
        answers: list[Ids] = [[] for _ in prompts]
        while self.engine.busy():
            for number, event in self.engine.step():
                if event["type"] == "error":
                    raise RuntimeError(event["message"])
                if event["type"] == "done":
                    answers[places[number]] = event["ids"][:count]
                first = first or time.perf_counter() - began
        return Timed(answers, first, time.perf_counter() - began)

    def logits(self, ids: Ids) -> Floats:
        """One step of the runner, every id's whole row asked for."""
        runner = self.engine.runner
        count, size = len(ids), runner.block_size
        blocks = -(-count // size)
        places = np.arange(count, dtype=np.int32)
        every = Wanted(((0, runner.config.vocab_size),), range(count))
        batch = Batch(
            ids=np.array(ids, np.int32), positions=places, slots=places.copy(),
            starts=np.array([0, count], np.int32),
            tables=np.arange(blocks, dtype=np.int32)[None],
            adapters=np.array([-1], np.int32), wanted=[every],
        )  # fmt: skip
        return runner.run(batch)[0]


if __name__ == "__main__":
    serve(Ours)
