"""OpenVINO GenAI with its continuous batching pipeline.

Logits are told by the same model in plain OpenVINO, since the pipeline does not give them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai as genai

from benchmarks.peers.worker import Floats, Ids, Timed, serve


class OpenVino:
    """Settings: `model` (folder of the converted model), `threads`, `options` (of the device)."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.options = {"INFERENCE_NUM_THREADS": settings["threads"], **settings.get("options", {})}
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = 1
        scheduler.enable_prefix_caching = False
        scheduler.max_num_seqs = 256
        scheduler.max_num_batched_tokens = settings.get("step_tokens", 4096)
        self.pipe = genai.ContinuousBatchingPipeline(
            settings["model"], scheduler, "CPU", self.options
        )
        self.compiled: Any = None
        self.number = 0

    def facts(self) -> dict[str, Any]:
        """Versions and bytes."""
        names = ("openvino", "openvino-genai")
        return {
            "versions": {name: version(name) for name in names},
            "bytes": (Path(self.settings["model"]) / "openvino_model.bin").stat().st_size,
        }

    def generate(self, prompt: Ids, count: int) -> Timed:
        """As the protocol says."""
        return self.batch([prompt], count)

    def batch(self, prompts: Sequence[Ids], count: int) -> Timed:
        """All requests added, then steps until each is finished."""
        config = genai.GenerationConfig()
        config.max_new_tokens = count
        config.ignore_eos = True
        config.do_sample = False
        tensors = [openvino.Tensor(np.array([prompt], np.int64)) for prompt in prompts]
        began, first = time.perf_counter(), 0.0
        handles = []
        for tensor in tensors:
            self.number += 1
            handles.append(self.pipe.add_request(self.number, tensor, config))
        answers: list[Ids] = [[] for _ in prompts]
        while self.pipe.has_non_finished_requests():
            self.pipe.step()
            for answer, handle in zip(answers, handles, strict=True):
                if handle.can_read():
                    for output in handle.read().values():
                        answer += output.generated_ids
            if not first and any(answers):
                first = time.perf_counter() - began
        return Timed(answers, first, time.perf_counter() - began)

    def logits(self, ids: Ids) -> Floats:
        """One pass over all ids."""
        if self.compiled is None:
            core = openvino.Core()
            model = core.read_model(Path(self.settings["model"]) / "openvino_model.xml")
            self.compiled = core.compile_model(model, "CPU", self.options).create_infer_request()
        self.compiled.reset_state()
        row = np.array([ids], np.int64)
        known = {
            "input_ids": row, "attention_mask": np.ones_like(row),
            "position_ids": np.arange(len(ids), dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }  # fmt: skip
        names = {name for port in self.compiled.model_inputs for name in port.names}
        result = self.compiled.infer({k: v for k, v in known.items() if k in names})
        return np.array(result[self.compiled.model_outputs[0]][0], np.float32)


if __name__ == "__main__":
    serve(OpenVino)
