"""What the engine asks of whatever runs the model: one step for the tokens of many sequences.

A runner knows ids, positions and blocks of its own cache; it knows no request and no medium. The torch
runner (`m27.infer.torch_runner`) is the one for every device, the CPU runner (`m27.infer.cpu`) the fast
one; whoever implements the protocol can take their place.

The cache is paged: `blocks` blocks of `block_size` tokens each. Block 0 … blocks - 1 belong to nobody
until the engine hands them out; a slot is block * block_size + place in the block.

Shapes: T tokens of the step, S sequences of the step, M most blocks of a sequence, R rows, K ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from m27.model.config import Config

Spans = tuple[tuple[int, int], ...]  # half-open ranges of ids, ascending, not empty
Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]
Answered = npt.NDArray[
    Any
]  # float32 logits [R, K], or int64 ids: the best [R], or those drawn [D] (-1 where none can be)


class RunnerError(RuntimeError):
    """A step that cannot be run; the message says why. The runner stays usable."""


class Draw(NamedTuple):
    """How an id is to be drawn (see `m27.infer.sampler`) from the logits after one of a question's
    tokens, the `row`-th, guided by those after another where `other` is not -1. A row is drawn from
    once. `key` makes the draw what it is; `seen` [N] are the places among the asked ids of those that
    the penalty is for, `redirects` pairs of ids (from, to)."""

    row: int
    other: int
    guidance: float
    key: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    penalty: float
    seen: npt.NDArray[np.int64]
    redirects: Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Wanted:
    """A question to the head: logits of the ids in `spans`, after each of `tokens` (places in T).

    With `best` only the likeliest id is asked for (of equal ones the first), which a runner whose
    `picks` is true finds where the logits are. With `draws` ids are to be drawn by these, which a
    runner whose `draws` is true does; there a token stands for one row, and no logits are answered.
    """

    spans: Spans
    tokens: Sequence[int]
    best: bool = False
    draws: Sequence[Draw] = ()


@dataclass(frozen=True)
class Batch:
    """One step. The tokens of sequence s are `starts[s]` … `starts[s + 1]`, its next ones in order.

    `ids` [T], `positions` [T] and `slots` [T] (where each token's keys and values are to be written);
    `tables` [S, M] lists each sequence's blocks by position (block of position p is entry
    p // block_size; -1 behind the last). A token sees every token of its sequence at its own position
    and before: those written earlier and those of this step. `adapters` [S] are numbers that
    `add_adapter` gave, -1 for none. All integers are int32, and C-contiguous.
    """

    ids: Ints
    positions: Ints
    slots: Ints
    starts: Ints
    tables: Ints
    adapters: Ints
    wanted: Sequence[Wanted] = field(default_factory=tuple)


@dataclass(frozen=True)
class Adapter:
    """A low-rank adapter: for each adapted matrix, by its Hugging Face name without `.weight`
    ("model.layers.0.self_attn.q_proj"), A [r, in] and B [out, r], B already scaled by alpha / r."""

    name: str
    matrices: Mapping[str, tuple[Floats, Floats]]


class Runner(Protocol):
    """Runs steps. Not for several threads at once."""

    config: Config
    block_size: int
    blocks: int

    def run(self, batch: Batch) -> list[Answered]:
        """Write the step's keys and values, and answer: for each of `wanted` float32 logits [R, K],
        K the ids of its spans in ascending order, or the best ids [R], or the ids drawn [D]. Raises
        RunnerError."""
        ...

    def add_adapter(self, adapter: Adapter) -> int:
        """Keep an adapter; the number that `Batch.adapters` names it by. Raises RunnerError for a
        matrix that the model does not have, or of another shape."""
        ...

    def remove_adapter(self, number: int) -> None:
        """Let go of an adapter; its number may be given again."""
        ...

    def facts(self) -> dict[str, Any]:
        """What a report should say: device, threads, precision of weights and cache, bytes of each."""
        ...
