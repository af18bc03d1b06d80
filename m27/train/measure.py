"""How probable a model finds documents of a corpus: losses by document and medium, nothing learned.

What fine-tuning is judged by, before and after. Each target is scored among the ids that the grammar leaves
it (see `Scoring`), as in generation. It knows no adapters: the decoder comes with them merged.

Shapes: N documents, M media of `loader.MEDIA` (or targets of a batch), m targets of a group, S ids of its spans.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from m27.data.loader import MEDIA, Loader
from m27.data.mixture import Corpus, Draw, Mixture
from m27.data.pack import Packer
from m27.data.progress import Progress
from m27.model.decoder import Decoder
from m27.train.objective import Spans
from m27.train.scoring import Scoring

ROW = 2048  # tokens at a time
PIECE = 512  # targets at a time


@dataclass(frozen=True)
class Losses:
    """Sums of losses in nats [N, M] and counts of targets [N, M] of some documents, by medium."""

    sums: NDArray[np.float64]
    counts: NDArray[np.int64]

    def means(self) -> dict[str, tuple[float, int]]:
        """Mean loss and number of targets of each medium that occurs, and of "all"."""
        sums, counts = self.sums.sum(0), self.counts.sum(0)
        out = {
            name: (float(sums[i] / counts[i]), int(counts[i]))
            for i, name in enumerate(MEDIA)
            if counts[i]
        }
        return out | {"all": (float(sums.sum() / counts.sum()), int(counts.sum()))}

    def pick(self, numbers: Sequence[int]) -> Losses:
        """Those of some documents, by their place here."""
        return Losses(self.sums[list(numbers)], self.counts[list(numbers)])


@torch.no_grad()
def document_losses(
    decoder: Decoder,
    corpus: Corpus,
    dtype: torch.dtype = torch.float32,
    numbers: Sequence[int] | None = None,
    label: str = "measuring",
    rows_VD: Tensor | None = None,
) -> Losses:
    """The losses of the documents `numbers` of `corpus` (None: all, in order), products in `dtype`.

    `rows_VD`: the vocabulary's rows, for a decoder that has given up its own (QLoRA).
    """
    wanted = list(range(len(corpus)) if numbers is None else numbers)
    loader = Loader(Packer(Mixture(corpus), ROW))
    scoring = Scoring(corpus.meta["vocabulary"], corpus.tasks, full_share=0.0)
    table_VD = decoder.output_weight if rows_VD is None else rows_VD
    device, table_VD = table_VD.device, table_VD.float()
    sums = np.zeros((len(wanted), len(MEDIA)))
    counts = np.zeros((len(wanted), len(MEDIA)), np.int64)
    with Progress(label, len(wanted), "documents") as bar:
        for places in _batches(corpus, wanted):
            sizes = [int(corpus.lengths[wanted[i]]) for i in places]
            loader.packer.length = max(sizes)
            host = loader.collate([[Draw(wanted[i], n)] for i, n in zip(places, sizes, strict=True)])
            batch, plan = host.to(device), scoring.plan(host).to(device)
            narrow = dtype != torch.float32
            with torch.autocast(device.type, dtype) if narrow else nullcontext():
                tied = decoder.config.tied
                x_BTD = F.embedding(batch.ids_BT, table_VD) if tied else decoder.embed(batch.ids_BT)
                x_BTD = x_BTD.to(decoder.model.norm.weight.dtype)
                # A row a document, so that what fills it up stands after it, where nothing looks.
                h_BTD = decoder.hidden(x_BTD, batch.positions_BT)
            h_MD = h_BTD.flatten(0, 1).index_select(0, batch.places_M).float()
            losses_M = torch.empty(len(h_MD))
            for group in plan.groups:
                at, spans = group.index_m, group.spans or ((0, len(table_VD)),)
                losses_M[at.cpu()] = _nats(h_MD[at], table_VD, batch.targets_M[at], spans).cpu()
            document_M = host.documents_BT.flatten()[host.places_M].numpy()
            at_M = (np.asarray(places)[document_M], host.media_M.numpy())
            np.add.at(sums, at_M, losses_M.double().numpy())
            np.add.at(counts, at_M, 1)
            bar.add(len(places))
    return Losses(sums, counts)


def _nats(h_mD: Tensor, table_VD: Tensor, targets_m: Tensor, spans: Spans) -> Tensor:
    """Losses [m] of targets among the ids of `spans`, a few at a time."""
    rows_SD = torch.cat([table_VD[begin:end] for begin, end in spans])
    own_m = (h_mD * table_VD[targets_m]).sum(-1)
    parts = [(h @ rows_SD.t()).logsumexp(-1) for h in h_mD.split(PIECE)]
    return torch.cat(parts) - own_m


def _batches(corpus: Corpus, wanted: Sequence[int]) -> list[list[int]]:
    """Places in `wanted`, by length, in batches of about `ROW` tokens with what fills their rows up."""
    batches: list[list[int]] = [[]]
    for place in sorted(range(len(wanted)), key=lambda i: int(corpus.lengths[wanted[i]])):
        size = int(corpus.lengths[wanted[place]])
        if batches[-1] and size * (len(batches[-1]) + 1) > ROW:
            batches.append([])
        batches[-1].append(place)
    return batches
