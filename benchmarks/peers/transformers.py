"""Hugging Face transformers: the model called token by token, compiled or not, a static batch, and
its continuous batching.

Runs in the development environment.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache, GenerationConfig, StaticCache

from benchmarks.peers.worker import Floats, Ids, Timed, serve


class Transformers:
    """Settings: `model`, `threads`, `dtype`, `compile`, `continuous`."""

    def __init__(self, settings: dict[str, Any]) -> None:
        torch.set_num_threads(settings["threads"])
        self.settings = settings
        self.model = AutoModelForCausalLM.from_pretrained(
            settings["model"],
            dtype=getattr(torch, settings["dtype"]),
            attn_implementation="sdpa",
        ).eval()
        self.step = self.model.forward
        if settings.get("compile"):
            self.step = torch.compile(self.model.forward, dynamic=False)

    def facts(self) -> dict[str, Any]:
        """Versions and bytes."""
        weights = {p.data_ptr(): p.numel() * p.itemsize for p in self.model.parameters()}
        versions = {name: version(name) for name in ("transformers", "torch")}
        return {"versions": versions, "bytes": sum(weights.values())}

    @torch.inference_mode()
    def generate(self, prompt: Ids, count: int) -> Timed:
        """As the protocol says; the cache is a static one where the model is compiled."""
        return self._together([prompt], count)

    @torch.inference_mode()
    def batch(self, prompts: Sequence[Ids], count: int) -> Timed:
        """One static batch, or its own continuous batching."""
        if not self.settings.get("continuous"):
            return self._together(prompts, count)
        config = GenerationConfig(max_new_tokens=count, do_sample=False, eos_token_id=-1)
        began = time.perf_counter()
        outputs = self.model.generate_batch(inputs=[list(p) for p in prompts], generation_config=config)
        seconds = time.perf_counter() - began
        answers = [list(output.generated_tokens) for output in outputs.values()]
        return Timed(answers, seconds, seconds)

    def _together(self, prompts: Sequence[Ids], count: int) -> Timed:
        """Prompts of one length, prefilled and decoded in step."""
        length = len(prompts[0])
        if any(len(prompt) != length for prompt in prompts):
            raise ValueError("a static batch takes prompts of one length")
        cache: Any = DynamicCache(config=self.model.config)
        if self.settings.get("compile"):
            cache = StaticCache(config=self.model.config, max_cache_len=length + count)
        began, first = time.perf_counter(), 0.0
        ids = torch.tensor([list(prompt) for prompt in prompts])
        answers: list[Ids] = [[] for _ in prompts]
        step = self.model.forward  # prefill is one call: compiling it costs more than it gives
        for _ in range(count):
            output = step(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            ids = output.logits[:, -1:].argmax(-1)
            for answer, token in zip(answers, ids[:, 0].tolist(), strict=True):
                answer.append(token)
            first = first or time.perf_counter() - began
            step = self.step
        return Timed(answers, first, time.perf_counter() - began)

    @torch.inference_mode()
    def logits(self, ids: Ids) -> Floats:
        """One pass over all ids."""
        return self.model(input_ids=torch.tensor([list(ids)])).logits[0].float().numpy()


if __name__ == "__main__":
    serve(Transformers)
