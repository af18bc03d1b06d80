"""What an image codec keeps: fidelity by kind of picture, use of the codebook, and what its codes
know.

Everything is measured on held-out pictures. The probes are ridge regressions on CIFAR-10: on the
frozen codes (each code as its one-hot digits, so nothing but the codes is read) and, as the thing
to beat, on raw pixels.

Shape suffixes: B batch, H/W pixels, h/w code grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from m27.codec.image import ImageCodec
from m27.train.lpips import LPIPS


def to_pixels(rgb_BHW3: NDArray[np.uint8]) -> Tensor:
    """uint8 ``[B, H, W, 3]`` → float ``[B, 3, H, W]`` in 0..1."""
    return torch.from_numpy(rgb_BHW3).permute(0, 3, 1, 2).float() / 255


def psnr(a_B3HW: Tensor, b_B3HW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each pair, in dB, ``[B]``."""
    return -10 * torch.log10(((a_B3HW - b_B3HW) ** 2).mean((1, 2, 3)).clamp_min(1e-10))


def ssim(a_B3HW: Tensor, b_B3HW: Tensor) -> Tensor:
    """Structural similarity of each pair on luma, 11×11 Gaussian window of σ 1.5, ``[B]``.

    Source: Wang et al., "Image Quality Assessment" (2004).
    """
    luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    a, b = (a_B3HW * luma).sum(1, keepdim=True), (b_B3HW * luma).sum(1, keepdim=True)
    x = torch.arange(11.0) - 5
    g = torch.exp(-(x**2) / (2 * 1.5**2))
    window = (g[:, None] * g[None, :] / (g.sum() ** 2)).view(1, 1, 11, 11)

    def blur(v: Tensor) -> Tensor:
        return F.conv2d(v, window)

    ma, mb = blur(a), blur(b)
    va, vb, ab = blur(a * a) - ma**2, blur(b * b) - mb**2, blur(a * b) - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    value = (2 * ma * mb + c1) * (2 * ab + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    return value.mean((1, 2, 3))


def encode_all(codec: ImageCodec, rgb_BHW3: NDArray[np.uint8], batch: int = 50) -> Tensor:
    """Codes ``[B, h, w]`` of pictures of one size; small ones are enlarged to 128×128 first."""
    out = []
    for i in range(0, len(rgb_BHW3), batch):
        out.append(codec.encode(_enlarge(to_pixels(rgb_BHW3[i : i + batch]))))
    return torch.cat(out)


def fidelity(
    codec: ImageCodec, kinds: dict[str, NDArray[np.uint8]], lpips: LPIPS | None
) -> list[dict[str, Any]]:
    """One row a kind: number of pictures, means of PSNR (dB), SSIM and LPIPS-VGG (None without
    it), and their 95 % intervals."""
    rows = []
    for kind, rgb in kinds.items():
        scores: dict[str, list[Tensor]] = {"psnr": [], "ssim": [], "lpips": []}
        for i in range(0, len(rgb), 20):
            x = _enlarge(to_pixels(rgb[i : i + 20]))
            y = codec.decode(codec.encode(x))
            scores["psnr"].append(psnr(x, y))
            scores["ssim"].append(ssim(x, y))
            if lpips is not None:
                scores["lpips"].append(lpips(x, y))
        row: dict[str, Any] = {"kind": kind, "n": len(rgb)}
        each = {k: torch.cat(v).tolist() for k, v in scores.items() if v}
        row |= {k: mean_interval(each[k])[0] if k in each else None for k in scores}
        row["interval"] = {k: mean_interval(v)[1:] for k, v in each.items()}
        rows.append(row)
    return rows


def use(codes: Tensor, size: int) -> dict[str, float]:
    """How much of a codebook is in use: share of codes seen, and perplexity (2 to the entropy in
    bits)."""
    counts = torch.bincount(codes.flatten(), minlength=size).float()
    p = counts[counts > 0] / counts.sum()
    return {
        "codes": float(codes.numel()),
        "used": float((counts > 0).float().mean()),
        "perplexity": float(2 ** (-(p * p.log2()).sum())),
    }


def code_features(codec: ImageCodec, codes_Bhw: Tensor) -> Tensor:
    """Codes → one-hot digits at every position and their mean over the picture, ``[B, F]``."""
    top = max(codec.levels)
    onehot = F.one_hot(codec.fsq.digits(codes_Bhw), top).float().flatten(3)
    return torch.cat([onehot.flatten(1), onehot.mean((1, 2)) * math.sqrt(codes_Bhw[0].numel())], 1)


def pooled_digits(codec: ImageCodec, codes_Bhw: Tensor) -> Tensor:
    """Codes → how often each digit has each value in a picture, ``[B, D · levels]``: what a sum over
    single codes can say, with no regard to where they are."""
    top = max(codec.levels)
    return F.one_hot(codec.fsq.digits(codes_Bhw), top).float().mean((1, 2)).flatten(1)


def mean_interval(values: Sequence[float]) -> list[float]:
    """Mean and its 95 % interval by the normal approximation, ``[mean, low, high]``."""
    x = np.asarray(values, dtype=np.float64)
    half = 1.96 * x.std(ddof=1) / math.sqrt(len(x)) if len(x) > 1 else math.inf
    return [round(float(v), 4) for v in (x.mean(), x.mean() - half, x.mean() + half)]


def probe(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], ridges: Sequence[float]
) -> float:
    """Accuracy on ``test`` of a ridge classifier fitted on ``train`` (features ``[B, F]``, labels
    ``[B]`` from 0 on).

    The ridge is chosen on the last fifth of ``train``, never on ``test``.
    """
    classes = int(torch.cat([train[1], test[1]]).max()) + 1

    def fit(x: Tensor, y: Tensor, ridge: float) -> tuple[Tensor, Tensor, Tensor]:
        mean = x.mean(0)
        target = F.one_hot(y, classes).float()
        centred = x - mean
        gram = centred.T @ centred + ridge * torch.eye(x.shape[1])
        return torch.linalg.solve(gram, centred.T @ (target - target.mean(0))), mean, target.mean(0)

    def accuracy(model: tuple[Tensor, Tensor, Tensor], x: Tensor, y: Tensor) -> float:
        weight, mean, bias = model
        return float((((x - mean) @ weight + bias).argmax(-1) == y).float().mean())

    x, y = train
    cut = len(x) * 4 // 5
    best = max(ridges, key=lambda r: accuracy(fit(x[:cut], y[:cut], r), x[cut:], y[cut:]))
    return accuracy(fit(x, y, best), *test)


def _enlarge(pixels_B3HW: Tensor, size: int = 128) -> Tensor:
    if pixels_B3HW.shape[-1] >= size:
        return pixels_B3HW
    return F.interpolate(pixels_B3HW, (size, size), mode="bicubic", align_corners=False).clamp(0, 1)
