"""Weights ↔ a small safetensors file: large matrices as int8 with a scale a row, the rest as
float16.

It knows no module, only named tensors.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_SCALE = "::scale"
_LARGE = 4096  # elements from which a matrix goes to int8


class CodecError(ValueError):
    """Codes, media or a file that a codec cannot take; the message names the shape or the file."""


def pack(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Named float tensors → what is stored. Packing what ``unpack`` gave changes nothing."""
    packed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        value = tensor.detach().float().cpu().contiguous()
        if value.ndim >= 2 and value.numel() >= _LARGE and value[0].numel() >= 16:
            rows = value.flatten(1)
            scale = (rows.abs().amax(1).clamp_min(1e-6) / 127).half()
            packed[name + _SCALE] = scale
            steps = (rows / scale.float().clamp_min(1e-7)[:, None]).round().clamp(-127, 127)
            packed[name] = steps.to(torch.int8).reshape(value.shape)
        else:
            packed[name] = value.half() if float(value.abs().max()) < 6e4 else value
    return packed


def unpack(packed: dict[str, Tensor]) -> dict[str, Tensor]:
    """What is stored → named float32 tensors."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in packed.items():
        if name.endswith(_SCALE):
            continue
        value = tensor.float()
        if tensor.dtype == torch.int8:
            scale = packed[name + _SCALE].float()
            value = value * scale.reshape(-1, *[1] * (value.ndim - 1))
        tensors[name] = value
    return tensors


def revision(packed: dict[str, Tensor]) -> str:
    """First 12 hex digits of the SHA-256 over names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(packed):
        tensor = packed[name]
        digest.update(f"{name}|{tensor.dtype}|{list(tensor.shape)}|".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def write(path: Path, packed: dict[str, Tensor], metadata: dict[str, str]) -> Path:
    """Write a safetensors file beside its final name, then move it there; folders are made.

    Raises:
        CodecError: if the disk or the folder does not take it.
    """
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(packed, str(partial), metadata=metadata)
        os.chmod(partial, 0o644)  # safetensors makes it private; weights are to be shared
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise CodecError(f"{path}: cannot be written ({error})") from None
    return path


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file → tensors and metadata.

    Raises:
        CodecError: if it is not there or not a safetensors file.
    """
    if not path.is_file():
        raise CodecError(f"{path}: no such file")
    try:
        with safe_open(str(path), "pt") as file:
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
            return tensors, dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise CodecError(f"{path}: not a readable safetensors file ({error})") from None
