"""Batches for the image codec: groups of pictures, drawn and bent at random.

Shape suffixes: B batch, N pictures of a group, S side in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Pictures:
    """A group of training pictures of one kind: uint8 ``[N, S, S, 3]``, a caption each, a
    sampling weight."""

    kind: str
    pixels: NDArray[np.uint8]
    captions: Sequence[str]
    weight: float


def draw_batch(
    groups: Sequence[Pictures], batch: int, size: int, seed: int, step: int
) -> tuple[Tensor, list[str]]:
    """The batch of a step: pixels ``[B, 3, S, S]`` in 0..1 and captions. A function of (seed,
    step) alone.

    Half of the pictures are mirrored; a quarter are zoomed into by up to 1.5.
    """
    rng = np.random.default_rng([seed, step])
    weights = np.array([g.weight for g in groups])
    pixels, captions = [], []
    for g in rng.choice(len(groups), batch, p=weights / weights.sum()):
        group = groups[g]
        i = int(rng.integers(len(group.pixels)))
        x = torch.from_numpy(np.array(group.pixels[i])).permute(2, 0, 1)[None].float() / 255
        if rng.random() < 0.5:
            x = x.flip(-1)
        if rng.random() < 0.25:
            side = int(x.shape[-1] / rng.uniform(1.0, 1.5))
            top, left = rng.integers(0, x.shape[-1] - side + 1, 2)
            x = x[..., top : top + side, left : left + side]
        if x.shape[-1] != size:
            x = F.interpolate(x, (size, size), mode="bicubic", align_corners=False).clamp(0, 1)
        pixels.append(x)
        captions.append(group.captions[i])
    return torch.cat(pixels), captions
