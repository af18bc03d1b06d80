"""The planner's memory against what training steps really take: counted tensors, and the process's own peak.

Each case is a process of its own that trains a small decoder for two steps (forward, backward, optimiser) on
the CPU, by the passes that runs use. `counted` is exact (see `benchmarks.live`); `resident` is how far the
system saw the process grow over what it was before, which torch's threads and allocator add to.

    .venv/bin/python -m benchmarks.plan
    .venv/bin/python -m benchmarks.plan --only whole
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.live import Live
from m27.data.loader import Batch
from m27.model.config import SIZES, Config
from m27.model.decoder import Decoder
from m27.train.lora import Adapters, LoraConfig
from m27.train.optim import OptimConfig, Optimiser
from m27.train.passes import choose
from m27.train.plan_memory import Arithmetic, Memory, Micro, Vocabulary, local
from m27.train.rows import FreeRows, FrozenRows, Rows
from m27.train.scoring import Group, Plan

OUT = Path("benchmarks/results/plan.json")
CONTROLS, LEVELS = 32, ((8, 8, 4), (8, 4, 4))


@dataclass(frozen=True)
class Case:
    """One way to train one small decoder."""

    name: str
    model: Config
    path: str
    body: str = "full"
    rows: str = "free"
    dtype: str = "float32"
    recompute: bool = False
    rank: int = 16
    batch: int = 2
    length: int = 512
    documents: int = 2


def batch(case: Case) -> tuple[Batch, Plan]:
    """A micro-batch of rows of equal documents, every token but a document's last a target."""
    generator = torch.Generator().manual_seed(0)
    shape, each = (case.batch, case.length), case.length // case.documents
    ids_BT = torch.randint(0, case.model.vocab_size, shape, generator=generator)
    documents_BT = (torch.arange(case.length) // each).expand(shape).contiguous()
    positions_BT = (torch.arange(case.length) % each).expand(shape).contiguous()
    places_M = (positions_BT.flatten() < each - 1).nonzero().flatten()
    targets_M = ids_BT.flatten()[places_M + 1]
    zeros = torch.zeros_like(places_M)
    made = Batch(
        ids_BT, documents_BT, positions_BT, places_M, targets_M, torch.ones(len(places_M)), zeros, zeros
    )
    return made, Plan((Group(torch.arange(len(places_M)), None),))


class Run:
    """Two steps of a case, and everything that stays between them."""

    def __init__(self, case: Case) -> None:
        torch.manual_seed(0)
        dtype = getattr(torch, case.dtype)
        free, full = case.rows == "free", case.body == "full"
        new = CONTROLS + sum(torch.tensor(levels).prod().item() for levels in LEVELS)
        text = case.model.vocab_size - (int(new) if case.rows == "maps" else 0)
        config = dataclasses.replace(case.model, vocab_size=text)
        decoder = Decoder(config, case.recompute).requires_grad_(False)
        rows: Rows
        if free:
            rows = FreeRows(decoder, dtype)
        elif case.rows == "frozen":
            rows = FrozenRows(decoder.output_weight, dtype)
        else:
            rows = Rows(decoder.output_weight, CONTROLS, *LEVELS, dtype)
        targets: Sequence[str] = () if full else LoraConfig().targets
        adapters = Adapters(decoder, LoraConfig(case.rank, targets=targets))
        body = dict(adapters.parameters())
        if full:
            body = {n: p for n, p in decoder.named_parameters() if free or "embed_tokens" not in n}
        for parameter in body.values():
            parameter.requires_grad_(case.body != "frozen")
        learned = {n: p for n, p in {**body, **rows.parameters()}.items() if p.requires_grad}
        self.optimiser = Optimiser(learned, OptimConfig())
        self.way = choose(case.path, decoder, adapters, rows, dtype, False, full=full)
        self.decoder, self.rows, self.learned, self.batch, self.plan = decoder, rows, learned, *batch(case)

    def step(self) -> None:
        """As the loop does it."""
        self.rows.refresh()
        self.way.refresh()
        self.way.run(self.batch, self.plan, float(self.batch.weights_M.sum()), self.way.prepare(self.batch))
        self.rows.backward()
        self.way.collect()
        self.optimiser.step(0.5)


def held(root: Run) -> list[Tensor]:
    """Every tensor that the garbage collector can see."""
    return [t for t in gc.get_objects() if isinstance(t, Tensor)]


def count(case: Case, where: Any = None) -> dict[str, int]:
    """Bytes that the case's steps take, counted: at rest, by part, and the peak of the second step."""
    run = Run(case)
    own = held(run)
    with Live(own, where) as live:
        del own
        run.step()
        at_rest = live.now
        live.restart()
        run.step()
        state = run.optimiser.state().values()
        grads = [p.grad for p in run.learned.values() if p.grad is not None]
        found = {
            "peak": live.peak,
            "rest": at_rest,
            "gradients": sum(g.nbytes for g in grads),
            "optimiser": sum(s.nbytes for s in state),
        }
        if where is not None:
            found["by"] = {k: v for k, v in live.at_peak.most_common(40)}
        return found


def planned(case: Case) -> Memory:
    """What the planner says of the case."""
    a = Arithmetic(
        case.path, case.body, case.rows, narrow=case.dtype == "bfloat16", recompute=case.recompute,
        device="cpu", rank=case.rank,
    )  # fmt: skip
    micro = Micro(case.batch, case.length, case.length // case.documents, 1 - case.documents / case.length)
    return local(case.model, a, micro, vocabulary=Vocabulary(CONTROLS, LEVELS))
