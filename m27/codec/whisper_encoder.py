"""Whisper's audio encoder, whole (the teacher) or its first blocks (the codec's ear), and its
weights' file.

It knows no codes. Weights come as CTranslate2 files, read here by ``read_ctranslate2``.

Shape suffixes: B batch, T samples, F frames (50 a second), D width, M mel bands.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

_DTYPES = {0: "<f4", 1: "i1", 2: "<i2", 3: "<i4", 4: "<f2"}


class CTranslate2Error(ValueError):
    """A file is not a CTranslate2 model that this reader understands."""


def read_ctranslate2(parts: Sequence[Path]) -> dict[str, NDArray[np.float32]]:
    """Read a CTranslate2 ``model.bin`` given whole or in consecutive parts → arrays by variable
    name, float32.

    int8 and int16 weights are divided by the scale stored beside them (``…_scale``). Layout
    (version 6, little endian): version, spec name, revision, count, then per variable name,
    rank, dims, type id, bytes.

    Raises:
        CTranslate2Error: on another version, an unknown type or a truncated file.
    """
    data = b"".join(path.read_bytes() for path in parts)
    where = 0

    def take(form: str) -> int:
        nonlocal where
        (value,) = struct.unpack_from("<" + form, data, where)
        where += struct.calcsize("<" + form)
        return int(value)

    def text() -> str:
        nonlocal where
        size = take("H")
        raw = data[where : where + size]
        where += size
        return raw.rstrip(b"\0").decode()

    arrays: dict[str, NDArray[np.float32]] = {}
    try:
        version = take("I")
        if version != 6:
            raise CTranslate2Error(f"{parts[0]}: CTranslate2 format {version}, expected 6")
        text()
        take("I")
        for _ in range(take("I")):
            name = text()
            shape = [take("I") for _ in range(take("B"))]
            kind, size = take("B"), take("I")
            if kind not in _DTYPES:
                raise CTranslate2Error(f"{parts[0]}: {name} has the unknown type id {kind}")
            raw = np.frombuffer(data, _DTYPES[kind], size // int(_DTYPES[kind][-1]), where)
            where += size
            arrays[name] = raw.reshape(shape).astype(np.float32)
    except (struct.error, ValueError) as error:
        if isinstance(error, CTranslate2Error):
            raise
        raise CTranslate2Error(f"{parts[0]}: truncated or not a CTranslate2 model") from error
    for name in [n for n in arrays if n.endswith("_scale")]:
        weight = arrays[name.removesuffix("_scale")]
        weight /= arrays[name].reshape(-1, *[1] * (weight.ndim - 1))
    return arrays


class Block(nn.Module):
    """Pre-norm transformer block: attention over all frames, then a GELU layer of four times the width."""

    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.attention_norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.ffn_norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, 4 * dim)
        self.down = nn.Linear(4 * dim, dim)

    def forward(self, x_BFD: Tensor) -> Tensor:
        """Frames ``[B, F, D]`` → the same shape."""
        q, k, v = self.qkv(self.attention_norm(x_BFD)).chunk(3, -1)
        q, k, v = (t.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for t in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
        x_BFD = x_BFD + self.out(mixed)
        return x_BFD + self.down(F.gelu(self.up(self.ffn_norm(x_BFD))))


class WhisperEncoder(nn.Module):
    """The first ``n_blocks`` blocks of a Whisper encoder; with ``final_norm`` its closing norm as well.

    Source: Radford et al. (2022). Position embeddings are cut to the length that comes.
    """

    def __init__(
        self,
        n_blocks: int = 6,
        dim: int = 512,
        n_heads: int = 8,
        max_frames: int = 1500,
        final_norm: bool = False,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(80, dim, 3, padding=1)
        self.conv2 = nn.Conv1d(dim, dim, 3, stride=2, padding=1)
        self.positions = nn.Parameter(torch.zeros(max_frames, dim))
        self.blocks = nn.ModuleList(Block(dim, n_heads) for _ in range(n_blocks))
        self.norm = nn.LayerNorm(dim) if final_norm else nn.Identity()

    def forward(self, log_mel_BMF: Tensor, taps: Sequence[int] = ()) -> list[Tensor]:
        """Log-mel ``[B, 80, 2F]`` → hidden states ``[B, F, D]`` after each block numbered in
        ``taps``, then the last."""
        x = F.gelu(self.conv2(F.gelu(self.conv1(log_mel_BMF)))).transpose(1, 2)
        x = x + self.positions[: x.shape[1]]
        states = []
        for number, block in enumerate(self.blocks, 1):
            x = block(x)
            if number in taps:
                states.append(x)
        return [*states, self.norm(x)]

    @torch.no_grad()
    def load_ctranslate2(self, arrays: dict[str, NDArray[np.float32]]) -> None:
        """Copy the encoder's weights from ``read_ctranslate2`` of a Whisper model of the same width.

        Raises:
            KeyError, RuntimeError: if a weight is missing or of another shape.
        """

        def put(parameter: Tensor, name: str) -> None:
            parameter.copy_(torch.from_numpy(arrays[f"encoder/{name}"]))

        for conv in ("conv1", "conv2"):
            put(getattr(self, conv).weight, f"{conv}/weight")
            put(getattr(self, conv).bias, f"{conv}/bias")
        positions = torch.from_numpy(arrays["encoder/position_encodings/encodings"])
        self.positions.copy_(positions[: self.positions.shape[0]])
        names = {
            "attention_norm": "self_attention/layer_norm",
            "qkv": "self_attention/linear_0",
            "out": "self_attention/linear_1",
            "ffn_norm": "ffn/layer_norm",
            "up": "ffn/linear_0",
            "down": "ffn/linear_1",
        }
        for number, block in enumerate(self.blocks):
            for ours, theirs in names.items():
                norm = ours.endswith("norm")
                module = getattr(block, ours)
                put(module.weight, f"layer_{number}/{theirs}/{'gamma' if norm else 'weight'}")
                put(module.bias, f"layer_{number}/{theirs}/{'beta' if norm else 'bias'}")
        if isinstance(self.norm, nn.LayerNorm):
            put(self.norm.weight, "layer_norm/gamma")
            put(self.norm.bias, "layer_norm/beta")
