"""The shipped layout: a quantised base, kept once, and the trained part beside it.

    config.json          stock, with the longer vocabulary
    base.safetensors     the base model as published: `NAME.q`, `NAME.scale`, `NAME.minimum` for a matrix
                         of quantised blocks (see `gguf.Blocks`), `NAME` for any other tensor
    trained.safetensors  `NAME.lora_A` [r, C] and `NAME.lora_B` [R, r] without the `.weight` of NAME,
                         in blocks of 8 bits (`NAME.lora_A.q` and `.scale`) or in bfloat16, each as it
                         was written; `control.weight` [controls, D], `image_map.*` and `audio_map.*`
                         (`CodeMap`); any other tensor takes the place of the base's of that name.
                         Metadata: `alpha`, `rank`, `image_levels`, `audio_levels`
    m27.json             `"format": "m27-packed-1"` and what other rooms keep there

A later release of weights replaces trained.safetensors only. Reading gives the plain decoder's
tensors, merged. This module knows the order text, control, image, audio of the ids, not what they
mean.

Shapes: R rows, C columns, r rank, D width.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from m27.model.code_map import CodeMap
from m27.model.config import Config
from m27.model.files import (
    CheckpointError,
    TensorFile,
    flatten_blocks,
    read_json,
    write_json,
    write_tensors,
)
from m27.model.gguf import BLOCK, Blocks
from m27.model.rounding import settle_int8

__all__ = [
    "CheckpointError",
    "PackedState",
    "is_packed",
    "open_packed",
    "read_base",
    "read_json",
    "read_packed",
    "read_trained",
    "save_packed",
    "write_json",
]

FORMAT = "m27-packed-1"
MEDIA = ("image", "audio")
STORED = ("int8", "bfloat16")
_EMBEDDING = "model.embed_tokens.weight"


def save_packed(
    directory: Path | str,
    *,
    config: Config,
    trained: Mapping[str, Tensor],
    alpha: float,
    rank: int,
    image_levels: Sequence[int],
    audio_levels: Sequence[int],
    base: Mapping[str, Tensor | Blocks] | None = None,
    extra: Mapping[str, Any] | None = None,
    stored: str = "int8",
) -> None:
    """Write the shipped layout.

    `stored` is what the adapters' factors are written in: "int8" (blocks of 8 bits, at half the size of
    bfloat16; less than 1 % of their product is lost) where their columns are whole groups of 32, else
    and where it is "bfloat16" in bfloat16, as everything else of `trained` is. What was read from such
    a file is written again bit by bit.
    `base` (what `GGUF.tensors` gives) is written once; leave it out to keep the file that is there.
    `extra` is put into m27.json beside what it already holds. Files of other rooms are left alone.
    Raises `CheckpointError` when there is no base and for factors that are not finite; whether base
    and trained part make up a model of `config` is seen by `read_packed`.
    """
    if stored not in STORED:
        raise CheckpointError(f"stored: {stored!r} is none of {', '.join(STORED)}")
    directory = Path(directory)
    narrow = flatten_blocks(
        {name: _narrow(name, tensor, stored) for name, tensor in trained.items()}
    )
    directory.mkdir(parents=True, exist_ok=True)
    if base is not None:
        write_tensors(directory / "base.safetensors", flatten_blocks(base), {"format": FORMAT})
    elif not (directory / "base.safetensors").is_file():
        raise CheckpointError(f"{directory / 'base.safetensors'}: no such file, and no base given")
    metadata = {
        "format": FORMAT,
        "alpha": repr(float(alpha)),
        "rank": str(rank),
        "image_levels": json.dumps(list(image_levels)),
        "audio_levels": json.dumps(list(audio_levels)),
    }
    write_tensors(directory / "trained.safetensors", narrow, metadata)
    write_json(directory / "config.json", config.to_hf() | {"torch_dtype": "bfloat16"})
    header = directory / "m27.json"
    held = read_json(header) if header.is_file() else {}
    write_json(header, held | dict(extra or {}) | {"format": FORMAT})


def _narrow(name: str, tensor: Tensor, stored: str) -> Tensor | Blocks:
    factor = tensor.ndim == 2 and name.endswith((".lora_A", ".lora_B"))
    if stored == "int8" and factor and tensor.shape[1] % BLOCK == 0:
        try:
            return settle_int8(tensor.detach().cpu())
        except ValueError as error:
            raise CheckpointError(f"{name} {error}") from None
    return tensor.to(torch.bfloat16)


def is_packed(directory: Path) -> bool:
    """Whether a folder holds the shipped layout. Raises `CheckpointError` for an unknown format."""
    header = directory / "m27.json"
    if not header.is_file():
        return False
    found = read_json(header).get("format")
    if found not in (None, FORMAT):
        raise CheckpointError(f"{header}: format {found!r} is not known, only {FORMAT!r}")
    return found == FORMAT


def read_base(directory: Path | str) -> dict[str, Tensor | Blocks]:
    """The base as it is stored, under Hugging Face names. Raises `CheckpointError`."""
    return dict(TensorFile(Path(directory) / "base.safetensors"))


def read_trained(directory: Path | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The trained part of a shipped folder, in float32, and its metadata. Raises `CheckpointError`."""
    file = TensorFile(Path(directory) / "trained.safetensors")
    return {name: _whole(value) for name, value in file.items()}, file.metadata


def open_packed(directory: Path | str) -> tuple[Config, PackedState]:
    """The configuration and the merged tensors of a shipped folder, each made when it is asked for.

    Raises `CheckpointError` for a missing or broken file, an adapter without a matrix, and what has no
    place in the base; whether the rows add up to the vocabulary is seen when they are asked for.
    """
    directory = Path(directory)
    config = Config.from_hf(read_json(directory / "config.json"))
    if not config.tied:
        raise CheckpointError(f"{directory / 'config.json'}: the packed layout has tied embeddings")
    trained = TensorFile(directory / "trained.safetensors")
    return config, PackedState(config, TensorFile(directory / "base.safetensors"), trained)


def read_packed(directory: Path | str) -> tuple[Config, dict[str, Tensor]]:
    """The configuration and the merged float32 tensors of a shipped folder.

    Raises `CheckpointError` for a missing or broken file, an adapter without a matrix, or rows that
    do not add up to the vocabulary.
    """
    config, state = open_packed(directory)
    return config, dict(state)


class PackedState(Mapping[str, Tensor]):
    """Base and trained part, merged: float32 tensors by name, each made anew when it is asked for.

    So one matrix at a time is in memory in float32. Raises `CheckpointError`, see `open_packed`.
    """

    def __init__(self, config: Config, base: TensorFile, trained: TensorFile) -> None:
        self._config, self._base, self._path = config, base, trained.path
        self._about = trained.metadata
        self._trained = dict(trained)  # as it is stored: small, and other runs may write this file
        rest = set(self._trained)
        self._adapted: dict[str, str] = {}
        for name in [name for name in self._trained if name.endswith(".lora_A")]:
            stem = name.removesuffix(".lora_A")
            self._adapted[f"{stem}.weight"] = stem
            rest -= {name, f"{stem}.lora_B"}
            self._see_adapter(stem)
        rest -= {"control.weight", *(f"{medium}_residual.weight" for medium in MEDIA)}
        rest -= {name for name in rest if name.startswith(tuple(f"{m}_map." for m in MEDIA))}
        for name in sorted(rest):
            shape = _shape(self._trained[name])
            if name not in base or base.shape(name) != shape:
                raise CheckpointError(
                    f"{self._path}: {name} {list(shape)} has no place in the base"
                )

    def __getitem__(self, name: str) -> Tensor:
        if name == _EMBEDDING:
            return self._embedding()
        if name in self._base and name in self._trained:
            return _whole(self._trained[name])
        whole = _whole(self._base[name])
        if name in self._adapted:  # alpha / rank * B A is added, in float32 (Hu et al. 2021)
            stem = self._adapted[name]
            a, b = self._take(f"{stem}.lora_A"), self._take(f"{stem}.lora_B")
            whole += self._scale() * (b @ a)
        return whole

    def __contains__(self, name: object) -> bool:
        return name in self._base

    def __iter__(self) -> Iterator[str]:
        return iter(self._base)

    def __len__(self) -> int:
        return len(self._base)

    def _see_adapter(self, stem: str) -> None:
        self._scale()
        for letter in "AB":
            if f"{stem}.lora_{letter}" not in self._trained:
                raise CheckpointError(f"{self._path}: {stem}.lora_{letter} is missing")
        a, b = (_shape(self._trained[f"{stem}.lora_{letter}"]) for letter in "AB")
        name = f"{stem}.weight"
        known = name in self._base and name != _EMBEDDING  # whose rows are learnt as they are
        if not known or self._base.shape(name) != (b[0], a[-1]) or a[0] != b[-1]:
            raise CheckpointError(f"{self._path}: {stem} has an adapter but no matrix of its shape")

    def _scale(self) -> float:
        return float(self._meta("alpha")) / float(self._meta("rank"))

    def _take(self, name: str) -> Tensor:
        if name not in self._trained:
            raise CheckpointError(f"{self._path}: {name} is missing")
        return _whole(self._trained[name])

    def _meta(self, key: str) -> Any:
        try:
            return json.loads(self._about[key])
        except (KeyError, ValueError):
            raise CheckpointError(f"{self._path}: metadata {key!r} is missing or broken") from None

    def _embedding(self) -> Tensor:
        """Text, control, image and audio rows [V, D]."""
        if _EMBEDDING not in self._base:
            raise CheckpointError(f"{self._base.path}: {_EMBEDDING} is missing")
        text = self._trained.get(_EMBEDDING, self._base[_EMBEDDING])
        rows = [self._take("control.weight"), *(self._code_rows(medium) for medium in MEDIA)]
        count = _shape(text)[0] + sum(map(len, rows))
        if count != self._config.vocab_size:
            raise CheckpointError(
                f"{self._path}: text, control and code rows are {count}, "
                f"config.json says vocab_size {self._config.vocab_size}"
            )
        out = torch.empty(count, self._config.dim)
        at = _shape(text)[0]
        if isinstance(text, Blocks):
            text.dequantize(out[:at])
        else:
            out[:at] = text
        for part in rows:
            out[at : at + len(part)] = part
            at += len(part)
        return out

    @torch.no_grad()
    def _code_rows(self, medium: str) -> Tensor:
        """Rows [codes, D] of one medium, from its map and, where there is one, its free residual."""
        prefix = f"{medium}_map."
        parts = {
            name.removeprefix(prefix): _whole(value)
            for name, value in self._trained.items()
            if name.startswith(prefix)
        }
        if "up.weight" not in parts:
            raise CheckpointError(f"{self._path}: {prefix}up.weight is missing")
        levels = tuple(int(level) for level in self._meta(f"{medium}_levels"))
        code_map = CodeMap(levels, self._config.dim, hidden=len(parts["up.weight"]))
        try:
            code_map.load_state_dict(parts)
        except RuntimeError as error:
            raise CheckpointError(
                f"{self._path}: {prefix}* does not fit its levels ({error})"
            ) from None
        rows = code_map.rows()
        if f"{medium}_residual.weight" in self._trained:
            rows = rows + self._take(f"{medium}_residual.weight")
        return rows


def _whole(value: Tensor | Blocks) -> Tensor:
    return value.dequantize() if isinstance(value, Blocks) else value.float()


def _shape(value: Tensor | Blocks) -> tuple[int, ...]:
    return value.shape if isinstance(value, Blocks) else tuple(value.shape)
