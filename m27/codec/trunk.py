"""The image encoder's trunk: EfficientNet-Lite0 without its classifier, all scales returned.

Warm-started from ImageNet weights and kept frozen; it is both what the codec sees with and the
teacher that its codes must be able to predict. Source: Tan and Le, "EfficientNet" (2019), and the
Lite variants of the TensorFlow TPU repository (no squeeze-excite, ReLU6). Batch norms are folded
into the convolutions when the weights are loaded, so the module has plain convolutions with
biases only.

Shape suffixes: B batch, C channels, H/W pixels or cells.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# (repeats, kernel, stride, expansion, output channels) of each stage of the Lite0 network.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
# Channels of the maps that `Trunk.forward` returns, at strides 4, 8, 16 and 32, and of the pooled
# features.
SCALES = (24, 40, 112, 320)
POOLED = 1280


class SameConv(nn.Conv2d):
    """Convolution padded as TensorFlow's SAME does: the odd pixel goes to the right and bottom."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """``[B, C, H, W]`` → ``[B, C', ceil(H/stride), ceil(W/stride)]``."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride == 1:
            return F.conv2d(x_BCHW, self.weight, self.bias, 1, kernel // 2, 1, self.groups)
        h, w = x_BCHW.shape[-2:]
        pad_h = max((-(-h // stride) - 1) * stride + kernel - h, 0)
        pad_w = max((-(-w // stride) - 1) * stride + kernel - w, 0)
        x = F.pad(x_BCHW, (pad_w // 2, pad_w - pad_w // 2, pad_h // 2, pad_h - pad_h // 2))
        return F.conv2d(x, self.weight, self.bias, stride, 0, 1, self.groups)


class Block(nn.Module):
    """Inverted residual: expand, depthwise, project."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = c_in * expansion
        self.expand = SameConv(c_in, wide, 1) if expansion > 1 else None
        self.depthwise = SameConv(wide, wide, kernel, stride, groups=wide)
        self.project = SameConv(wide, c_out, 1)
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """``[B, C, H, W]`` → ``[B, C', H/stride, W/stride]``."""
        y = x_BCHW if self.expand is None else F.relu6(self.expand(x_BCHW))
        y = self.project(F.relu6(self.depthwise(y)))
        out: Tensor = x_BCHW + y if self.residual else y
        return out


class Trunk(nn.Module):
    """EfficientNet-Lite0 to its last pooled features."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv(3, 32, 3, 2)
        blocks, c_in = [], 32
        for repeats, kernel, stride, expansion, c_out in STAGES:
            for i in range(repeats):
                blocks.append(Block(c_in, c_out, kernel, stride if i == 0 else 1, expansion))
                c_in = c_out
        self.blocks = nn.ModuleList(blocks)
        self.head = SameConv(320, POOLED, 1)

    def forward(self, pixels_B3HW: Tensor, depth: int = 16) -> list[Tensor]:
        """Pixels in 0..1 → maps at strides 4, 8, 16, 32 (as far as the first ``depth`` blocks
        reach)."""
        x = F.relu6(self.stem((pixels_B3HW * 255 - 127) / 128))
        maps = []
        for i, block in enumerate(self.blocks[:depth]):
            x = block(x)
            if i in (2, 4, 10, 15):  # the last block at each stride
                maps.append(x)
        return maps

    def pooled(self, last_B320HW: Tensor) -> Tensor:
        """The map at stride 32 → the 1,280 features under ImageNet's classifier, ``[B, 1280]``."""
        return F.relu6(self.head(last_B320HW)).mean((2, 3))


def from_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published Lite0 state (names like ``_blocks.3._bn1.bias``) → this module's, norms
    folded in.

    Raises:
        KeyError: if a tensor is missing.
    """

    def fold(conv: str, norm: str) -> tuple[Tensor, Tensor]:
        scale = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + 1e-3)
        weight = state[f"{conv}.weight"] * scale[:, None, None, None]
        return weight, state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale

    out: dict[str, Tensor] = {}

    def put(name: str, conv: str, norm: str) -> None:
        out[f"{name}.weight"], out[f"{name}.bias"] = fold(conv, norm)

    put("stem", "_conv_stem", "_bn0")
    put("head", "_conv_head", "_bn1")
    for i in range(sum(s[0] for s in STAGES)):
        source = f"_blocks.{i}"
        if i > 0:
            put(f"blocks.{i}.expand", f"{source}._expand_conv", f"{source}._bn0")
        put(f"blocks.{i}.depthwise", f"{source}._depthwise_conv", f"{source}._bn1")
        put(f"blocks.{i}.project", f"{source}._project_conv", f"{source}._bn2")
    return out
