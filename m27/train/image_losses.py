"""Losses of the image codec: pixels, colour, the trunk's features, and heads on single codes.

The semantic heads see one code at a time and average: what a code means must be in the code
itself, since the language model will read it through a small map of exactly that code.

Shape suffixes: B batch, C channels, H/W pixels, h/w code grid, D latent dimensions, E joint space.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m27.codec.trunk import POOLED, SCALES, Trunk
from m27.train.image_data import BUCKETS

CHROMA = 3.0  # a step in chroma counts as much as so many in luma


def opponent(pixels_B3HW: Tensor) -> Tensor:
    """RGB in 0..1 → luma in 0..1 and the two chroma axes in -0.5..0.5, of JPEG's YCbCr; linear."""
    r, g, b = pixels_B3HW.unbind(1)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    return torch.stack([y, (b - y) / 1.772, (r - y) / 1.402], 1)


def patch_colours(pixels_B3HW: Tensor, side: int) -> Tensor:
    """What colour each patch is, ``[B, 6, H/side, W/side]``, luma and chroma each time.

    First its mean; then the mean weighted by how colourful a pixel is, so that a thin red line on
    white is red and not pink.
    """
    x = opponent(pixels_B3HW)
    weight = x[:, 1:].norm(dim=1, keepdim=True) + 0.02
    strong = F.avg_pool2d(x * weight, side) / F.avg_pool2d(weight, side)
    return torch.cat([F.avg_pool2d(x, side), strong], 1)


def _weighed(a_BC: Tensor, b_BC: Tensor) -> Tensor:
    """L1 of colours along dimension 1 (luma, chroma, chroma, repeated); ``b`` is the target.

    Chroma counts more, and more again where the target is colourful: most patches of most pictures
    are nearly grey, and an unweighted median would be grey too.
    """
    scale = torch.tensor([1.0, CHROMA, CHROMA], device=a_BC.device)
    scale = scale.repeat(a_BC.shape[1] // 3).view(1, -1, *[1] * (a_BC.dim() - 2))
    colourful = 1 + 4 * b_BC[:, 1:3].norm(dim=1, keepdim=True)
    return ((a_BC - b_BC).abs() * scale * colourful).mean()


def colour_loss(made_B3HW: Tensor, given_B3HW: Tensor) -> Tensor:
    """Difference of the mean colours of blocks of 16×16 and of 8×8 pixels: what must not be blurred
    away or shifted, whatever becomes of the detail."""
    a, b = opponent(made_B3HW), opponent(given_B3HW)
    return _weighed(F.avg_pool2d(a, 16), F.avg_pool2d(b, 16)) + _weighed(
        F.avg_pool2d(a, 8), F.avg_pool2d(b, 8)
    )


def pixel_loss(made_B3HW: Tensor, given_B3HW: Tensor) -> Tensor:
    """L1 and twice the squared error."""
    error = made_B3HW - given_B3HW
    return error.abs().mean() + (error**2).mean() * 2


def feature_loss(made: Sequence[Tensor], given: Sequence[Tensor]) -> Tensor:
    """L1 of maps of a network, each in units of its own mean; summed over the first two of ``made``."""
    terms = [
        (a.float() - b.float()).abs().mean() / b.float().abs().mean().clamp_min(1e-3)
        for a, b in zip(made[:2], given, strict=False)
    ]
    return torch.stack(terms).sum()


def recognised_loss(trunk: Trunk, near: Sequence[Tensor], given: Sequence[Tensor]) -> Tensor:
    """How far the trunk is from seeing in a decoded picture what it sees in the given one: 1 - cosine of its
    last map, place by place, and of its pooled features, each a scalar; their sum.

    ``near`` and ``given`` are the four maps of either. Early maps make edges sharp; these make things be what
    they are.
    """
    local = 1 - F.cosine_similarity(near[3].float(), given[3].float(), dim=1).mean()
    with torch.no_grad():
        wanted = trunk.pooled(given[3])
    seen = trunk.pooled(near[3])
    return local + 1 - F.cosine_similarity(seen.float(), wanted.float(), dim=-1).mean()


def correlation_loss(q_BDhw: Tensor) -> Tensor:
    """Squared correlations between latent dimensions: those that say the same thing waste codes."""
    flat = q_BDhw.permute(0, 2, 3, 1).reshape(-1, q_BDhw.shape[1]).float()
    flat = (flat - flat.mean(0)) / flat.std(0).clamp_min(1e-3)
    correlation = flat.T @ flat / flat.shape[0] - torch.eye(flat.shape[1], device=flat.device)
    return (correlation**2).sum() / flat.shape[1]


class Heads(nn.Module):
    """The heads that only training needs: teacher features and captions from single codes."""

    def __init__(self, dim: int, wide: int = 512, joint: int = 256) -> None:
        super().__init__()
        self.code = nn.Sequential(nn.Linear(dim, wide), nn.SiLU(), nn.Linear(wide, wide), nn.SiLU())
        self.local = nn.Linear(wide, SCALES[3])
        self.pooled = nn.Linear(wide, POOLED)
        self.caption = nn.Linear(wide, joint)
        self.words = nn.EmbeddingBag(BUCKETS, joint, mode="mean", padding_idx=0)
        self.scale = nn.Parameter(torch.tensor(2.5))
        self.colour = nn.Linear(wide, 6)
        self.plain_colour = nn.Linear(3 * dim, 6)

    def losses(
        self,
        q_BDhw: Tensor,
        pixels_B3HW: Tensor,
        last_BChw: Tensor,
        pooled_BC: Tensor,
        words_BL: Tensor,
        captions_B: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(teacher loss, caption loss, colour loss), scalars, of the quantised vectors.

        ``last_BChw`` is the teacher's map at stride 32, ``pooled_BC`` its pooled features;
        words and captions are those of a `Batch`. The colour is what the patch of a code shows:
        its mean, and the mean of its colourful pixels.
        """
        f_BNE = self.code(q_BDhw.flatten(2).transpose(1, 2))
        grid = q_BDhw.shape[-2:]
        up = F.interpolate(last_BChw, size=grid, mode="bilinear", align_corners=False)
        meant = up.flatten(2).transpose(1, 2).float()
        local = 1 - F.cosine_similarity(self.local(f_BNE).float(), meant, dim=-1).mean()
        mean_BE = f_BNE.mean(1)
        pooled = (
            1 - F.cosine_similarity(self.pooled(mean_BE).float(), pooled_BC.float(), dim=-1).mean()
        )
        text = F.normalize(self.words(words_BL).float(), dim=-1)
        image = F.normalize(self.caption(mean_BE).float(), dim=-1)
        logits = image @ text.T * self.scale.clamp(max=4.6).exp()
        # Pictures that share a caption are no negatives of one another.
        same = captions_B[:, None] == captions_B[None, :]
        eye = torch.eye(len(captions_B), dtype=torch.bool, device=same.device)
        logits = logits.masked_fill(same & ~eye, float("-inf"))
        labels = torch.arange(len(captions_B), device=logits.device)
        contrast = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
        # Twice: by the network, and as a sum over digits, which is how a new reader begins to read
        # codes. Three powers span any function of one digit of four levels.
        q_BND = q_BDhw.flatten(2).transpose(1, 2)
        summed = self.plain_colour(torch.cat([q_BND, q_BND**2, q_BND**3], -1))
        target = patch_colours(pixels_B3HW, 16).flatten(2)
        colour = sum(
            _weighed(shown.float().transpose(1, 2), target)
            for shown in (self.colour(f_BNE), summed)
        )
        return local + pooled, contrast, torch.as_tensor(colour)
