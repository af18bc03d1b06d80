"""llama.cpp through its C interface, as `llama-bench` and `llama-batched-bench` drive it.

Runs in llama.cpp's environment; the Python declarations are those of llama-cpp-python, the library
the one built from its vendored sources.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from llama_cpp import llama_cpp as lib

from benchmarks.peers.worker import Floats, Ids, Timed, serve


class LlamaCpp:
    """A context for up to 16 sequences. Settings: `model` (GGUF), `threads`, `build`."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        lib.llama_backend_init()
        quiet = lib.llama_log_callback(lambda level, text, data: None)
        self._keep = quiet
        lib.llama_log_set(quiet, ctypes.c_void_p(0))
        self.model = lib.llama_model_load_from_file(
            settings["model"].encode(), lib.llama_model_default_params()
        )
        if not self.model:
            raise RuntimeError(f"{settings['model']}: llama.cpp does not load it")
        self.vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))
        self.context: Any = None
        self._shape = (0, 0)

    def facts(self) -> dict[str, Any]:
        """Versions and bytes."""
        return {
            "versions": {"llama-cpp-python": self.settings.get("version", "")},
            "features": lib.llama_print_system_info().decode().strip(),
            "bytes": Path(self.settings["model"]).stat().st_size,
        }

    def _open(self, tokens: int, sequences: int) -> None:
        """A cleared context with room for `sequences` of `tokens`."""
        if self._shape != (tokens, sequences):
            if self.context:
                lib.llama_free(self.context)
            params = lib.llama_context_default_params()
            params.n_ctx = -(-tokens // 256) * 256 * sequences
            params.n_batch = params.n_ctx
            params.n_ubatch = 512
            params.n_seq_max = sequences
            params.n_threads = params.n_threads_batch = self.settings["threads"]
            params.no_perf = True
            self.context = lib.llama_init_from_model(self.model, params)
            self._shape = (tokens, sequences)
        lib.llama_memory_clear(lib.llama_get_memory(self.context), False)

    def _run(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """One batch of (id, position, sequence, whether logits are wanted)."""
        batch = lib.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
        code = lib.llama_decode(self.context, batch)
        lib.llama_batch_free(batch)
        if code:
            raise RuntimeError(f"llama_decode: {code}")

    def _best(self, row: int) -> int:
        pointer = lib.llama_get_logits_ith(self.context, row)
        return int(np.ctypeslib.as_array(pointer, (self.vocab,)).argmax())

    def generate(self, prompt: Ids, count: int) -> Timed:
        """As the protocol says."""
        return self.batch([prompt], count)

    def batch(self, prompts: Sequence[Ids], count: int) -> Timed:
        """All prompts in one call, then a token of each a call."""
        self._open(max(map(len, prompts)) + count, len(prompts))
        began, first = time.perf_counter(), 0.0
        rows = [
            (token, position, sequence, position == len(prompt) - 1)
            for sequence, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        answers: list[Ids] = [[] for _ in prompts]
        for step in range(count):
            self._run(rows)
            wanted = [i for i, row in enumerate(rows) if row[3]]
            ids = [self._best(i) for i in wanted]
            first = first or time.perf_counter() - began
            for answer, token in zip(answers, ids, strict=True):
                answer.append(token)
            rows = [
                (token, len(prompts[s]) + step, s, True) for s, token in enumerate(ids)
            ]
        return Timed(answers, first, time.perf_counter() - began)

    def logits(self, ids: Ids) -> Floats:
        """As the protocol says."""
        self._open(len(ids), 1)
        self._run([(token, position, 0, True) for position, token in enumerate(ids)])
        pointer = lib.llama_get_logits(self.context)
        return np.array(np.ctypeslib.as_array(pointer, (len(ids), self.vocab)))


if __name__ == "__main__":
    serve(LlamaCpp)
