"""Many requests on a GPU: our engine beside transformers' continuous batching, on the same weights.

Ours takes whole requests (grammar, sampler and events included), theirs the same ids from the exported
checkpoint; both are warm, neither may find an earlier prompt, and every round has prompts of its own.
Theirs runs as it chooses to, with CUDA graphs, and in smaller batches, and counts with the best of these.
"""

from __future__ import annotations

import gc
import inspect
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_parts import (
    Ids,
    Report,
    answers,
    facts,
    leading,
    made_model,
    made_processor,
    made_requests,
    median,
    prompt_of,
)
from m27.infer.cuda.graphs import FusedGraphs
from m27.infer.cuda.ops import PlainOps
from m27.infer.engine import Engine
from m27.infer.request import Request
from m27.infer.scheduler import Limits
from m27.infer.torch_runner import TorchRunner
from m27.model import checkpoint
from m27.model.decoder import Decoder

try:  # loaded while the part before this one runs
    from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig
except Exception as error:  # whatever it lacks, ours is measured
    MISSING: str | None = f"{type(error).__name__}: {error}"
else:
    MISSING = None


@dataclass
class Lengths:
    """Requests, ids of each prompt and answer, rounds; seconds of the part after which theirs, and
    the second way of theirs, begins no further round."""

    requests: int = 64
    prompt: int = 256
    out: int = 128
    rounds: int = 5
    until: float = 38.0
    end: float = 53.0


class Ours:
    """Our engine over the decoder."""

    def __init__(self, model: Decoder, processor: Any, lengths: Lengths) -> None:
        each = (lengths.prompt + lengths.out) // 16 + 3
        self.runner = TorchRunner(model, blocks=lengths.requests * each + 64)
        if self.runner.device.type != "cuda":
            self.runner.fused = FusedGraphs(self.runner, PlainOps(), capture=False)
        limits = Limits(
            sequences=lengths.requests, reuse=False, chunk=lengths.prompt,
            tokens=lengths.requests * (lengths.prompt + 1),
        )  # fmt: skip
        self.engine = Engine(self.runner, processor, limits)
        self.out = lengths.out

    def __call__(self, asked: Sequence[Request]) -> tuple[list[Ids], float]:
        """The answers, and seconds."""
        found, seconds, _ = answers(self.engine, asked, self.out)
        return found, seconds


class Theirs:
    """transformers' continuous batching, a manager that stays for all rounds."""

    def __init__(
        self, folder: Path, device: torch.device, lengths: Lengths, **options: Any
    ) -> None:
        self.lengths = lengths
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.bfloat16, attn_implementation="sdpa"
        )
        self.model = model.to(device).eval()
        known = {f.name for f in fields(ContinuousBatchingConfig)}
        wished = {"allow_block_sharing": False, "max_memory_percent": 0.5, **options}
        config = ContinuousBatchingConfig(**{k: v for k, v in wished.items() if k in known})
        how = GenerationConfig(
            max_new_tokens=lengths.out, do_sample=False, eos_token_id=-1, pad_token_id=2
        )
        self.options: dict[str, Any] = {
            "generation_config": how, "continuous_batching_config": config,
        }  # fmt: skip
        self.manager: Any = None
        make = self.model.continuous_batching_context_manager
        able = inspect.signature(make).parameters
        wants = {
            **self.options,
            "block": True,
            "timeout": 2,
            "warmup": True,
            "workload_hints": _hints(lengths),
        }
        self.around = make(**{k: v for k, v in wants.items() if k in able and v is not None})

    def __enter__(self) -> Theirs:
        self.manager = self.around.__enter__()
        return self

    def __exit__(self, *what: Any) -> None:
        self.around.__exit__(None, None, None)

    def __call__(self, prompts: Sequence[Ids]) -> tuple[list[Ids], float]:
        """The answers, and seconds. Raises RuntimeError where one is missing."""
        began = time.perf_counter()
        names = self.manager.add_requests(
            inputs=[list(p) for p in prompts], max_new_tokens=self.lengths.out
        )
        found: dict[str, Ids] = {}
        seconds = 0.0
        while len(found) < len(names):
            result = self.manager.get_result(timeout=1)
            seconds = time.perf_counter() - began
            if result is not None and result.is_finished():
                if getattr(result, "error", None):
                    raise RuntimeError(str(result.error)[:300])
                found[result.request_id] = [int(id) for id in result.generated_tokens]
            elif result is None and not self.manager.is_running():
                raise RuntimeError("the manager's thread has ended")
            if seconds > 30:
                raise RuntimeError(f"{len(found)} of {len(names)} answers after 30 s")
        return [found[name] for name in names], seconds

    def facts(self) -> dict[str, Any]:
        """How it settled on working."""
        import transformers

        processor = getattr(self.manager, "batch_processor", None)
        config = getattr(processor, "cb_config", None)
        names = ("use_cuda_graph", "use_async_batching", "max_batch_tokens", "num_blocks",
                 "max_requests_per_batch", "max_blocks_per_request", "page_size", "block_size")  # fmt: skip
        told = {name: getattr(config, name, None) for name in names}
        attention = getattr(self.model.config, "_attn_implementation", None)
        return {"transformers": transformers.__version__, "attention": attention} | {
            name: value for name, value in told.items() if value is not None
        }  # fmt: skip


def _hints(lengths: Lengths) -> Any:
    try:
        from transformers.generation.continuous_batching.utils import WorkloadHints

        return WorkloadHints(
            max_prompt_length=lengths.prompt, max_generated_length=lengths.out,
            num_requests=lengths.requests,
        )  # fmt: skip
    except (ImportError, TypeError):
        return None


def many(device: torch.device, tiny: bool, report: Report) -> None:
    """Ours, then theirs in its ways, then what came of both."""
    lengths = Lengths(4, 48, 8, 2, until=1e9, end=1e9) if tiny else Lengths()
    report.tell("where", facts(device))
    processor = made_processor(tiny)
    _, model = made_model("nano", processor.vocabulary, device, tiny)
    report.tell("shape", {
        "size": "nano (SmolLM2-135M)", "requests": lengths.requests, "prompt": lengths.prompt,
        "out": lengths.out, "dtype": "bfloat16",
        "parameters": sum(p.numel() for p in model.parameters()),
    })  # fmt: skip
    rounds = [
        made_requests(processor, lengths.requests, lengths.prompt, lengths.out, seed)
        for seed in range(lengths.rounds + 1)
    ]
    prompts = [[prompt_of(processor, request) for request in asked] for asked in rounds]
    found: dict[str, list[tuple[list[Ids], float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(model, folder)
        ours = Ours(model, processor, lengths)
        gc.collect()
        gc.freeze()
        found["m27"] = _rounds("m27", ours, rounds, report, lengths, lengths.until)
        report.tell("m27_facts", {
            "engine": {k: v for k, v in ours.engine.metrics().items() if k != "blocks"},
            "differences": {str(k): v for k, v in ours.runner.fused.differences.items()}
            if ours.runner.fused else None,
        })  # fmt: skip
        if MISSING:
            report.tell("transformers", MISSING)
            return
        for name, (options, until) in _ways(tiny, lengths).items():
            if report.elapsed > until:
                break
            try:
                with Theirs(Path(folder), device, lengths, **options) as theirs:
                    found[name] = _rounds(name, theirs, prompts, report, lengths, until)
                    report.tell(f"{name}_facts", theirs.facts())
                    _compare(found, name, report)
            except Exception as error:
                report.tell(f"{name}_failed", f"{type(error).__name__}: {error}"[:500])
                traceback.print_exc()


def _ways(tiny: bool, lengths: Lengths) -> dict[str, tuple[dict[str, Any], float]]:
    """Settings of theirs, and until when rounds are begun with them. Smaller batches spare it much of
    the mask in which each token stands against all tokens of the batch."""
    small = {"num_blocks": 64 if tiny else 256, "max_batch_tokens": 256 if tiny else 2048}
    return {
        "transformers": (
            {"num_blocks": 64, "max_batch_tokens": 512} if tiny else {},
            lengths.until,
        ),
        "transformers_graphs": ({**small, "use_cuda_graph": True}, lengths.end - 6),
        "transformers_small": (small, lengths.end),
    }


def _rounds(
    name: str, work: Any, rounds: Sequence[Any], report: Report, lengths: Lengths, until: float
) -> list[tuple[list[Ids], float]]:
    """Every round's answers and seconds, the first of which only warms up; its median is told."""
    found: list[tuple[list[Ids], float]] = []
    for asked in rounds:
        if len(found) > 1 and report.elapsed > until:
            break
        found.append(work(asked))
        seconds = [s for _, s in found[1:]] or [found[0][1]]
        count = sum(len(ids) for ids in found[-1][0])
        report.tell(name, {
            "tokens_per_second": round(count / median(seconds), 1), "rounds": len(found) - 1,
            "seconds": [round(s, 3) for s in seconds], "ids": count,
            "first_round_seconds": round(found[0][1], 2),
        })  # fmt: skip
    return found


def _compare(found: dict[str, list[tuple[list[Ids], float]]], name: str, report: Report) -> None:
    """How far answers are the same, and how many times theirs ours is, by the best of theirs."""
    same = [
        leading(a, b)
        for (ours, _), (theirs, _) in zip(found["m27"], found[name], strict=False)
        for a, b in zip(ours, theirs, strict=True)
    ]
    report.tell(f"{name}_same_ids_before_they_part", {
        "median": median(same), "least": min(same), "answers": len(same),
        "of": max(len(ids) for ids in found["m27"][0][0]),
        "answers_that_are_equal": sum(n == len(found["m27"][0][0][0]) for n in same),
    })  # fmt: skip
    ours = median([s for _, s in found["m27"][1:]])
    best = min(
        median([s for _, s in runs[1:]] or [runs[0][1]])
        for other, runs in found.items() if other != "m27"
    )  # fmt: skip
    report.tell("times_theirs", round(best / ours, 2))
