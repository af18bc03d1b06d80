"""Weights in and out: the stock Hugging Face layout, the shipped layout, and changes of shape.

`save` writes what transformers, vLLM and llama.cpp open with no code of ours; `load` reads that, the
shipped layout of `packed` and the blocks of `quantized`, and nothing that could run code (safetensors
only). It knows files and names; training state is not its matter.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from m27.model.config import Config, ConfigError
from m27.model.decoder import Decoder
from m27.model.files import CheckpointError, TensorFile, read_json, write_json, write_tensors
from m27.model.gguf import Blocks
from m27.model.packed import is_packed, open_packed, read_base, save_packed
from m27.model.quantized import FILE, open_quantized

__all__ = [
    "CheckpointError",
    "assemble",
    "extend_vocabulary",
    "load",
    "open_state",
    "read_base",
    "rebuilt",
    "save",
    "save_packed",
    "stock_tensors",
]

_INDEX = "model.safetensors.index.json"
_EXPERT = re.compile(r"(.+\.mlp\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")
_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def save(
    model: Decoder,
    directory: Path | str,
    dtype: torch.dtype | None = None,
    shard_bytes: int = 5_000_000_000,
    drop_bias: bool = False,
) -> None:
    """Write a stock checkpoint: config.json and model.safetensors, in shards where it is longer.

    `dtype` (float32, bfloat16, float16) is that of the file; by default the model's own. A shared
    expert is folded into the others, exactly. Raises `CheckpointError` for another dtype, and for a
    selection bias that is not zero, which no stock checkpoint holds, unless `drop_bias` leaves it
    out. Each file is put in place when it is whole.
    """
    if not drop_bias:
        _see_bias(model)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    dtype = dtype or model.output_weight.dtype
    if dtype not in _DTYPES:
        raise CheckpointError(f"dtype {dtype}: only {', '.join(_DTYPES.values())} are written")
    shards: list[dict[str, Tensor]] = [{}]
    room = shard_bytes
    for name, tensor in stock_tensors(model):
        size = tensor.numel() * dtype.itemsize
        if size > room and shards[-1]:
            shards.append({})
            room = shard_bytes
        room -= size
        shards[-1][name] = tensor
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        names = ["model.safetensors"]
    for name, shard in zip(names, shards, strict=True):
        narrow = {key: tensor.to(dtype) for key, tensor in shard.items()}
        write_tensors(directory / name, narrow, {"format": "pt"})
    # One file gets an index too: vLLM reads every safetensors file of a folder that has none, and
    # the codecs lie beside the weights.
    total = sum(t.numel() for shard in shards for t in shard.values()) * dtype.itemsize
    weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    write_json(directory / _INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    write_json(directory / "config.json", model.config.to_hf() | {"torch_dtype": _DTYPES[dtype]})


def load(
    directory: Path | str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Decoder:
    """Read a checkpoint of any of the three layouts into a plain decoder, in evaluation mode.

    Raises `CheckpointError` naming the file or tensor that is missing, broken, surplus or of
    another shape, and `ConfigError` for an architecture that is not implemented.
    """
    config, state = open_state(directory)
    shapes = _shapes(config)
    moved = {}
    # One at a time, so that no more than one matrix is there in two types at once.
    for name, value in state.items():
        if isinstance(value, Blocks):
            value = value.dequantize()[:, : shapes[name][-1]]  # blocks are filled up with zeros
        moved[name] = value.to(device, dtype)
    return assemble(config, moved, dtype, device, where=str(directory))


def open_state(directory: Path | str) -> tuple[Config, Mapping[str, Tensor | Blocks]]:
    """The configuration and the tensors of a checkpoint, under their names on disk, each read or merged
    when it is asked for; blocks as they are stored where the layout is that of `quantized`.

    Raises as `load` does, but for a shape, which is not looked at.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such folder")
    parts: list[Mapping[str, Tensor | Blocks]]
    if (directory / FILE).is_file():
        config, file, _ = open_quantized(directory)
        parts = [file]
    elif is_packed(directory):
        config, packed = open_packed(directory)
        parts = [packed]
    else:
        config = Config.from_hf(read_json(directory / "config.json"))
        parts = [TensorFile(path) for path in _files(directory)]
    state = _Joined(parts, config)
    if not config.n_experts:  # experts stand under other names on disk; `assemble` looks at those
        _see_names(config, _shapes(config), state, str(directory))
    return config, state


class _Joined(Mapping[str, Tensor | Blocks]):
    """Several files as one, without what a decoder of `config` has no use for."""

    def __init__(self, parts: Sequence[Mapping[str, Tensor | Blocks]], config: Config) -> None:
        self._where = {
            name: part for part in parts for name in part if not _redundant(name, config)
        }

    def __getitem__(self, name: str) -> Tensor | Blocks:
        return self._where[name][name]

    def __contains__(self, name: object) -> bool:
        return name in self._where

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


def assemble(
    config: Config,
    state: Mapping[str, Tensor],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    where: str = "state",
) -> Decoder:
    """A decoder of `config` from tensors under Hugging Face names, in evaluation mode.

    Raises `CheckpointError`, beginning with `where`, for missing, surplus or misshapen tensors.
    """
    with torch.device("meta"):
        model = Decoder(config)
    stacked = _stack_experts(config, state, where)
    wanted = model.state_dict()
    _see_names(config, wanted, stacked, where)
    for name in sorted(wanted):
        if stacked[name].shape != wanted[name].shape:
            found, want = list(stacked[name].shape), list(wanted[name].shape)
            raise CheckpointError(f"{where}: {name} is {found}, config.json asks for {want}")
    moved = {name: tensor.to(device, dtype) for name, tensor in stacked.items()}
    model.load_state_dict(moved, assign=True)
    return model.eval()


@torch.no_grad()
def extend_vocabulary(model: Decoder, size: int) -> Decoder:
    """A decoder with `size` rows in the vocabulary, the first ones as they were.

    New rows are the mean row with a tenth of the rows' spread, so that no new id stands out. All
    other weights are shared with `model`. Raises `ConfigError` when `size` is below the present
    vocabulary.
    """
    old = model.config.vocab_size
    if size < old:
        raise ConfigError(f"vocab_size: {size} is below the present {old}")
    state = dict(model.state_dict())
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in state:
            rows = state[name]
            noise = torch.randn(size - old, rows.shape[1], dtype=rows.dtype, device=rows.device)
            state[name] = torch.cat((rows, rows.mean(0) + 0.1 * rows.std(0) * noise))
    return rebuilt(replace(model.config, vocab_size=size), state, model)


def rebuilt(config: Config, state: Mapping[str, Tensor], like: Decoder) -> Decoder:
    """A decoder of `config` from `state`, in the dtype, on the device and in the mode of `like`."""
    weight = like.output_weight
    model = assemble(config, state, weight.dtype, weight.device)
    model.recompute = like.recompute
    return model.train(like.training)


def stock_tensors(model: Decoder) -> Iterator[tuple[str, Tensor]]:
    """Each tensor under its name on disk, where experts stand one by one and a shared one in each."""
    state = model.state_dict()
    for name, tensor in state.items():
        stem, _, kind = name.rpartition(".")
        if ".mlp.shared." in name:
            continue
        if not stem.endswith(".mlp.experts"):
            yield name, tensor
            continue
        shared = {
            part: state.get(f"{stem.removesuffix('experts')}shared.{part}_proj.weight")
            for part in ("gate", "up", "down")
        }
        for expert, weight in enumerate(tensor):
            if kind == "down_proj":
                yield f"{stem}.{expert}.down_proj.weight", _beside(weight, shared["down"], 1)
            else:
                gate, up = weight.chunk(2)
                yield f"{stem}.{expert}.gate_proj.weight", _beside(gate, shared["gate"], 0)
                yield f"{stem}.{expert}.up_proj.weight", _beside(up, shared["up"], 0)


def _beside(own: Tensor, shared: Tensor | None, dim: int) -> Tensor:
    """An expert's matrix, with the inner units of the shared one behind its own."""
    return own if shared is None else torch.cat((own, shared), dim)


def _see_bias(model: Decoder) -> None:
    for number, block in enumerate(model.model.layers):
        bias_E = getattr(block.mlp, "bias_E", None)
        if bias_E is not None and bool(bias_E.any()):
            raise CheckpointError(
                f"layer {number}: a selection bias of up to {float(bias_E.abs().max()):.3g} stands "
                "in the router, and a stock checkpoint has none: train until it is annealed to "
                "zero, or leave it out by drop_bias=True"
            )


def _shapes(config: Config) -> dict[str, torch.Size]:
    """Name and shape of every tensor of the module."""
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in Decoder(config).state_dict().items()}


def _see_names(config: Config, wanted: Collection[str], found: Collection[str], where: str) -> None:
    for name in sorted({*wanted, *found}):
        if name not in found:
            raise CheckpointError(f"{where}: {name} is missing")
        if name not in wanted:
            raise CheckpointError(f"{where}: {name} has no place in a {config.family} model")


def _redundant(name: str, config: Config) -> bool:
    return (name == "lm_head.weight" and config.tied) or "rotary_emb" in name


def _stack_experts(config: Config, state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors of a file under the names of the module: experts stacked, nothing redundant."""
    out: dict[str, Tensor] = {}
    found: dict[str, dict[tuple[int, str], Tensor]] = {}
    for name, tensor in state.items():
        match = _EXPERT.fullmatch(name)
        if match:
            found.setdefault(match[1], {})[int(match[2]), match[3]] = tensor
        elif not _redundant(name, config):
            out[name] = tensor
    for stem, parts in found.items():
        try:
            both = [torch.cat((parts[e, "gate"], parts[e, "up"])) for e in range(config.n_experts)]
            downs = [parts[e, "down"] for e in range(config.n_experts)]
        except KeyError as error:
            expert, kind = error.args[0]
            raise CheckpointError(
                f"{where}: {stem}.{expert}.{kind}_proj.weight is missing"
            ) from None
        out[f"{stem}.gate_up_proj"], out[f"{stem}.down_proj"] = (
            torch.stack(both),
            torch.stack(downs),
        )
    return out


def _files(directory: Path) -> list[Path]:
    """The weight files of a stock checkpoint."""
    index = directory / _INDEX
    if (directory / "model.safetensors").is_file():
        return [directory / "model.safetensors"]
    if not index.is_file():
        raise CheckpointError(f"{directory}: no model.safetensors (pickled weights are not read)")
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{index}: weight_map is missing")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(f"{index}: {name!r} is not the name of a file beside it")
        if not (directory / name).is_file():
            raise CheckpointError(f"{directory}: no {name} (pickled weights are not read)")
    return [directory / name for name in names]
