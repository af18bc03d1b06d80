"""What fits: every way to lay a run out over GPUs, with memory by part, time, and the one to take.

Pure arithmetic over a model's shape and a machine's numbers: `plan_memory` says what a device holds, `plan_cost`
what is computed and sent. Of ranks it knows what `m27.train.parallel` does with them; it has been checked by
counting on one device and on two processes (`benchmarks/plan.py`, docs/LOG.md), and not on many GPUs.

Shapes: D width, L layers, V vocabulary, s GPUs that a weight is cut over.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from m27.model.config import SIZES, Config
from m27.train.plan_cost import Layout, Machine, Time, Traffic, step_time, traffic
from m27.train.plan_memory import Memory, local
from m27.train.plan_shape import Arithmetic, Micro, adapter_numbers, counts

Kind = Literal["full", "lora", "qlora"]
_INT4 = 20 / 32  # bytes a number: blocks of 32 values in 4 bits, a scale and a minimum (Q4_1 of ggml)


class PlanError(ValueError):
    """A question that has no answer: a machine or a run that cannot be; the message names what."""


@dataclass(frozen=True)
class Ask:
    """What is to be planned: a model's shape, the machine, rows of `length` tokens in documents of `document`
    (0: a row is one), `step_tokens` of a step of all GPUs (0: one micro-batch each), the kind of training.

    `rows` fixes the micro-batch; 0 takes the largest that fits. `preference`: pairs of answers scored against
    the run's beginning (DPO), two rows a pair. Raises PlanError.
    """

    model: Config
    machine: Machine
    kind: Kind = "full"
    muon: bool = False
    rank: int = 16
    preference: bool = False
    length: int = 4096
    document: int = 0
    step_tokens: int = 0
    rows: int = 0

    def __post_init__(self) -> None:
        m = self.machine
        positive = {
            "gpus": (m.gpus, 1.0, ""), "nodes": (m.nodes, 1.0, ""), "memory": (m.memory, 1e9, " GB"),
            "peak": (m.peak, 1e12, " TFLOP/s"), "link": (m.link, 1e9, " GB/s"),
            "network": (m.network, 1e9, " GB/s"), "bandwidth": (m.bandwidth, 1e12, " TB/s"),
            "length": (self.length, 1.0, ""), "rank": (self.rank, 1.0, ""),
        }  # fmt: skip
        for name, (value, unit, called) in positive.items():
            if not 0 < value < math.inf:
                raise PlanError(f"{name}: {value / unit:g}{called} is not positive")
        for name, value in {"efficiency": m.efficiency, "link efficiency": m.link_efficiency}.items():
            if not 0 < value <= 1:
                raise PlanError(f"{name}: {value:g} is no share between 0 and 1")
        if not 0 <= m.reserve < 1:
            raise PlanError(f"reserve: {m.reserve:g} is no share between 0 and 1")
        if m.gpus % m.nodes:
            raise PlanError(f"nodes: {m.nodes} do not divide {m.gpus} GPUs")
        for name, count in {"document": self.document, "step tokens": self.step_tokens, "rows": self.rows}.items():
            if count < 0:
                raise PlanError(f"{name}: {count} is negative")
        if self.length > self.model.max_len:
            raise PlanError(f"length: {self.length} is more than the {self.model.max_len} tokens of the model")
        if self.document > self.length:
            raise PlanError(f"document: {self.document} tokens do not fit in rows of {self.length}")
        if self.muon and self.kind != "full":
            raise PlanError("muon: it moves hidden matrices, which adapters leave alone; take adamw")


@dataclass(frozen=True)
class Row:
    """One way, at its largest micro-batch that fits (or at one row where none does)."""

    name: str
    layout: Layout
    recompute: bool
    rows: int
    accumulate: int
    fits: bool
    memory: Memory
    traffic: Traffic
    time: Time


def arithmetic(ask: Ask, recompute: bool = False) -> Arithmetic:
    """The pass that a run of this kind goes through on a GPU."""
    if ask.kind == "full" and ask.preference:  # pairs are learned from over rows that stay
        return Arithmetic("plain", "full", "frozen", recompute=recompute)
    if ask.kind == "full":
        return Arithmetic("whole", "full", "free", recompute=recompute, sharded=ask.machine.gpus > 1)
    path: Literal["merged", "plain"] = "plain"
    if ask.kind == "lora" and ask.model.family == "llama" and not recompute:
        path = "merged"  # what "auto" takes
    return Arithmetic(path, "adapters", "frozen", recompute=recompute, rank=ask.rank)


def layouts(ask: Ask) -> Iterator[tuple[str, Layout]]:
    """Every way of laying a run out that suits it, by name."""
    m, c = ask.machine, ask.model
    if m.gpus == 1:
        yield "single", Layout()
        return
    yield "replicate", Layout(1, m.gpus)
    if arithmetic(ask).path != "whole":  # the loop cuts weights only where every one is trained
        return
    yield "full shard", Layout(m.gpus, 1)
    if m.nodes > 1 and m.each > 1:
        yield "hybrid shard", Layout(m.each, m.nodes)
    groups = sorted({m.each, m.gpus}) if c.n_experts else []
    for expert in groups:
        if expert > 1 and c.n_experts % expert == 0:
            yield f"full shard, experts over {expert}", Layout(m.gpus, 1, expert)
            if m.nodes > 1 and m.each > 1:
                yield f"hybrid shard, experts over {expert}", Layout(m.each, m.nodes, expert)


def trained_numbers(ask: Ask) -> float:
    """How many numbers are trained."""
    found, a = counts(ask.model), arithmetic(ask)
    if a.full:
        return float(found.total if a.rows == "free" else found.total - found.embedding)
    return float(adapter_numbers(ask.model, a))


def cut(c: Config, a: Arithmetic, micro: Micro, layout: Layout, muon: bool = False) -> Memory:
    """Bytes of one of several GPUs at the peak of a whole pass, weights cut as `layout` has it.

    Cut over s, a GPU holds 1/s of float32 masters, gradients and moments (of experts that are dealt out
    1/(inner·expert)), and gathers: the rows of the vocabulary in bfloat16 for the whole step, and of one
    block its weights, the next one's with the buffer they arrive in, its gradients in bfloat16 and again in
    float32 on their way: 12 bytes a weight. Where there are replicas, FSDP2 keeps what they sum, the parts'
    gradients once more, to the end of the backward pass. Activations are each GPU's own. The head's float32
    gradient of all rows is whole on every GPU until it is scattered.
    """
    base, found, s, w = local(c, a, micro, muon), counts(c), layout.shard, a.width
    dense = (found.total - found.layers * found.experts) / s
    experts = found.layers * found.experts / (layout.expert * layout.inner if layout.expert > 1 else s)
    optimiser = 8.0 * (dense + experts)
    if muon:
        optimiser -= 4.0 * (found.layers * found.dense / s + experts)
    block = found.dense + found.gains + found.experts / layout.expert
    summed = 4.0 * (dense + experts) if layout.replicate > 1 else 0.0
    return replace(
        base, weights=4.0 * (dense + experts), gradients=4.0 * (dense + experts), optimiser=optimiser,
        communication=w * found.root + (4.0 * w + 4.0) * block + summed,
    )  # fmt: skip


def memory(ask: Ask, layout: Layout, recompute: bool, rows: int) -> Memory:
    """Bytes of one GPU at a step's peak: of several `cut`, of one `plan_memory.local`.

    QLoRA holds matrices in 4 bits and widens one at a time, by way of float32. Where preferences move every
    weight, a second model in bfloat16 answers for the beginning; adapters are only left out for it.
    """
    c, found, a = ask.model, counts(ask.model), arithmetic(ask, recompute)
    micro = Micro(rows * (2 if ask.preference else 1), ask.length, ask.document)
    if a.path == "whole" and layout.world > 1:
        return cut(c, a, micro, layout, ask.muon)
    base = local(c, a, micro, ask.muon)
    if ask.kind == "qlora":
        in_blocks = found.layers * (found.dense + found.experts)
        weights = base.weights + (_INT4 - a.width) * in_blocks - a.width * (found.embedding + found.head)
        one = (4.0 + a.width) * c.dim * (2 * c.expert_dim if c.n_experts else c.ffn_dim)
        return replace(base, weights=weights, communication=one)
    if ask.preference and a.full:
        return replace(base, weights=base.weights + a.width * found.total)
    return base


def _row(ask: Ask, name: str, layout: Layout, recompute: bool, rows: int) -> Row:
    a = arithmetic(ask, recompute)
    micro = Micro(rows * (2 if ask.preference else 1), ask.length, ask.document)
    trained, held = trained_numbers(ask), memory(ask, layout, recompute, rows)
    sent = traffic(ask.model, a, micro, layout, ask.machine, trained)
    accumulate = max(1, round(ask.step_tokens / (layout.world * micro.tokens)))
    time = step_time(
        ask.model, a, micro, sent, layout, ask.machine, accumulate, trained, ask.muon, ask.preference
    )
    fits = held.total <= ask.machine.usable
    return Row(name, layout, recompute, rows, accumulate, fits, held, sent, time)


def largest(ask: Ask, layout: Layout, recompute: bool) -> int:
    """The most rows of a micro-batch that fit, 0 where none does; no more than a step has for one GPU."""
    limit = 1 << 20
    if ask.step_tokens:
        limit = max(1, ask.step_tokens // (layout.world * ask.length * (2 if ask.preference else 1)))

    def fits(rows: int) -> bool:
        return memory(ask, layout, recompute, rows).total <= ask.machine.usable

    low, high = 0, 1
    while high <= limit and fits(high):
        low, high = high, 2 * high
    high = min(high, limit + 1)
    while high - low > 1:  # what fits grows with nothing: halve
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def plan(ask: Ask) -> list[Row]:
    """Every way, with and without recomputation, in a fixed order."""
    out = []
    for name, layout in layouts(ask):
        for recompute in (False, True):
            rows = ask.rows or largest(ask, layout, recompute)
            out.append(_row(ask, name, layout, recompute, max(rows, 1)))
    return out


def recommended(rows: list[Row]) -> Row | None:
    """Of the ways that fit the fastest; of those within 1 % of it the one that leaves most memory. None: none fits."""
    fitting = [row for row in rows if row.fits]
    if not fitting:
        return None
    best = max(row.time.tokens_per_second for row in fitting)
    near = [row for row in fitting if row.time.tokens_per_second >= 0.99 * best]
    return min(near, key=lambda row: row.memory.total)


def command(ask: Ask, row: Row, name: str) -> str:
    """What to type for this way; `name` is that of a size, or the folder of a checkpoint.

    SHARDS, FOLDER and HOST stand for what only the caller knows.
    """
    m, layout, a = ask.machine, row.layout, arithmetic(ask, row.recompute)
    launch = f"torchrun --standalone --nproc-per-node {m.each} -m -- m27.cli train"
    if m.nodes > 1:
        meet = f"--nnodes {m.nodes} --rdzv-backend c10d --rdzv-endpoint HOST:29500"
        launch = f"torchrun {meet} --nproc-per-node {m.each} -m -- m27.cli train"
    known = name in SIZES
    if a.full:
        recipe = "sft" if ask.preference or not known else "pretrain"
    else:
        recipe = "dpo" if ask.preference and ask.kind == "lora" else ask.kind
    model = f"--size {name}" if recipe == "pretrain" else f"--begin {'FOLDER' if known else name}"
    settings = {
        "shards": "SHARDS", "data.row": ask.length, "data.rows": row.rows,
        "data.step_rows": row.rows * row.accumulate * layout.world,
        "recompute": str(row.recompute).lower(), "optim.kind": "muon" if ask.muon else "adamw",
    }  # fmt: skip
    if a.path == "whole" and layout.world > 1:
        settings |= {"parallel.shard": layout.shard, "parallel.replicate": layout.replicate}
        if ask.model.n_experts:
            settings["parallel.expert"] = layout.expert
    if not a.full:
        settings["lora.rank"] = ask.rank
    if ask.preference and recipe != "dpo":
        settings["objective"] = "preference"
    if ask.preference and a.full:
        settings["rows"] = "frozen"
    return " ".join([launch, recipe, model, *(f"--{key} {value}" for key, value in settings.items())])
