"""Fused steps as CUDA graphs: one launch a step, and one copy to tell it what the step is about.

The first step of a shape is also computed by the torch runner's own modules. Where the two differ by
more than rounding, or a kernel cannot be had, that is said once and the shape is left to
`m27.infer.graphs`. Without `capture` the same step runs without a graph, for devices that have none.
Knows the torch runner; not what an id means.

Shapes: S rows, D width, M blocks of a table, C ids in a row.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from m27.infer.cuda.ops import Ops
from m27.infer.cuda.step import Arrays, Step, suits
from m27.infer.graphs import SHORTEST, SIZES
from m27.infer.runner import Batch

if TYPE_CHECKING:
    from m27.infer.torch_runner import TorchRunner

# Relative to the states' norm; what a few dozen layers make of another order of summing.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 6e-2}


@dataclass
class _Kept:
    """One shape: its arrays on the device, the same on the host, and what computes from them."""

    arrays: Arrays
    host: Tensor
    ids: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int32]
    slots: npt.NDArray[np.int32]
    tables: npt.NDArray[np.int32]
    graph: Any = None
    h_SD: Tensor | None = None
    chain: Any = None
    copied: Any = None


class FusedGraphs:
    """The fused steps of one runner, captured as their shapes come up."""

    def __init__(self, runner: TorchRunner, ops: Ops, capture: bool = True) -> None:
        self._runner, self._capturing = runner, capture
        self._step = Step(runner.model, runner.keys, runner.values, ops)
        self._kept: dict[tuple[int, int], _Kept | None] = {}
        self._pool: Any = None
        self.differences: dict[tuple[int, int], float] = {}  # of each shape, when it was checked

    @staticmethod
    def takes(batch: Batch) -> bool:
        """Whether the step is one token of each of its sequences, none of them adapted."""
        count = len(batch.ids)
        ones = 0 < count <= SIZES[-1] and count + 1 == len(batch.starts)
        return ones and not bool((batch.adapters >= 0).any())

    def run(self, batch: Batch) -> Tensor | None:
        """The states [S, D] of a step, valid until the next; None where this shape is not trusted."""
        kept = self._find(batch)
        if kept is None:
            return None
        self._fill(kept, batch)
        if kept.graph is None:
            return self._step.hidden(kept.arrays)[: len(batch.ids)]
        kept.graph.replay()
        assert kept.h_SD is not None
        return kept.h_SD[: len(batch.ids)]

    def scores(self, h_SD: Tensor, weight_KD: Tensor) -> Tensor:
        """Scores [S, K] of states, after a step that was run here."""
        return self._step.ops.product(h_SD, weight_KD)

    @torch.inference_mode()
    def chain(self, batch: Batch, count: int) -> Tensor | None:
        """`count` steps, each from the likeliest ids of the one before, with nobody between: the ids
        [C, S] of the whole vocabulary, on the device. The tables must list blocks for all of them.
        None where this shape is not trusted. Raises ValueError unless a graph has as many rows."""
        if len(batch.ids) not in SIZES:
            raise ValueError(f"{len(batch.ids)} rows: one of {SIZES} can go on by themselves")
        kept = self._find(batch)
        if kept is None:
            return None
        arrays = kept.arrays
        if kept.chain is None and self._capturing:
            self._fill(kept, batch)
            kept.chain, _ = self._capture(lambda: self._step.advance(arrays))
        self._fill(kept, batch)
        out = torch.empty((count, len(batch.ids)), dtype=torch.int32, device=arrays.ids.device)
        for row in out:
            if kept.chain is None:
                self._step.advance(arrays)
            else:
                kept.chain.replay()
            row.copy_(arrays.ids[: len(batch.ids)])
        return out

    def _find(self, batch: Batch) -> _Kept | None:
        rows = next(size for size in SIZES if size >= len(batch.ids))
        blocks, least = SHORTEST // self._runner.block_size, batch.tables.shape[1]
        while blocks < least:
            blocks *= 2
        shape = (rows, blocks)
        if shape not in self._kept:
            self._kept[shape] = self._made(batch, *shape)
        return self._kept[shape]

    def _made(self, batch: Batch, rows: int, blocks: int) -> _Kept | None:
        """A shape made ready and checked; None where it is not to be trusted."""
        runner = self._runner
        try:
            arrays = Arrays.empty(rows, blocks, runner.block_size, runner.device)
            host = torch.zeros_like(arrays.whole, device="cpu")
            host = host.pin_memory() if self._capturing else host
            numbers = host.numpy()
            ids, positions, slots = numbers[: 3 * rows].reshape(3, rows)
            tables = numbers[3 * rows :].reshape(rows, blocks)
            kept = _Kept(arrays, host, ids, positions, slots, tables)
            self._fill(kept, batch)
            wanted = runner.hidden(runner.plan(batch)).float()
            found = self._step.hidden(arrays)[: len(batch.ids)].float()
            off = float((found - wanted).norm() / wanted.norm())
            self.differences[rows, blocks] = off
            if not off <= TOLERANCE.get(runner.model.output_weight.dtype, 6e-2):
                raise ArithmeticError(f"states differ by {off:.2g} of their norm")
            if self._capturing:
                kept.graph, kept.h_SD = self._capture(lambda: self._step.hidden(arrays))
            return kept
        except Exception as error:  # whatever a compiler or a driver may say: there is another way
            why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            print(f"m27: no fused steps of {rows} rows ({why})", file=sys.stderr)
            return None

    def _fill(self, kept: _Kept, batch: Batch) -> None:
        """Put what a step is about where its kernels read it."""
        if kept.copied is not None:
            kept.copied.synchronize()  # the copy before this one has left the host's array
        count, spare = len(batch.ids), self._runner.blocks * self._runner.block_size
        for there, values, rest in (
            (kept.ids, batch.ids, 0), (kept.positions, batch.positions, 0),
            (kept.slots, batch.slots, spare),
        ):  # fmt: skip
            there[:count] = values
            there[count:] = rest
        kept.tables[:count, : batch.tables.shape[1]] = batch.tables
        kept.arrays.whole.copy_(kept.host, non_blocking=True)
        if self._capturing:
            kept.copied = kept.copied or torch.cuda.Event()
            kept.copied.record()

    def _capture(self, work: Any) -> tuple[Any, Tensor | None]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # what is made once is made before the capture
            for _ in range(2):
                work()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            out = work()
        self._pool = self._pool or graph.pool()
        return graph, out


def fused(runner: TorchRunner) -> FusedGraphs | None:
    """The fused steps of a runner on a GPU; None where its model or this machine has none."""
    if runner.device.type != "cuda" or not suits(runner.model):
        return None
    try:
        from m27.infer.cuda.kernels import TritonOps
    except ImportError:
        return None
    return FusedGraphs(runner, TritonOps())
