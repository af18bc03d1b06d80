"""What a training step computes and sends, and how long both take, by formula. Knows no tensors.

Times rest on two assumptions, both given with the machine: the share of its peak that a GPU reaches while it
computes, and the share of its links' speed. They are expectations, not promises.

Shapes: N tokens of a micro-batch, D width, Q all query heads together, L layers, V vocabulary, T tokens a document.
"""

from __future__ import annotations

from dataclasses import dataclass

from m27.model.config import Config
from m27.train.plan_shape import Arithmetic, Counts, Micro, adapter_numbers, counts

NETWORKS = {"infiniband": 50.0, "ethernet": 1.5625}  # GB/s a GPU: 400 Gb/s each; 100 Gb/s for a node of eight


@dataclass(frozen=True)
class Machine:
    """GPUs, all alike, `gpus` in all on `nodes` machines. `memory` is bytes a GPU, of which the share
    `reserve` is left to CUDA, NCCL and the allocator's gaps; `peak` FLOP/s of dense bfloat16 products; `link`
    and `network` bytes/s that a GPU sends within its node and beyond; `bandwidth` bytes/s of its memory.

    `efficiency` is the share of `peak` reached while computing, `link_efficiency` that of the links. The
    defaults are an H100 SXM: 989 TFLOP/s, NVLink 450 GB/s each way, InfiniBand 400 Gb/s, HBM 3.35 TB/s.
    """

    gpus: int = 1
    nodes: int = 1
    memory: float = 80e9
    reserve: float = 0.1
    peak: float = 989e12
    link: float = 450e9
    network: float = 50e9
    bandwidth: float = 3.35e12
    efficiency: float = 0.5
    link_efficiency: float = 0.8

    @property
    def each(self) -> int:
        """How many GPUs a node has."""
        return self.gpus // self.nodes

    @property
    def usable(self) -> float:
        """Bytes of a GPU that a step may take."""
        return self.memory * (1 - self.reserve)


@dataclass(frozen=True)
class Layout:
    """How a run lies over its GPUs, as `m27.train.settings.ParallelConfig` has it: each weight cut over `shard`,
    `replicate` such groups, experts dealt out over `expert`."""

    shard: int = 1
    replicate: int = 1
    expert: int = 1

    @property
    def world(self) -> int:
        """How many GPUs there are."""
        return self.shard * self.replicate

    @property
    def inner(self) -> int:
        """Over how many GPUs an expert's weights are cut, beside being dealt out."""
        return max(self.shard // self.expert, 1)


def forward_flops(c: Config, micro: Micro) -> tuple[float, float]:
    """FLOP a token of a forward pass: of the blocks, and of the head.

    Two for each weight of a matrix that a token meets (of k experts), and for attention, causal within a
    document of T tokens, 2·Q·T a layer: half of the 4·Q·T of PaLM's appendix B (Chowdhery et al. 2022).
    The embedding is read, not multiplied; the head is computed at the targets alone.
    """
    found, q = counts(c), c.n_heads * c.head_dim
    active = found.dense + (found.experts * c.top_k // c.n_experts if c.n_experts else 0)
    blocks = c.n_layers * (2.0 * active + 2.0 * q * micro.reach)
    return blocks, 2.0 * c.vocab_size * c.dim * micro.targets


def step_flops(c: Config, a: Arithmetic, micro: Micro, preference: bool = False) -> tuple[float, float]:
    """FLOP a token of a step: those the objective needs (for MFU), and those really done.

    Backward costs two forward passes, one where no weight of the body is trained (the input's gradient
    alone); the head's gradient of rows only where they are trained. `recompute` does the blocks' forward pass
    again, preferences ask the reference once, forward only.
    """
    blocks, head = forward_flops(c, micro)
    needed = blocks * (3 if a.full else 2) + head * (3 if a.rows == "free" else 2)
    if not a.full:
        needed += 6.0 * adapter_numbers(c, a)
    if preference:
        needed += blocks + head
    return needed, needed + (blocks if a.recompute else 0)


@dataclass(frozen=True)
class Traffic:
    """Bytes that one GPU sends in a micro-batch (`gathered` and `scattered` weights and gradients, `exchanged`
    tokens) and once a step (`reduced`), with the seconds of each that its links allow."""

    gathered: float = 0.0
    scattered: float = 0.0
    exchanged: float = 0.0
    reduced: float = 0.0
    sharding_seconds: float = 0.0
    exchange_seconds: float = 0.0
    reduce_seconds: float = 0.0

    def bytes(self, accumulate: int) -> float:
        """Of a step with so many micro-batches."""
        return accumulate * (self.gathered + self.scattered + self.exchanged) + self.reduced

    def seconds(self, accumulate: int) -> float:
        """Likewise, were nothing else done meanwhile."""
        return accumulate * (self.sharding_seconds + self.exchange_seconds) + self.reduce_seconds


def _spread(size: float, ranks: int, m: Machine, near: bool) -> float:
    """Seconds to gather `size` bytes, cut over `ranks`, on each of them (or to scatter their sums).

    Every GPU receives (n-1)/n of it over its link; where the ranks lie on several nodes (they are not
    `near`), every node receives what it has not over all its network cards together. NCCL's rings reach
    either bound (NCCL tests, "performance": bus bandwidth).
    """
    if ranks <= 1:
        return 0.0
    seconds = size * (ranks - 1) / ranks / m.link
    if not near:
        nodes = max(-(-ranks // m.each), 2)
        cards = min(ranks, m.each)
        seconds = max(seconds, size * (nodes - 1) / nodes / (cards * m.network))
    return seconds / m.link_efficiency


def traffic(c: Config, a: Arithmetic, micro: Micro, layout: Layout, m: Machine, trained: float) -> Traffic:
    """What FSDP2 (Zhao et al. 2023) and expert parallelism (Lepikhin et al. 2021) send.

    Of a weight cut over s GPUs, (s-1)/s is gathered in bfloat16 for the forward and again for the backward
    pass (the embedding, the head and the last norm once), and its gradient scattered in float32: 8 bytes a
    weight and micro-batch, whatever the batch. Replicas sum their parts of the gradient once a step, 2(r-1)/r
    times 4 bytes. A token's k copies go to their experts and back, D numbers each way, in the forward and in
    the backward pass and once more when a block is recomputed. Adapters' gradients are summed alone.
    """
    if layout.world == 1:
        return Traffic()
    found, w = counts(c), a.width
    s, r, e, inner = layout.shard, layout.replicate, layout.expert, layout.inner
    near = s <= m.each
    if not a.full:
        size, ranks = 4.0 * trained, layout.world
        within = layout.world <= m.each
        return Traffic(reduced=2 * size * (ranks - 1) / ranks, reduce_seconds=2 * _spread(size, ranks, m, within))
    dense = float(found.layers * (found.dense + found.gains))
    experts = float(found.layers * found.experts) / e
    parts = [(dense, s, 2), (experts, s if e == 1 else inner, 2), (float(found.root), s, 1)]
    gathered = sum(w * times * size * (n - 1) / n for size, n, times in parts)
    scattered = sum(4.0 * size * (n - 1) / n for size, n, _ in parts)
    sharding = sum(
        _spread(w * times * size + 4.0 * size, n, m, near if e == 1 or n == s else inner * e <= m.each)
        for size, n, times in parts
    )
    copies = layout.world // (inner * e) if e > 1 else r
    share = 4.0 * ((dense + found.root) / s)
    expert_share = 4.0 * experts / (s if e == 1 else inner)
    reduced = 2 * share * (r - 1) / r + 2 * expert_share * (copies - 1) / copies
    pace = m.link if layout.world <= m.each else m.network
    exchanged = away = 0.0
    if e > 1:
        trips = 6 if a.recompute else 4
        exchanged = trips * found.layers * c.top_k * c.dim * w * micro.tokens * (e - 1) / e
        outside = max(e - m.each, 0) / max(e - 1, 1)
        away = max(exchanged * (1 - outside) / m.link, exchanged * outside / m.network) / m.link_efficiency
    return Traffic(
        gathered, scattered, exchanged, reduced, sharding, away, reduced / pace / m.link_efficiency
    )


@dataclass(frozen=True)
class Time:
    """Of a step: seconds of arithmetic, of communication, of the optimiser, and in all; tokens of all GPUs
    a second, and the share of the peak that the objective's arithmetic is (MFU)."""

    compute: float
    communication: float
    optimiser: float
    total: float
    tokens_per_second: float
    mfu: float


def muon_flops(found: Counts, c: Config) -> float:
    """FLOP of five Newton-Schulz steps on every hidden matrix [m, n], m the smaller: each 4·m²·n + 2·m³."""
    q, k = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    f = c.expert_dim if c.n_experts else c.ffn_dim
    copies = max(c.n_experts, 1)
    shapes = [(c.dim, q, 2), (c.dim, k, 2), (c.dim, f, 3 * copies)]
    each = sum(
        count * (4.0 * min(x, y) ** 2 * max(x, y) + 2.0 * min(x, y) ** 3) for x, y, count in shapes
    )
    return 5.0 * found.layers * each


def step_time(
    c: Config, a: Arithmetic, micro: Micro, sent: Traffic, layout: Layout, m: Machine, accumulate: int,
    trained: float, muon: bool = False, preference: bool = False,
) -> Time:  # fmt: skip
    """The time of a step of `accumulate` micro-batches on each GPU.

    Gathering and scattering of a block overlap with the arithmetic of its neighbours, so the longer of the
    two counts; replicas' sums overlap with the last micro-batch. The exchange of tokens overlaps with nothing.
    The optimiser reads weight, gradient and two moments and writes three of them (28 bytes a weight) at the
    memory's speed; Muon's products are done by every GPU for the matrices it holds a part of.
    """
    needed, done = step_flops(c, a, micro, preference)
    pace = m.peak * m.efficiency
    compute = micro.tokens * done / pace
    each = max(compute, sent.sharding_seconds) + sent.exchange_seconds
    last = max(compute, sent.sharding_seconds + sent.reduce_seconds) + sent.exchange_seconds
    optimiser = 28.0 * trained / layout.shard / m.bandwidth
    if muon and a.full:
        optimiser += muon_flops(counts(c), c) / max(layout.expert, 1) / pace
    total = (accumulate - 1) * each + last + optimiser
    tokens = accumulate * micro.tokens
    return Time(
        accumulate * compute, sent.seconds(accumulate), optimiser, total,
        layout.world * tokens / total, tokens * needed / total / m.peak,
    )  # fmt: skip
