"""What the planner is asked about: a micro-batch, how a pass computes, and how many parameters a decoder has.

Shapes and counts alone; what they take is `plan_memory`'s matter and `plan_cost`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from m27.model.config import Config
from m27.train.lora import TARGETS


@dataclass(frozen=True)
class Micro:
    """A micro-batch of one device: `rows` of `length` tokens, in documents of `document` tokens (0: a row is
    one); `targets` is the share of tokens that are learned from."""

    rows: int
    length: int
    document: int = 0
    targets: float = 1.0

    @property
    def tokens(self) -> int:
        """Tokens in all, N."""
        return self.rows * self.length

    @property
    def learned(self) -> int:
        """Targets in all, M."""
        return max(int(self.tokens * self.targets), 1)

    @property
    def reach(self) -> int:
        """Tokens of a document."""
        return self.document or self.length


@dataclass(frozen=True)
class Arithmetic:
    """How a pass computes, as far as it decides what is kept; names as in `m27.train.settings.TrainConfig`.

    `narrow`: products in bfloat16, else float32. `device` decides the kernels of attention and norm;
    `sharded` weights are gathered in the products' dtype, so that autocast copies none.
    """

    path: Literal["whole", "plain", "fused", "merged"] = "whole"
    body: Literal["full", "adapters", "frozen"] = "full"
    rows: Literal["free", "maps", "frozen"] = "free"
    narrow: bool = True
    recompute: bool = False
    device: Literal["cpu", "cuda"] = "cuda"
    compile: bool = False
    sharded: bool = False
    rank: int = 0
    targets: Sequence[str] = TARGETS

    @property
    def width(self) -> int:
        """Bytes of a number in products."""
        return 2 if self.narrow else 4

    @property
    def full(self) -> bool:
        """Whether the body's own weights are trained."""
        return self.body == "full"

    @property
    def stream(self) -> int:
        """Bytes of a number of the residual stream: it stays float32 unless the frozen body is narrow."""
        return 2 if self.narrow and not self.full and self.path != "fused" else 4


@dataclass(frozen=True)
class Counts:
    """Numbers of parameters: of one block its matrices (`dense`, `experts`) and gains; of the rest, the rows of
    the embedding, those of a head of its own (0 where tied) and the last norm's gain."""

    layers: int
    dense: int
    experts: int
    gains: int
    embedding: int
    head: int
    last: int

    @property
    def block(self) -> int:
        """Parameters of one block."""
        return self.dense + self.experts + self.gains

    @property
    def blocks(self) -> int:
        """Parameters of all blocks."""
        return self.layers * self.block

    @property
    def root(self) -> int:
        """Of everything but the blocks."""
        return self.embedding + self.head + self.last

    @property
    def total(self) -> int:
        """Of the decoder."""
        return self.blocks + self.root


def counts(c: Config) -> Counts:
    """The parameters of a decoder by part; their sum is `m27.model.config.size_row`'s."""
    inner, keys = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    expert = 3 * c.dim * (c.expert_dim if c.n_experts else c.ffn_dim)
    return Counts(
        layers=c.n_layers,
        dense=(2 * inner + 2 * keys) * c.dim + (c.n_experts * c.dim if c.n_experts else expert),
        experts=c.n_experts * expert,
        gains=2 * c.dim + (2 * c.head_dim if c.qk_norm else 0),
        embedding=c.vocab_size * c.dim,
        head=0 if c.tied else c.vocab_size * c.dim,
        last=c.dim,
    )


def sides(c: Config) -> dict[str, tuple[int, int]]:
    """(in, out) of every projection that an adapter may be put on, by its last name."""
    inner, keys = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    out = {
        "q_proj": (c.dim, inner), "k_proj": (c.dim, keys), "v_proj": (c.dim, keys),
        "o_proj": (inner, c.dim),
    }  # fmt: skip
    if not c.n_experts:  # adapters go on linear layers, and experts are held stacked
        out |= {"gate_proj": (c.dim, c.ffn_dim), "up_proj": (c.dim, c.ffn_dim), "down_proj": (c.ffn_dim, c.dim)}
    return out


def adapter_numbers(c: Config, a: Arithmetic) -> int:
    """Numbers in all adapters: rank * (in + out) for each adapted layer (Hu et al. 2021)."""
    if a.full:
        return 0
    each = sum(sum(pair) for name, pair in sides(c).items() if name in a.targets)
    return c.n_layers * a.rank * each


@dataclass(frozen=True)
class Vocabulary:
    """How the rows of the vocabulary come about where they are learned maps (`m27.train.rows.Rows`): text rows
    frozen, `controls` free, the codes' rows from the digits `levels` of each medium by a map with `hidden`."""

    controls: int
    levels: tuple[tuple[int, ...], ...]
    hidden: int = 512

    @property
    def sizes(self) -> list[int]:
        """Codes of each medium."""
        found = []
        for levels in self.levels:
            size = 1
            for level in levels:
                size *= level
            found.append(size)
        return found

    @property
    def new(self) -> int:
        """Rows behind the text's."""
        return self.controls + sum(self.sizes)

    def parameters(self, dim: int) -> int:
        """How many numbers are trained."""
        maps = sum(sum(x) * (dim + self.hidden) + self.hidden * (1 + dim) for x in self.levels)
        return self.controls * dim + maps
