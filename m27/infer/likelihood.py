"""How probable given ids are, by any runner: what perplexity is made of.

Knows runners and blocks; no messages and no grammar.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from m27.infer.cache import Blocks
from m27.infer.runner import Batch, Runner, Wanted


def log_likelihoods(
    runner: Runner,
    rows: Sequence[Sequence[int]],
    blocks: Blocks | None = None,
    chunk: int = 256,
    size: int | None = None,
    adapter: int = -1,
) -> list[npt.NDArray[np.float64]]:
    """For each row of T ids the natural-log probabilities [T - 1] of its ids after the first.

    With `size` only the first `size` ids of the vocabulary share the probability. Rows are read
    `chunk` ids at a time, so memory stays at chunk · V floats. `blocks` are those of the engine that
    has the runner; without an engine all blocks are free. `adapter` is the runner's number of
    one. Raises IndexError where blocks do not suffice.
    """
    blocks = blocks or Blocks(runner.blocks, runner.block_size)
    return [
        _row(runner, list(ids), blocks, chunk, size or runner.config.vocab_size, adapter) for ids in rows
    ]


def _row(
    runner: Runner, ids: list[int], blocks: Blocks, chunk: int, size: int, adapter: int
) -> npt.NDArray[np.float64]:
    table = [blocks.take() for _ in range(-(-len(ids) // blocks.size))]
    parts = [np.zeros(0)]
    try:
        for start in range(0, len(ids) - 1, chunk):
            end = min(start + chunk, len(ids) - 1)
            places = np.arange(start, end)
            slots = np.array(table)[places // blocks.size] * blocks.size + places % blocks.size
            batch = Batch(
                np.array(ids[start:end], dtype=np.int32), places.astype(np.int32),
                slots.astype(np.int32), np.array([0, end - start], dtype=np.int32),
                np.array([table], dtype=np.int32), np.array([adapter], dtype=np.int32),
                [Wanted(((0, size),), range(end - start))],
            )  # fmt: skip
            logits_TV = torch.from_numpy(np.asarray(runner.run(batch)[0]))
            target_T = torch.tensor(ids[start + 1 : end + 1])
            loss_T = F.cross_entropy(logits_TV, target_T, reduction="none")
            parts.append(-loss_T.double().numpy())
    finally:
        blocks.release(table)
    return np.concatenate(parts)
