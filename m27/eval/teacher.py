"""The vision teacher: an ImageNet network's view of a picture, by which drawings and pictures are
compared.

It is the frozen EfficientNet-Lite0 trunk that the image codec looks through, down to the 1,280
pooled features under ImageNet's classifier. Features of pictures of data sets are kept in the cache
folder by the content they were computed from, as decoding the pictures costs most of the time.

Shapes: N pictures, F 1,280 features, E dimensions of another space.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from m27.data.messages import picture
from m27.data.progress import Progress
from m27.data.registry import cache_folder
from m27.data.sources.base import Item
from m27.language.codecs import ImageCodec

Pixels = npt.NDArray[np.uint8]
BATCH = 16
KEPT = 512  # pictures after which the file of features is written


class Teacher:
    """Pictures → features, float32 on the CPU. Raises ValueError for a codec without a trunk."""

    def __init__(self, codec: ImageCodec | None) -> None:
        trunk = getattr(codec, "trunk", None)
        if codec is None or trunk is None:
            raise ValueError("the image codec has no trunk to compare pictures with")
        self.codec, self._trunk = codec, trunk
        self._device = next(trunk.parameters()).device

    @torch.inference_mode()
    def features(self, pictures: Sequence[Pixels]) -> Tensor:
        """Pictures uint8 [H, W, 3] of one size → features (N, F)."""
        rows = [self._look(_pixels(some, self._device)) for some in _runs(pictures)]
        return torch.cat(rows) if rows else torch.zeros(0, 1280)

    @torch.inference_mode()
    def reconstructed(self, pictures: Sequence[Pixels]) -> list[Pixels]:
        """The same pictures after the codec: what a perfect drawing of each would look like."""
        made: list[Pixels] = []
        for some in _runs(pictures):
            again = self.codec.decode(self.codec.encode(_pixels(some, self._device)))
            made += list((again * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy())
        return made

    def of_items(self, items: Sequence[Item], label: str, coded: bool = False) -> Tensor:
        """Features (N, F) of the pictures of items, as training shows them; `coded`: after the
        codec.

        Computed once: the file `eval-<label>-….safetensors` in the cache folder keeps them.
        """
        revision = self._revision(coded)
        path = cache_folder() / f"eval-{label}-{revision}.safetensors"
        with Progress(f"{label}: looking at pictures", len(items)) as bar:
            return remembered(path, items, lambda some: self._of_items(some, coded, bar.add))

    def _of_items(self, items: Sequence[Item], coded: bool, seen: Callable[[int], None]) -> Tensor:
        rows = []
        for some in _runs(items):
            pictures = [picture(item)["image"] for item in some]
            rows.append(self.features(self.reconstructed(pictures) if coded else pictures))
            seen(len(some))
        return torch.cat(rows)

    def _look(self, pixels_B3HW: Tensor) -> Tensor:
        features: Tensor = self._trunk.pooled(self._trunk(pixels_B3HW)[-1])
        return features.float().cpu()

    def _revision(self, coded: bool) -> str:
        """12 hex digits that change with the weights that the features depend on."""
        network: Any = self.codec if coded else self._trunk
        digest = hashlib.sha256()
        for name, tensor in sorted(network.state_dict().items()):
            digest.update(name.encode() + tensor.detach().cpu().float().numpy().tobytes())
        return digest.hexdigest()[:12]


def remembered(
    path: Path, items: Sequence[Item], compute: Callable[[Sequence[Item]], Tensor]
) -> Tensor:
    """Rows of `items` from the file at `path`, what is missing computed and added (float16)."""
    known = load_file(path) if path.is_file() else {}
    keys = [hashlib.sha256(f"{i.key}\0{i.content_hash}".encode()).hexdigest()[:16] for i in items]
    absent = [k for k, key in enumerate(keys) if key not in known]
    for start in range(0, len(absent), KEPT):  # what is done is not lost where a run is stopped
        some = absent[start : start + KEPT]
        computed = compute([items[k] for k in some]).half()
        known |= {keys[k]: row.clone() for k, row in zip(some, computed, strict=True)}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.tmp")
        save_file(known, partial)
        os.replace(partial, path)
    return torch.stack([known[key] for key in keys]).float() if keys else torch.zeros(0, 1280)


def means(features_NF: Tensor, names: Sequence[str]) -> tuple[list[str], Tensor]:
    """The distinct names, sorted, and the mean of each one's features."""
    where: dict[str, list[int]] = {}
    for k, name in enumerate(names):
        where.setdefault(name, []).append(k)
    order = sorted(where)
    return order, torch.stack([features_NF[where[name]].mean(0) for name in order])


def unit(features_NF: Tensor, middle_F: Tensor) -> Tensor:
    """Unit vectors of features about their `middle_F`: all pictures share most of theirs."""
    return torch.nn.functional.normalize(features_NF - middle_F, dim=-1)


class Ridge:
    """Least squares with a penalty on the weights, from standardised features (N, F) to (N, E)."""

    def __init__(self, features_NF: Tensor, targets_NE: Tensor, penalty: float) -> None:
        """`penalty` is a share of N: 1.0 shrinks a feature of unit variance by a half."""
        x, y = features_NF.double(), targets_NE.double()
        self._mean, self._scale = x.mean(0), x.std(0).clamp_min(1e-6)
        self._offset = y.mean(0)
        x = (x - self._mean) / self._scale
        gram = x.T @ x + penalty * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
        self._weights = torch.linalg.solve(gram, x.T @ (y - self._offset))

    def __call__(self, features_NF: Tensor) -> Tensor:
        """Features (N, F) → predictions (N, E), float32."""
        x = (features_NF.double() - self._mean) / self._scale
        return (x @ self._weights + self._offset).float()


def _pixels(pictures: Sequence[Pixels], device: torch.device) -> Tensor:
    stacked = torch.from_numpy(np.stack(list(pictures))).to(device)
    return stacked.permute(0, 3, 1, 2).float() / 255


def _runs(things: Iterable[Any]) -> Iterable[list[Any]]:
    """At most `BATCH` things at a time."""
    every = list(things)
    return (every[start : start + BATCH] for start in range(0, len(every), BATCH))
