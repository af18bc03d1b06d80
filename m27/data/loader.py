"""Packed rows → batches of tensors: inputs, documents, positions, and the targets with their weights.

A target is listed only where the loss flag is set, so the head is computed nowhere else. Every batch comes
with the state from which the next one follows. It knows ids and offsets, nothing of models.

Shapes: B rows, T tokens a row, M targets of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m27.data.branches import positions as branch_positions
from m27.data.mixture import Corpus, Draw, State, content
from m27.data.pack import Packer

MEDIA = ("text", "control", "image", "audio")


@dataclass(frozen=True)
class Batch:
    """One micro-batch. `documents` is −1 and ids are 0 on padding; positions restart with each document.

    `places` are flat places in [B*T] whose state predicts `targets`; `weights` their loss weights, `media`
    the index in `MEDIA` and `tasks` that in the corpus's tasks, all [M]. `branches`, where a document
    has several, tells its conversations apart: one sees branch 0 and its own.
    """

    ids_BT: Tensor
    documents_BT: Tensor
    positions_BT: Tensor
    places_M: Tensor
    targets_M: Tensor
    weights_M: Tensor
    media_M: Tensor
    tasks_M: Tensor
    branches_BT: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        held = {name: tensor for name, tensor in vars(self).items() if tensor is not None}
        return Batch(**{name: tensor.to(device) for name, tensor in held.items()})


class Loader:
    """The endless stream of (batches of one step, state).

    A step is `step_rows` rows (0: `rows` times `accumulate`), of which `share` says the part that is wanted
    here (None: all); that part comes in micro-batches of `rows` rows. `weights` gives the loss weight of each
    medium of `MEDIA`, `task_weights` a further factor by task; both are one where nothing is given.
    """

    def __init__(
        self,
        packer: Packer,
        *,
        rows: int = 1,
        accumulate: int = 1,
        weights: Mapping[str, float] | None = None,
        task_weights: Mapping[str, float] | None = None,
        step_rows: int = 0,
        share: Callable[[list[list[Draw]]], Sequence[list[Draw]]] | None = None,
    ) -> None:
        self.packer, self.rows, self.share = packer, rows, share
        self.step_rows = step_rows or rows * accumulate
        self.corpus: Corpus = packer.mixture.corpus
        unknown = set(weights or {}) - set(MEDIA)
        if unknown:
            raise ValueError(f"loss weights: {sorted(unknown)} are none of {', '.join(MEDIA)}")
        self.medium_weight = np.asarray([(weights or {}).get(m, 1.0) for m in MEDIA], np.float32)
        given = task_weights or {}
        self.task_weight = np.asarray([given.get(t, 1.0) for t in self.corpus.tasks], np.float32)

    def __iter__(self) -> Iterator[tuple[list[Batch], State]]:
        while True:
            drawn = [self.packer.row() for _ in range(self.step_rows)]
            own = drawn if self.share is None else self.share(drawn)
            step = [self.collate(own[i : i + self.rows]) for i in range(0, len(own), self.rows)]
            yield step, self.packer.state()

    def collate(self, rows: Sequence[Sequence[Draw]]) -> Batch:
        """The batch of some packed rows."""
        length = self.packer.length
        ids = np.zeros((len(rows), length), dtype=np.int64)
        documents = np.full((len(rows), length), -1, dtype=np.int64)
        positions = np.zeros((len(rows), length), dtype=np.int64)
        branches = np.zeros((len(rows), length), dtype=np.int64)
        places, targets, tasks = [], [], []
        number = 0
        for r, row in enumerate(rows):
            at = 0
            for draw in row:
                tokens, loss = content(self.corpus, draw)
                end = at + len(tokens)
                ids[r, at:end] = tokens
                documents[r, at:end] = number
                parts = None if draw.bare else self.corpus.branches(draw.document)
                if parts is None:
                    positions[r, at:end] = np.arange(len(tokens))
                else:
                    positions[r, at:end] = branch_positions(parts)
                    branches[r, at:end] = parts
                hit = np.flatnonzero(loss[1:])
                places.append(r * length + at + hit)
                targets.append(tokens[1:][hit])
                tasks.append(np.full(len(hit), self.corpus.task_of[draw.document]))
                number, at = number + 1, end
            positions[r, at:] = np.arange(length - at)
        target = np.concatenate(targets)
        task = np.concatenate(tasks)
        medium = self.media(target)
        weight = self.medium_weight[medium] * self.task_weight[task]
        arrays = [ids, documents, positions, np.concatenate(places), target, weight, medium, task]
        if branches.any():
            arrays.append(branches)
        return Batch(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))

    def media(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The index in `MEDIA` of each id; the end of a turn counts as control."""
        v = self.corpus.meta["vocabulary"]
        out = np.zeros(ids.shape, dtype=np.int64)
        out[(ids >= v["text"]) | (ids == v["turn_end"])] = MEDIA.index("control")
        for medium in ("image", "audio"):
            begin, end = v[medium]
            out[(ids >= begin) & (ids < end)] = MEDIA.index(medium)
        return out
