"""Batches for the image codec: groups of pictures kept on a device, drawn and bent there.

What is drawn is a function of the seed and the step alone, whatever the device: the random numbers
come from the host, one small array a step, and only indices and corners travel.

Shape suffixes: B batch, N pictures of a group, S side in pixels, L words.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

BUCKETS = 8192  # of the hashed bag of words; bucket 0 is padding
WORDS = 16  # of a caption that are read
ZOOM = 1.5  # a quarter of the pictures are zoomed into by up to so much


@dataclass(frozen=True)
class Pictures:
    """A group of training pictures of one kind: uint8 ``[N, S, S, 3]``, a caption each, a
    sampling weight."""

    kind: str
    pixels: NDArray[np.uint8]
    captions: Sequence[str]
    weight: float


@dataclass(frozen=True)
class Batch:
    """Pixels ``[B, 3, S, S]`` in 0..1, the captions' hashed words ``[B, L]`` (0: none) and a hash
    of each whole caption ``[B]``, by which equal ones are known."""

    pixels: Tensor
    words: Tensor
    captions: Tensor


def hash_captions(captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Captions → their words as buckets ``[N, L]`` and a number for each whole caption ``[N]``."""
    words = np.zeros((len(captions), WORDS), np.int64)
    whole = np.zeros(len(captions), np.int64)
    known: dict[str, int] = {}
    for row, caption in enumerate(captions):
        found = re.findall(r"[a-z0-9]+", caption.lower())
        for word in found:
            if word not in known:
                digest = hashlib.md5(word.encode(), usedforsecurity=False).hexdigest()
                known[word] = int(digest[:12], 16)
        words[row, : len(found)] = [1 + known[w] % (BUCKETS - 1) for w in found[:WORDS]]
        whole[row] = sum(known[w] for w in found) % (1 << 62)
    return torch.from_numpy(words), torch.from_numpy(whole)


class Bank:
    """Groups of pictures on a device, with batches drawn from them there."""

    def __init__(self, groups: Sequence[Pictures], device: torch.device | str = "cpu") -> None:
        weights = np.array([group.weight for group in groups], dtype=np.float64)
        self.device = torch.device(device)
        self.shares = weights / weights.sum()
        # An array that is read from the disk as needed stays there on the host.
        self.pixels: list[Tensor | NDArray[np.uint8]] = [
            group.pixels
            if self.device.type == "cpu"
            else torch.from_numpy(np.array(group.pixels)).to(self.device)
            for group in groups
        ]
        hashed = [hash_captions(group.captions) for group in groups]
        self.words = [words.to(self.device) for words, _ in hashed]
        self.captions = [whole.to(self.device) for _, whole in hashed]

    def draw(self, batch: int, size: int, seed: int, step: int) -> Batch:
        """The batch of a step, at ``size`` pixels a side, ordered by group.

        Half of the pictures are mirrored; a quarter are zoomed into.
        """
        rng = np.random.default_rng([seed, step])
        groups = np.sort(rng.choice(len(self.shares), batch, p=self.shares))
        which, flip, zooms = rng.random(batch), rng.random(batch) < 0.5, rng.random(batch) < 0.25
        scale = np.where(zooms, 1 / rng.uniform(1.0, ZOOM, batch), 1.0)
        corner = (rng.random((batch, 2)) * 2 - 1) * (1 - scale[:, None])
        bend = np.zeros((batch, 2, 3), np.float32)
        bend[:, 0, 0], bend[:, 1, 1] = np.where(flip, -scale, scale), scale
        bend[:, :, 2] = corner
        pixels, words, captions = [], [], []
        for group in np.unique(groups):
            here = groups == group
            rows = (which[here] * len(self.words[group])).astype(np.int64)
            pixels.append(self._bent(int(group), rows, bend[here], size))
            at = torch.from_numpy(rows).to(self.device)
            words.append(self.words[group][at])
            captions.append(self.captions[group][at])
        return Batch(torch.cat(pixels), torch.cat(words), torch.cat(captions))

    def _bent(
        self, group: int, rows: NDArray[np.int64], bend: NDArray[np.float32], size: int
    ) -> Tensor:
        stored = self.pixels[group]
        if isinstance(stored, Tensor):
            chosen = stored[torch.from_numpy(rows).to(self.device)]
        else:
            chosen = torch.from_numpy(np.array(stored[rows]))
        x = chosen.permute(0, 3, 1, 2).float() / 255
        theta = torch.from_numpy(bend).to(self.device)
        grid = F.affine_grid(theta, [len(rows), 3, size, size], align_corners=False)
        # A picture that is larger than wanted would alias; none is stored so, but one may be given.
        if x.shape[-1] >= 2 * size:
            x = F.interpolate(x, (size, size), mode="area")
        y = F.grid_sample(x, grid, mode="bicubic", padding_mode="border", align_corners=False)
        return y.clamp(0, 1)
