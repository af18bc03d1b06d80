"""Steps that only decode, captured as CUDA graphs: one launch instead of some twenty a layer.

A graph has fixed shapes, so a step is padded to one of a few numbers of tokens and of slots that they
see; what pads it writes to the cache's last slot, which belongs to nobody. Of a sequence that tries
ids ahead, each token counts as a row that sees what stands before it. Knows the torch runner; the
head, whose spans change from step to step, is not part of a graph.

Shapes: S rows, one for each token; L slots that each sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from m27.infer.runner import Batch

if TYPE_CHECKING:
    from m27.infer.torch_runner import Step, TorchRunner

SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)
SHORTEST = 256
AHEAD = 16  # tokens of one sequence; more are read cheaper together


@dataclass(frozen=True)
class Padded:
    """The arrays of a decoding step at a graph's shape."""

    ids: npt.NDArray[np.int64]  # [S]
    positions: npt.NDArray[np.int64]  # [S]
    slots: npt.NDArray[np.int64]  # [S]
    read: npt.NDArray[np.int64]  # [S, L]
    seen: npt.NDArray[np.bool_]  # [S, 1, 1, L]


def decodes(batch: Batch) -> bool:
    """Whether the step is one token or a few of each of its sequences, none of them adapted."""
    if not 0 < len(batch.ids) <= SIZES[-1] or bool((batch.adapters >= 0).any()):
        return False
    return int(np.diff(batch.starts).max()) <= AHEAD


def shape_of(batch: Batch) -> tuple[int, int]:
    """The smallest graph shape (S, L) that holds the step."""
    rows = next(size for size in SIZES if size >= len(batch.ids))
    longest, length = int(batch.positions.max()) + 1, SHORTEST
    while length < longest:
        length *= 2
    return rows, length


def pad(batch: Batch, rows: int, length: int, block_size: int, spare: int) -> Padded:
    """The step's arrays filled up to a graph's shape; `spare` is the slot that belongs to nobody."""
    count = len(batch.ids)

    def filled(values: npt.NDArray[Any], rest: int) -> npt.NDArray[np.int64]:
        out = np.full(rows, rest, dtype=np.int64)
        out[:count] = values
        return out

    read = np.full((rows, length), spare, dtype=np.int64)
    tables = np.repeat(batch.tables, np.diff(batch.starts), axis=0)
    every = tables[:, :, None].astype(np.int64) * block_size + np.arange(block_size)
    every = every.reshape(count, -1)[:, :length]
    seen = np.zeros((rows, length), dtype=np.bool_)
    seen[:count] = np.arange(length) <= batch.positions[:, None]
    seen[count:, 0] = True  # no softmax is ever empty
    read[:count, : every.shape[1]] = np.where(seen[:count, : every.shape[1]], every, spare)
    return Padded(
        filled(batch.ids, 0), filled(batch.positions, 0), filled(batch.slots, spare), read,
        seen[:, None, None],
    )  # fmt: skip


class Graphs:
    """The graphs of one runner, captured as their shapes come up."""

    def __init__(self, runner: TorchRunner) -> None:
        self._runner = runner
        self._kept: dict[tuple[int, int], tuple[Any, Step, Tensor]] = {}
        self._pool: Any = None

    def takes(self, batch: Batch) -> bool:
        """Whether a graph can run the step."""
        return decodes(batch)

    def run(self, batch: Batch) -> Tensor:
        """The states [S, D] of a step, the padding's left out; valid until the next step."""
        shape = shape_of(batch)
        spare = self._runner.blocks * self._runner.block_size
        padded = pad(batch, *shape, self._runner.block_size, spare)
        if shape not in self._kept:
            self._kept[shape] = self._capture(self._runner.step_of(padded))
        graph, step, h_SD = self._kept[shape]
        self._fill(step, padded)
        graph.replay()
        return h_SD[: len(batch.ids)]

    def _fill(self, step: Step, padded: Padded) -> None:
        """Put a step's arrays where the graph reads them."""
        mask = step.readings[0].mask
        assert mask is not None
        for there, values in (
            (step.ids_T, padded.ids), (step.positions_T, padded.positions),
            (step.slots_T, padded.slots), (step.readings[0].slots_SL, padded.read),
            (mask, padded.seen),
        ):  # fmt: skip
            there.copy_(torch.from_numpy(values), non_blocking=True)

    def _capture(self, step: Step) -> tuple[Any, Step, Tensor]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # what is allocated once is allocated before the capture
            for _ in range(2):
                self._runner.hidden(step)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            h_SD = self._runner.hidden(step)
        self._pool = self._pool or graph.pool()
        return graph, step, h_SD
