"""The adversary of the image decoder: a critic that tells patches of pictures from decoded ones.

A small PatchGAN with spectral norms that also sees the frozen trunk's maps at strides 4 and 8,
which are computed for the perceptual loss anyway and let a small critic learn in few steps.
Sources: Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks" (2017);
Sauer et al., "Projected GANs Converge Faster" (2021), for the frozen features; Tseng et al.,
"Regularizing Generative Adversarial Networks under Limited Data" (2021), for LeCam; Esser et al.,
"Taming Transformers" (2021), for the weight by the ratio of gradients.

Shape suffixes: B batch, C channels, H/W pixels, h/w patches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from m27.codec.trunk import SCALES


class Critic(nn.Module):
    """Pixels and the trunk's first two maps → a score a patch of 8×8 pixels, higher is more real.

    ``given`` and ``made`` are running means of the scores of either kind, which LeCam needs.
    """

    given: Tensor
    made: Tensor

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.at2 = spectral_norm(nn.Conv2d(3, width, 4, 2, 1))
        self.at4 = spectral_norm(nn.Conv2d(width, width * 2, 4, 2, 1))
        self.at8 = spectral_norm(nn.Conv2d(width * 2 + SCALES[0], width * 4, 4, 2, 1))
        self.out = spectral_norm(nn.Conv2d(width * 4 + SCALES[1], 1, 3, 1, 1))
        self.register_buffer("given", torch.zeros(()))
        self.register_buffer("made", torch.zeros(()))

    def forward(self, pixels_B3HW: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """Pixels in 0..1 and their maps, each in units of its usual size → ``[B, 1, h, w]``."""
        x = F.leaky_relu(self.at2(pixels_B3HW * 2 - 1), 0.2)
        x = F.leaky_relu(self.at4(x), 0.2)
        x = F.leaky_relu(self.at8(torch.cat([x, maps[0]], 1)), 0.2)
        out: Tensor = self.out(torch.cat([x, maps[1]], 1)).float()
        return out

    def loss(self, given_Bhw: Tensor, made_Bhw: Tensor, lecam: float) -> Tensor:
        """Hinge loss of the scores of real and of decoded patches, with LeCam's anchor; moves the
        running means."""
        hinge = F.relu(1 - given_Bhw).mean() + F.relu(1 + made_Bhw).mean()
        with torch.no_grad():
            self.given.lerp_(given_Bhw.mean(), 0.02)
            self.made.lerp_(made_Bhw.mean(), 0.02)
        anchor = F.relu(given_Bhw - self.made).square().mean()
        anchor = anchor + F.relu(self.given - made_Bhw).square().mean()
        return hinge + lecam * anchor


def in_units(maps: Sequence[Tensor], of: Sequence[Tensor]) -> list[Tensor]:
    """The first two ``maps``, each divided by the mean size of the same one in ``of``."""
    pairs = list(zip(maps, of, strict=False))[:2]
    return [a / b.detach().abs().mean().clamp_min(1e-3) for a, b in pairs]


def balanced(fidelity: Tensor, adversarial: Tensor, share: float) -> Tensor:
    """Two gradients of the same pixels → their sum, the second scaled to ``share`` of the first's
    length, whatever its own is. No host waits for it."""
    ratio = fidelity.norm() / adversarial.norm().clamp_min(1e-8)
    return fidelity + share * ratio * adversarial
