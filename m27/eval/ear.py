"""What a sound is like, as numbers: statistics of its log-mel bands and of Whisper's encoder.

Scoring compares sounds by these features, and trains its probes on them. They do not pass through
any codec of ours. Knows no model under test and no task.

Shapes: N sounds, F features, T samples at 16 kHz.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m27.data.progress import Progress
from m27.data.registry import cache_folder
from m27.data.sources.base import Item
from m27.eval import whisper
from m27.eval.teacher import remembered

Samples = NDArray[np.float32]
SECONDS = 3.0  # of a sound that are listened to
SIZE = 2 * 80 + 2 * 512


def listen(samples_T: Samples) -> NDArray[np.float32]:
    """Features [F] of a sound's first three seconds: mean and deviation over time of 80 log-mel
    bands, then of Whisper-base's encoder. Loudness is evened out first."""
    wave = np.asarray(samples_T, np.float32)[: int(SECONDS * whisper.RATE)]
    wave = np.pad(wave, (0, max(0, whisper.RATE // 2 - len(wave))))  # half a second at least
    wave = wave * np.float32(0.5 / max(1e-3, float(np.abs(wave).max())))
    bands, states = whisper.encoded(wave)
    rows = [bands.mean(1), bands.std(1), states.mean(0), states.std(0)]
    return np.concatenate(rows).astype(np.float32)


def listen_all(sounds: Sequence[Samples], label: str) -> Tensor:
    """Features (N, F) of sounds."""
    with Progress(f"{label}: listening", len(sounds)) as bar:
        rows = []
        for samples_T in sounds:
            rows.append(torch.from_numpy(listen(samples_T)))
            bar.add(1)
    return torch.stack(rows) if rows else torch.zeros(0, SIZE)


def listen_items(items: Sequence[Item], label: str) -> Tensor:
    """Features (N, F) of items' sounds; computed once, kept in the cache folder."""
    path = cache_folder() / f"eval-ear-{label}.safetensors"
    return remembered(path, items, lambda some: listen_all([_audio(item) for item in some], label))


def _audio(item: Item) -> Samples:
    if item.audio is None:
        raise ValueError(f"{item.key} has no sound")
    return item.audio


class Whitening:
    """Features (N, F) → unit vectors (N, E) in which all that varies among real sounds counts
    alike: standardised, projected on the first principal components, each scaled to one."""

    def __init__(self, features_NF: Tensor, size: int = 64) -> None:
        """Learned from `features_NF`, which must be of the training side."""
        x = features_NF.double()
        self._mean, self._scale = x.mean(0), x.std(0).clamp_min(1e-6)
        x = (x - self._mean) / self._scale
        _, spread, axes = torch.linalg.svd(x, full_matrices=False)
        size = min(size, len(spread))
        deviation = (spread[:size].square() / len(x)).sqrt()
        # Half of the mean is added, so that faint components do not drown the others.
        self._axes = axes[:size].T / (deviation + 0.5 * deviation.mean())

    def __call__(self, features_NF: Tensor) -> Tensor:
        """Unit vectors (N, E), float32."""
        x = ((features_NF.double() - self._mean) / self._scale) @ self._axes
        return torch.nn.functional.normalize(x, dim=-1).float()
