"""Files of tensors and of JSON: written whole or not at all, read a tensor at a time.

Blocks (`gguf.Blocks`) are three tensors of a file: `NAME.q`, `NAME.scale` and, where they have one,
`NAME.minimum`. What the tensors make up is not known here.
"""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from m27.model.gguf import BLOCK, Blocks

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written; the message names the file and the tensor or field."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file under a temporary name, then put it in place.

    Equal content gives equal bytes. Raises `CheckpointError` naming `path` where the disk or the folder
    does not take it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(whole, temporary, metadata=dict(metadata))
        _sort_metadata(temporary)
        os.chmod(temporary, 0o644)  # safetensors makes it private; a checkpoint is to be shared
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise CheckpointError(f"{path}: cannot be written ({error})") from None


def _sort_metadata(path: Path) -> None:
    """Put a file's metadata in order: safetensors writes them in one that is drawn anew each time."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        ordered = {"__metadata__": dict(sorted(header.pop("__metadata__", {}).items())), **header}
        text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:  # always, as long as safetensors writes no shorter JSON than ours
            file.seek(8)
            file.write(text.ljust(size))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file as `write_tensors` does. Raises `CheckpointError`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise CheckpointError(f"{path}: cannot be written ({error.strerror})") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises `CheckpointError` naming the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return value


def flatten_blocks(tensors: Mapping[str, Tensor | Blocks]) -> dict[str, Tensor]:
    """Tensors as a file holds them; `TensorFile` puts the blocks together again."""
    flat: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if isinstance(value, Blocks):
            flat[f"{name}.q"], flat[f"{name}.scale"] = value.q, value.scale
            if value.minimum is not None:
                flat[f"{name}.minimum"] = value.minimum
        else:
            flat[name] = value
    return flat


@dataclass(frozen=True)
class _Entry:
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int  # in bytes from the beginning of the file


class TensorFile(Mapping[str, Tensor | Blocks]):
    """The tensors and blocks of a safetensors file, each read when it is asked for, into memory of its own.

    Read, not mapped: who asks for one matrix after another has one of them in memory, and the resident
    set does not grow by the file. The file is held open, so that one which is put in its place
    meanwhile is not mixed in. Not for several threads at once. Raises `CheckpointError` for a file
    that is not whole, and for blocks without scales that fit them.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            self._file = self.path.open("rb", buffering=0)
            weakref.finalize(self, self._file.close)
            with safe_open(self.path, framework="pt"):
                pass  # it is whole, and what its header says of places is true
            size = int.from_bytes(self._file.read(8), "little")
            header = json.loads(self._file.read(size))
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointError(f"{self.path}: not readable as safetensors ({error})") from None
        self.metadata: dict[str, str] = header.pop("__metadata__", {})
        self._entries = {name: self._entry(name, about, 8 + size) for name, about in header.items()}
        stems = [name.removesuffix(".q") for name in self._entries if name.endswith(".q")]
        self._blocks = {stem: self._minimum(stem) for stem in stems}
        parts = {f"{stem}.{part}" for stem in stems for part in ("q", "scale", "minimum")}
        self._plain = {name for name in self._entries if name not in parts}

    def __getitem__(self, name: str) -> Tensor | Blocks:
        if name not in self._blocks:
            if name not in self._plain:
                raise KeyError(name)
            return self._read(name)
        minimum = self._blocks[name]
        q, scale = self._read(f"{name}.q"), self._read(f"{name}.scale")
        return Blocks(q, scale, None if minimum is None else self._read(minimum))

    def __contains__(self, name: object) -> bool:
        return name in self._blocks or name in self._plain

    def __iter__(self) -> Iterator[str]:
        yield from sorted(self._plain)
        yield from self._blocks

    def __len__(self) -> int:
        return len(self._plain) + len(self._blocks)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, or of what blocks stand for, without reading it."""
        if name not in self._blocks:
            return self._entries[name].shape
        q = self._entries[f"{name}.q"]
        rows, columns = q.shape
        return rows, columns * (2 if q.dtype == torch.uint8 else 1)

    def _entry(self, name: str, about: Mapping[str, Any], start: int) -> _Entry:
        if about["dtype"] not in _DTYPES:
            raise CheckpointError(f"{self.path}: {name} is of an unknown type {about['dtype']}")
        return _Entry(
            _DTYPES[about["dtype"]], tuple(about["shape"]), start + about["data_offsets"][0]
        )

    def _minimum(self, stem: str) -> str | None:
        """The name of a block matrix's minimum, or None; it has been seen that its parts fit."""
        q, scale = self._entries[f"{stem}.q"], self._entries.get(f"{stem}.scale")
        minimum = self._entries.get(f"{stem}.minimum")
        if scale is None:
            raise CheckpointError(f"{self.path}: {stem} has blocks but no scales")
        four = q.dtype == torch.uint8
        width = BLOCK // 2 if four else BLOCK
        fits = len(q.shape) == 2 and q.dtype in (torch.uint8, torch.int8)
        fits = fits and (q.shape[0], q.shape[1] / width) == scale.shape
        if not fits or (minimum is not None and minimum.shape != scale.shape):
            raise CheckpointError(f"{self.path}: the scales of {stem} do not fit its blocks")
        return None if minimum is None else f"{stem}.minimum"

    def _read(self, name: str) -> Tensor:
        entry = self._entries[name]
        out = torch.empty(prod(entry.shape), dtype=entry.dtype)
        left = out.view(torch.uint8).numpy().data
        self._file.seek(entry.begin)
        while left:
            count = self._file.readinto(left)
            if not count:
                raise CheckpointError(f"{self.path}: the file ends within {name}")
            left = left[count:]
        return out.view(entry.shape)
