"""What a run of given settings is expected to take on this machine: memory and time, before anything is loaded.

For `m27 train RECIPE --dry-run`. It reads the machine (free memory, and by one matrix product how fast it is), the
settings and the model's shape; it opens no data and no weights.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from m27 import runtime
from m27.model.config import Config
from m27.train.plan_cost import Layout, Machine, Traffic, step_time
from m27.train.plan_memory import Memory, local
from m27.train.plan_shape import Arithmetic, Micro, Vocabulary, adapter_numbers, counts
from m27.train.settings import TrainConfig

# Of the speed of one large product, what a step reaches: measured on CPUs (docs/LOG.md), assumed on GPUs.
SHARE = {"cpu": 0.5, "cuda": 0.5}


@dataclass(frozen=True)
class Expected:
    """Of a run: bytes at a step's peak and what is free, seconds and tokens of a step, how many steps (None:
    until the clock says), seconds of all."""

    memory: Memory
    available: float
    step_seconds: float
    step_tokens: int
    steps: int | None
    seconds: float | None

    @property
    def fits(self) -> bool:
        """Whether the peak is less than what is free."""
        return self.memory.total <= self.available

    def lines(self) -> list[str]:
        """The same in words, a line each."""
        m, gb = self.memory, 1e9
        fits = "" if self.fits else ": it does not fit"
        parts = {
            "weights": m.weights, "gradients": m.gradients, "optimiser": m.optimiser,
            "kept for the backward pass": m.activations, "head or a block's gradients": max(m.head, m.work),
        }  # fmt: skip
        pace = self.step_tokens / self.step_seconds
        out = [
            f"memory: {m.total / gb:.2f} GB at a step's peak, of {self.available / gb:.1f} GB free{fits}",
            "  " + ", ".join(f"{name} {part / gb:.2f}" for name, part in parts.items()),
            f"a step: {self.step_tokens:,} tokens, {self.step_seconds:.2f} s ({pace:,.0f} tokens/s)",
        ]
        if self.seconds is not None and self.steps is not None:
            tokens = self.steps * self.step_tokens
            out.append(f"the run: {self.steps:,} steps, {tokens:,} tokens, {_clock(self.seconds)}")
        return out


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def here(device: torch.device, narrow: bool) -> Machine:
    """This machine: free memory, and the FLOP/s of one large product, tried three times (some 0.1 s)."""
    if device.type == "cuda":
        free = float(torch.cuda.mem_get_info(device)[0])
    else:
        free = _available()
    size = 4096 if device.type == "cuda" else 1024
    a = torch.ones(size, size, device=device, dtype=torch.bfloat16 if narrow else torch.float32)
    best = float("inf")
    for _ in range(4):  # the first prepares the kernel
        begun = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - begun)
    share = SHARE.get(device.type, 0.5)
    on_gpu = device.type == "cuda"
    return Machine(
        memory=free, reserve=0.1 if on_gpu else 0.0, peak=2.0 * size**3 / best, efficiency=share,
        bandwidth=2e12 if on_gpu else 1e10,
    )  # fmt: skip


def _available() -> float:
    """Bytes that the system can give: MemAvailable, where it says so; else 8 GB, a laptop's."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="utf-8")
        return float(next(x.split()[1] for x in text.splitlines() if x.startswith("MemAvailable"))) * 1024
    except (OSError, StopIteration):
        return 8e9


def way_of(config: TrainConfig, model: Config, device: str, narrow: bool) -> Arithmetic:
    """The pass that `m27.train.passes.choose` takes for these settings."""
    full = config.body == "full"
    path: Literal["whole", "plain", "fused", "merged"]
    llama = model.family == "llama" and config.base_bits is None
    based = full and (bool(config.data.kl_tasks) or config.objective == "preference")  # another decoder is asked
    if config.path != "auto":
        path = config.path
    elif device == "cpu" and llama and not based and not (full and config.recompute):
        path = "fused"
    elif config.rows == "free":
        path = "whole"
    elif llama and not full and config.lora.targets:
        path = "merged"
    else:
        path = "plain"
    targets: Sequence[str] = () if full else config.lora.targets
    return Arithmetic(
        path, config.body, config.rows, narrow=narrow, recompute=config.recompute,
        device="cpu" if device == "cpu" else "cuda", compile=config.compile, rank=config.lora.rank, targets=targets,
    )  # fmt: skip


def expected(
    config: TrainConfig,
    model: Config,
    machine: Machine | None = None,
    *,
    document: int = 0,
    vocabulary: Vocabulary | None = None,
) -> Expected:
    """Memory and time of a run of `config` on a `model` here, or on `machine`, by one process.

    `document` is how many tokens documents have on average (0: as many as a row). `vocabulary` tells how the
    rows come about where the settings train maps. Raises what finding the device raises.
    """
    device = runtime.device(config.device)
    narrow = runtime.dtype(config.dtype, device) != torch.float32
    machine = machine or here(device, narrow)
    a = way_of(config, model, device.type, narrow)
    data = config.data
    micro = Micro(data.rows, data.row, min(document, data.row))
    muon = config.optim.kind == "muon"
    memory = local(model, a, micro, muon, vocabulary)
    found = counts(model)
    trained = float(found.total if a.full else adapter_numbers(model, a))
    if (bits := config.base_bits) is not None:
        matrices = found.layers * (found.dense + found.experts)
        saved = (a.width - (5 if bits == 4 else 8.5) / 8) * matrices + a.width * (found.embedding + found.head)
        memory = replace(memory, weights=memory.weights - saved)
    if config.optim.average > 0:
        memory = replace(memory, optimiser=memory.optimiser + 4.0 * trained)
    step_rows = data.step_rows or data.rows * data.accumulate
    accumulate = max(1, round(step_rows / data.rows))
    preference = config.objective == "preference"
    spent = step_time(model, a, micro, Traffic(), Layout(), machine, accumulate, trained, muon, preference)
    tokens = accumulate * micro.tokens
    seconds = None if config.steps is None else config.steps * spent.total
    steps = config.steps
    if config.minutes is not None and (seconds is None or config.minutes * 60 < seconds):
        steps, seconds = int(config.minutes * 60 / spent.total), config.minutes * 60
    return Expected(memory, machine.usable, spent.total, tokens, steps, seconds)
