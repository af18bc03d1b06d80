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
import multiprocessing
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import machine
from benchmarks.live import Live
from m27 import runtime
from m27.codec.media import write_atomic
from m27.data.loader import Batch
from m27.model.config import Config
from m27.model.decoder import Decoder
from m27.train.lora import Adapters, LoraConfig
from m27.train.optim import OptimConfig, Optimiser
from m27.train.passes import choose
from m27.train.plan_memory import Memory, local
from m27.train.plan_shape import Arithmetic, Micro, Vocabulary
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

    def __init__(self, case: Case, device: torch.device | None = None) -> None:
        torch.manual_seed(0)
        device = device or torch.device("cpu")
        dtype = getattr(torch, case.dtype)
        free, full = case.rows == "free", case.body == "full"
        new = CONTROLS + sum(torch.tensor(levels).prod().item() for levels in LEVELS)
        text = case.model.vocab_size - (int(new) if case.rows == "maps" else 0)
        config = dataclasses.replace(case.model, vocab_size=text)
        decoder = Decoder(config, case.recompute).to(device).requires_grad_(False)
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
        made, plan = batch(case)
        # Documents stay on the host, where attention is planned.
        self.batch = dataclasses.replace(made.to(device), documents_BT=made.documents_BT)
        self.decoder, self.rows, self.learned, self.plan = decoder, rows, learned, plan.to(device)

    def step(self) -> None:
        """As the loop does it."""
        self.rows.refresh()
        self.way.refresh()
        self.way.run(self.batch, self.plan, float(self.batch.weights_M.sum()), self.way.prepare(self.batch))
        self.rows.backward()
        self.way.collect()
        self.optimiser.step(0.5)


def _tensors() -> list[Tensor]:
    """All tensors that the process holds."""
    gc.collect()
    return [x for x in gc.get_objects() if type(x) in (Tensor, torch.nn.Parameter)]


def count(case: Case) -> dict[str, int]:
    """Bytes of live tensors: at rest between two steps, of gradients and moments, and the second step's peak."""
    others = _tensors()  # of whatever else the process has been doing
    run = Run(case)
    known = {id(x) for x in others}
    own = [x for x in _tensors() if id(x) not in known]
    with Live(own) as live:
        del own, others
        run.step()
        at_rest = live.now
        live.restart()
        run.step()
        peak = live.peak
    grads = [p.grad for p in run.learned.values() if p.grad is not None]
    return {
        "peak": peak, "rest": at_rest, "gradients": sum(g.nbytes for g in grads),
        "optimiser": sum(s.nbytes for s in run.optimiser.state().values()),
    }  # fmt: skip


def resident(case: Case) -> int:
    """By how many bytes the process grew at the most in two steps, over what it was before the case.

    Another, tiny case goes first: what torch loads and takes at its first use is not the step's.
    """
    small = dataclasses.replace(case.model, vocab_size=1024, n_layers=1)
    Run(dataclasses.replace(case, model=small, batch=1, length=32, documents=1)).step()
    gc.collect()
    runtime.trim_freed_memory()
    before = _status("VmRSS")
    run = Run(case)
    run.step()
    run.step()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith(field))) * 1024


def planned(case: Case) -> Memory:
    """What the planner says of the case on this processor."""
    return planned_on(case, "cpu")


def planned_on(case: Case, device: str) -> Memory:
    """What the planner says of the case on a device, "cpu" or "cuda"."""
    a = Arithmetic(
        case.path, case.body, case.rows, narrow=case.dtype == "bfloat16", recompute=case.recompute,
        device=device, rank=case.rank,
    )  # fmt: skip
    micro = Micro(case.batch, case.length, case.length // case.documents, 1 - case.documents / case.length)
    return local(case.model, a, micro, vocabulary=Vocabulary(CONTROLS, LEVELS))


def _model(family: str = "llama", **changes: Any) -> Config:
    given: dict[str, Any] = {
        "vocab_size": 2048, "dim": 256, "n_layers": 6, "n_heads": 8, "n_kv_heads": 4, "head_dim": 32,
        "ffn_dim": 704, "tied": True,
    }  # fmt: skip
    return Config(family, **(given | changes))  # type: ignore[arg-type]


DENSE, WIDE = _model(), _model(vocab_size=16_384, n_layers=2)
QWEN = _model("qwen3", tied=False)
MOE = _model("qwen3_moe", n_layers=4, n_experts=8, top_k=2, expert_dim=352)


def cases() -> list[Case]:
    """Every pass, with and without recomputation, in both dtypes; a long vocabulary, few tokens, other families."""
    out = []
    for dtype in ("float32", "bfloat16"):
        for again in (False, True):
            both: dict[str, Any] = {"dtype": dtype, "recompute": again}
            out += [
                Case("full", DENSE, "whole", **both),
                Case("full, long vocabulary", WIDE, "whole", **both),
                Case("full, rows as maps", DENSE, "plain", rows="maps", **both),
                Case("LoRA, rows frozen", DENSE, "plain", "adapters", "frozen", **both),
                Case("LoRA, rows as maps", DENSE, "plain", "adapters", "maps", **both),
                Case("full, Qwen3", QWEN, "whole", **both),
                Case("full, MoE", MOE, "whole", **both),
            ]
        out += [
            Case("full, few tokens", DENSE, "whole", dtype=dtype, recompute=True, batch=1, length=64, documents=1),
            Case("full, fused pass", DENSE, "fused", dtype=dtype),
            Case("full, fused, long vocabulary", WIDE, "fused", dtype=dtype),
            Case("full, fused, rows as maps", DENSE, "fused", rows="maps", dtype=dtype),
            Case("LoRA, fused pass", DENSE, "fused", "adapters", "maps", dtype=dtype),
            Case(
                "LoRA, fused, long documents", DENSE, "fused", "adapters", "maps", dtype=dtype, batch=1,
                length=1024, documents=1,
            ),
        ]
    return out


def _child(case: Case, pipe: Connection) -> None:
    torch.set_num_threads(1)
    pipe.send({"resident": resident(case), "count": count(case)})


def measure(case: Case) -> tuple[int, int]:
    """Bytes at the peak of a case in a process of its own: of its live tensors, and of the process."""
    context = multiprocessing.get_context("fork")  # which need not import torch again
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(case, there))
    process.start()
    there.close()
    found = here.recv()
    process.join()
    return found["count"]["peak"], found["resident"]


def row(case: Case, counted_mb: float, resident_mb: float) -> dict[str, Any]:
    """A case as JSON: what was measured, and what was planned."""
    plan = planned(case)
    return {
        **asdict(case), "model": case.model.to_hf(), "counted_mb": round(counted_mb, 1),
        "planned_mb": round(plan.total / 1e6, 1), "ratio": round(plan.total / 1e6 / counted_mb, 3),
        "resident_mb": round(resident_mb, 1), "planned": {k: round(v) for k, v in asdict(plan).items()},
    }  # fmt: skip


def line(found: dict[str, Any]) -> str:
    """A row of the table."""
    return (
        f"{found['name']:28} {found['dtype']:9} {'yes' if found['recompute'] else 'no':5} "
        f"{found['counted_mb']:6.1f}M  {found['planned_mb']:6.1f}M {found['ratio']:6.3f}  {found['resident_mb']:6.1f}M"
    )


def write(rows: Sequence[dict[str, Any]], out: Path) -> None:
    """What there is so far: a run that is cut short leaves its cases."""
    result = {**machine.describe(1), "command": "python -m benchmarks.plan", "rows": list(rows)}
    write_atomic(out, (json.dumps(result, indent=1) + "\n").encode())


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the cases and write `benchmarks/results/plan.json`."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="cases whose name or pass holds this")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args(arguments)
    narrow = runtime.cpu_bf16()
    chosen = [c for c in cases() if given.only in f"{c.name} {c.path}" and (narrow or c.dtype == "float32")]
    rows: list[dict[str, Any]] = []
    print(f"{'case':28} {'dtype':9} again  counted  planned  ratio  resident")
    for case in chosen:
        counted, grown = measure(case)
        rows.append(row(case, counted / 1e6, grown / 1e6))
        print(line(rows[-1]), flush=True)
        write(rows, given.out)
    ratios = [found["ratio"] for found in rows]
    print(f"{len(rows)} cases, planned over counted from {min(ratios):.3f} to {max(ratios):.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
