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
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from m27.model.code_map import CodeMap
from m27.model.config import Config
from m27.model.gguf import BLOCK, Blocks
from m27.model.rounding import settle_int8

FORMAT = "m27-packed-1"
MEDIA = ("image", "audio")
STORED = ("int8", "bfloat16")
_EMBEDDING = "model.embed_tokens.weight"


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


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a safetensors file, and its metadata. Raises `CheckpointError`."""
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not readable as safetensors ({error})") from None


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


def flatten_blocks(tensors: Mapping[str, Tensor | Blocks]) -> dict[str, Tensor]:
    """Tensors as a file holds them: blocks as `NAME.q`, `NAME.scale` and, where they have one,
    `NAME.minimum`."""
    flat: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if isinstance(value, Blocks):
            flat[f"{name}.q"], flat[f"{name}.scale"] = value.q, value.scale
            if value.minimum is not None:
                flat[f"{name}.minimum"] = value.minimum
        else:
            flat[name] = value
    return flat


def join_blocks(flat: Mapping[str, Tensor], path: Path) -> dict[str, Tensor | Blocks]:
    """What `flatten_blocks` took apart. Raises `CheckpointError` naming `path`, from which it was read."""
    out: dict[str, Tensor | Blocks] = {}
    for name, tensor in flat.items():
        if name.endswith(".q"):
            stem = name.removesuffix(".q")
            if f"{stem}.scale" not in flat:
                raise CheckpointError(f"{path}: {stem} has blocks but no scales")
            scale, minimum = flat[f"{stem}.scale"], flat.get(f"{stem}.minimum")
            half = BLOCK // 2 if tensor.dtype == torch.uint8 else BLOCK
            fits = tensor.ndim == 2 and (len(tensor), tensor.shape[1] / half) == tuple(scale.shape)
            if not fits or (minimum is not None and minimum.shape != scale.shape):
                raise CheckpointError(f"{path}: the scales of {stem} do not fit its blocks")
            out[stem] = Blocks(tensor, scale, minimum)
        elif not name.endswith((".scale", ".minimum")):
            out[name] = tensor
    return out


def read_base(directory: Path | str) -> dict[str, Tensor | Blocks]:
    """The base as it is stored, under Hugging Face names. Raises `CheckpointError`."""
    path = Path(directory) / "base.safetensors"
    return join_blocks(read_tensors(path)[0], path)


def read_trained(directory: Path | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The trained part of a shipped folder, in float32, and its metadata. Raises `CheckpointError`."""
    path = Path(directory) / "trained.safetensors"
    flat, metadata = read_tensors(path)
    trained = {
        name: value.dequantize() if isinstance(value, Blocks) else value.float()
        for name, value in join_blocks(flat, path).items()
    }
    return trained, metadata


def read_packed(directory: Path | str) -> tuple[Config, dict[str, Tensor]]:
    """The configuration and the merged float32 tensors of a shipped folder.

    Raises `CheckpointError` for a missing or broken file, an adapter without a matrix, or rows that
    do not add up to the vocabulary.
    """
    directory = Path(directory)
    config = Config.from_hf(read_json(directory / "config.json"))
    if not config.tied:
        raise CheckpointError(f"{directory / 'config.json'}: the packed layout has tied embeddings")
    path = directory / "trained.safetensors"
    trained, metadata = read_trained(directory)
    state = {
        name: value.dequantize() if isinstance(value, Blocks) else value.float()
        for name, value in read_base(directory).items()
    }
    rows = [_take(trained, "control.weight", path)]
    for medium in MEDIA:
        rows.append(_code_rows(medium, trained, metadata, path, config.dim))
    _merge_adapters(state, trained, metadata, path)
    for name, tensor in trained.items():
        if name not in state or state[name].shape != tensor.shape:
            raise CheckpointError(f"{path}: {name} {list(tensor.shape)} has no place in the base")
        state[name] = tensor.float()
    state[_EMBEDDING] = torch.cat([_take(state, _EMBEDDING, path), *rows])
    if len(state[_EMBEDDING]) != config.vocab_size:
        raise CheckpointError(
            f"{path}: text, control and code rows are {len(state[_EMBEDDING])}, "
            f"config.json says vocab_size {config.vocab_size}"
        )
    return config, state


def _take(tensors: dict[str, Tensor], name: str, path: Path) -> Tensor:
    if name not in tensors:
        raise CheckpointError(f"{path}: {name} is missing")
    return tensors.pop(name).float()


def _meta(metadata: Mapping[str, str], key: str, path: Path) -> Any:
    try:
        return json.loads(metadata[key])
    except (KeyError, ValueError):
        raise CheckpointError(f"{path}: metadata {key!r} is missing or broken") from None


@torch.no_grad()
def _code_rows(
    medium: str, trained: dict[str, Tensor], metadata: Mapping[str, str], path: Path, dim: int
) -> Tensor:
    """Rows [codes, D] of one medium, from its map and, where there is one, its free residual."""
    prefix = f"{medium}_map."
    parts = {name: trained.pop(name) for name in list(trained) if name.startswith(prefix)}
    if f"{prefix}up.weight" not in parts:
        raise CheckpointError(f"{path}: {prefix}up.weight is missing")
    levels = tuple(int(level) for level in _meta(metadata, f"{medium}_levels", path))
    code_map = CodeMap(levels, dim, hidden=len(parts[f"{prefix}up.weight"]))
    try:
        code_map.load_state_dict(
            {name.removeprefix(prefix): tensor.float() for name, tensor in parts.items()}
        )
    except RuntimeError as error:
        raise CheckpointError(f"{path}: {prefix}* does not fit its levels ({error})") from None
    rows = code_map.rows()
    if f"{medium}_residual.weight" in trained:
        rows = rows + _take(trained, f"{medium}_residual.weight", path)
    return rows


def _merge_adapters(
    state: dict[str, Tensor], trained: dict[str, Tensor], metadata: Mapping[str, str], path: Path
) -> None:
    """Add alpha / rank * B A to each adapted matrix, in float32 (Hu et al. 2021)."""
    for key in [name for name in trained if name.endswith(".lora_A")]:
        stem = key.removesuffix(".lora_A")
        scale = float(_meta(metadata, "alpha", path)) / float(_meta(metadata, "rank", path))
        a, b = _take(trained, key, path), _take(trained, f"{stem}.lora_B", path)
        weight = state.get(f"{stem}.weight")
        if weight is None or weight.shape != (b.shape[0], a.shape[1]):
            raise CheckpointError(f"{path}: {stem} has an adapter but no matrix of its shape")
        state[f"{stem}.weight"] = weight + scale * (b @ a)
