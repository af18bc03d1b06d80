"""Which ids each target of a micro-batch is scored among, and which documents the base is asked about.

In generation the grammar decides the medium and the model only chooses within it; so a picture's codes are
scored among picture codes, a sound's among sound codes and its end, words among words and control ids. A share
of all targets, and all of the tasks in `full_tasks`, are scored over the whole vocabulary, so that an engine
without the grammar keeps to it too. Planned on the host, before a batch goes to its device. Knows no model.

Shapes: B rows, T tokens, M targets, m targets of a group, n tokens of the base's documents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from m27.data.loader import MEDIA, Batch
from m27.language.vocabulary import Vocabulary
from m27.train.objective import Spans
from m27.train.pairs import Pairs


@dataclass(frozen=True)
class Group:
    """Targets, by their number in the batch, that are scored among the ids of `spans` (None: all)."""

    index_m: Tensor
    spans: Spans | None


@dataclass(frozen=True)
class Teacher:
    """Documents that the base is asked about, taken out of the rows and laid end to end in one.

    `index_m` are targets of the batch, `places_m` the tokens among the n whose state predicts them, and
    `share_m` how much of each one's loss is the divergence from the base.
    """

    ids_n: Tensor
    positions_n: Tensor
    documents_1n: Tensor  # stays on the host, where attention is planned
    index_m: Tensor
    places_m: Tensor
    share_m: Tensor
    branches_1n: Tensor | None = None  # as the documents


@dataclass(frozen=True)
class Plan:
    """How the targets of one micro-batch are scored; each target is in one group or the teacher's.

    With `pairs` answers are compared: the teacher is asked about all targets, and all are in groups too.
    `z_loss` is the weight of log(z)² in the loss of the groups' targets, see `cross_entropy`.
    Where nothing is to be learnt of them, no gradient is formed.
    """

    groups: tuple[Group, ...]
    teacher: Teacher | None = None
    pairs: Pairs | None = None
    z_loss: float = 0.0
    learn: bool = True

    def weight(self, batch: Batch) -> float:
        """What a step's gradient is divided by: the batch's share of it."""
        weights = batch.weights_M if self.pairs is None else self.pairs.weights_P
        return float(weights.sum())

    def to(self, device: torch.device) -> Plan:
        """The same plan with its indices on a device."""
        groups = tuple(replace(g, index_m=g.index_m.to(device)) for g in self.groups)
        teacher = self.teacher
        if teacher is not None:
            moved = {
                name: tensor.to(device, non_blocking=True)
                for name, tensor in vars(teacher).items()
                if name not in ("documents_1n", "branches_1n") and tensor is not None
            }
            teacher = replace(teacher, **moved)
        pairs = None if self.pairs is None else self.pairs.to(device)
        return replace(self, groups=groups, teacher=teacher, pairs=pairs)


class Scoring:
    """Makes the plan of each batch of a corpus with this `vocabulary` (its meta) and these `tasks`.

    `full_share` in 0..1 of the targets, and every target of `full_tasks`, are scored over all ids;
    `kl_tasks` gives by task how much of its targets' loss is the divergence from the base, 0..1. `z_loss`
    goes into each plan. Raises ValueError for a share outside that.
    """

    def __init__(
        self,
        vocabulary: Mapping[str, Any],
        tasks: Sequence[str],
        full_share: float = 1.0,
        full_tasks: Sequence[str] = (),
        kl_tasks: Mapping[str, float] | None = None,
        z_loss: float = 0.0,
    ) -> None:
        self.z_loss = z_loss
        shares = {
            "full_share": full_share,
            **{f"kl_tasks.{k}": v for k, v in (kl_tasks or {}).items()},
        }
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name} is {share}; it must lie in 0..1")
        self.full_share = full_share
        self.text = int(vocabulary["text"])
        image, audio = vocabulary["image"], vocabulary["audio"]
        self.audio_end = Vocabulary(text_size=self.text).audio_end
        self._words: Spans = ((0, int(image[0])),)
        self._image: Spans = ((int(image[0]), int(image[1])),)
        self._audio: Spans = (
            (self.audio_end, self.audio_end + 1), (int(audio[0]), int(audio[1])),
        )  # fmt: skip
        self._full = torch.tensor([name in full_tasks for name in tasks])
        self._kl = torch.tensor([float((kl_tasks or {}).get(name, 0.0)) for name in tasks])

    def plan(self, batch: Batch) -> Plan:
        """How the targets of `batch` (on the host) are scored."""
        share_M = self._kl[batch.tasks_M]
        teacher = self._teacher(batch, share_M) if bool((share_M > 0).any()) else None
        left_M = torch.ones_like(batch.targets_M, dtype=torch.bool)
        if teacher is not None:
            left_M[teacher.index_m] = False
        # A target's place in its row and its id make a draw that a resumed run repeats, however many rows
        # are gone through at a time.
        mixed = batch.places_M % batch.ids_BT.shape[1] * 2654435761 + batch.targets_M * 40503
        full_M = (mixed % (1 << 32)) < self.full_share * (1 << 32)
        full_M |= self._full[batch.tasks_M]
        image_M = batch.media_M == MEDIA.index("image")
        audio_M = (batch.media_M == MEDIA.index("audio")) | (batch.targets_M == self.audio_end)
        kinds: list[tuple[Tensor, Spans | None]] = [
            (full_M, None),
            (~full_M & image_M, self._image),
            (~full_M & audio_M, self._audio),
            (~full_M & ~image_M & ~audio_M, self._words),
        ]
        groups = [Group((mask & left_M).nonzero().flatten(), spans) for mask, spans in kinds]
        held = tuple(group for group in groups if len(group.index_m))
        return Plan(held, teacher, z_loss=self.z_loss)

    def _teacher(self, batch: Batch, share_M: Tensor) -> Teacher | None:
        ids_N, documents_N = batch.ids_BT.flatten(), batch.documents_BT.flatten()
        count = int(documents_N.max()) + 1
        wanted = torch.zeros(count, dtype=torch.bool)
        wanted[documents_N[batch.places_M[share_M > 0]]] = True
        # The base has no rows for our own ids; a document that holds some is learned as the others are.
        wanted[documents_N[(ids_N >= self.text) & (documents_N >= 0)]] = False
        keep_N = (documents_N >= 0) & wanted[documents_N.clamp_min(0)]
        if not bool(keep_N.any()):
            return None
        at_N = keep_N.cumsum(0) - 1
        index_m = ((share_M > 0) & keep_N[batch.places_M]).nonzero().flatten()
        return Teacher(
            ids_N[keep_N], batch.positions_BT.flatten()[keep_N], documents_N[keep_N][None],
            index_m, at_N[batch.places_M[index_m]], share_M[index_m],
        )  # fmt: skip
