"""What a run takes, found by trying: a few real steps of it, their time and the memory at its peak.

For `--dry-run`: no step is kept, no snapshot written. It knows no planner's formula.
"""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass

import torch

from m27.train.loop import Trainer
from m27.train.meter import clock


@dataclass(frozen=True)
class Cost:
    """Of a step: seconds (the fastest one's) and tokens, all ranks together; and bytes at the peak.

    `device_bytes` is what a GPU held at most, 0 without one; `host_bytes` what the process did.
    """

    seconds: float
    tokens: int
    host_bytes: int
    device_bytes: int

    def text(self, steps: int | None, minutes: float | None) -> str:
        """Lines that say so, and how long a run of so many steps or minutes is."""
        held = f"memory: {self.host_bytes / 1e9:.2f} GB of this machine's"
        if self.device_bytes:
            held += f", {self.device_bytes / 1e9:.2f} GB of the GPU's"
        rate = self.tokens / self.seconds
        lines = [held, f"a step: {self.tokens:,} tokens, {self.seconds:.2f} s ({rate:,.0f} tokens/s)"]
        if steps is not None:
            lines.append(f"the run: {steps:,} steps, {steps * self.tokens:,} tokens, {clock(steps * self.seconds)}")
        if minutes is not None:
            count = int(minutes * 60 / self.seconds)
            lines.append(f"in {minutes:g} minutes: {count:,} steps, {count * self.tokens:,} tokens")
        return "\n".join(lines)


def measure(trainer: Trainer, steps: int = 3) -> Cost:
    """Go through so many steps; the first, in which things are compiled, counts for memory alone."""
    made = trainer._steps()
    best, before = float("inf"), 0
    for number in range(steps):
        batches, _ = next(made)
        before, begun = trainer.tokens, time.monotonic()
        trainer._train_step(batches)
        if number > 0 or steps == 1:
            best = min(best, time.monotonic() - begun)
    on_gpu = trainer.device.type == "cuda"
    scale = 1 if sys.platform == "darwin" else 1024
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    device = torch.cuda.max_memory_allocated(trainer.device) if on_gpu else 0
    return Cost(best, trainer.tokens - before, host, device)
