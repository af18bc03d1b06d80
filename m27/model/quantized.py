"""A decoder as the engine's step holds it, in a folder: its matrices in blocks of 8 or 4 bits.

    config.json            stock
    quantised.safetensors  `NAME.q`, `NAME.scale` and for 4 bits `NAME.minimum` of a matrix (columns filled
                           up with zeros to whole groups of 32), `NAME` in float32 of a vector. Metadata:
                           `format` and `precision` ("int8" or "int4")

Which matrix has how many bits, and how they are rounded, is `m27.model.rounding`'s affair.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from m27.model.config import Config
from m27.model.files import (
    CheckpointError,
    TensorFile,
    flatten_blocks,
    read_json,
    write_json,
    write_tensors,
)
from m27.model.gguf import Blocks

FORMAT = "m27-quantised-1"
FILE = "quantised.safetensors"
PRECISIONS = ("int8", "int4")


def save_quantized(
    directory: Path | str,
    config: Config,
    tensors: Iterable[tuple[str, Tensor | Blocks]],
    precision: str,
) -> None:
    """Write a decoder's rounded tensors, which are taken one after the other.

    Raises `CheckpointError` for another precision and for experts, which no step serves in blocks.
    """
    if precision not in PRECISIONS:
        raise CheckpointError(f"{precision!r} is neither int8 nor int4")
    if config.n_experts:
        raise CheckpointError("a model with experts is not written in blocks")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    about = {"format": FORMAT, "precision": precision}
    write_tensors(directory / FILE, flatten_blocks(dict(tensors)), about)
    write_json(directory / "config.json", config.to_hf())


def held_precision(directory: Path | str) -> str | None:
    """ "int8" or "int4" for such a folder, None for any other. Raises `CheckpointError` for a broken one."""
    path = Path(directory) / FILE
    return _precision(TensorFile(path)) if path.is_file() else None


def open_quantized(directory: Path | str) -> tuple[Config, TensorFile, str]:
    """Configuration, tensors as they are stored, and precision. Raises `CheckpointError`."""
    directory = Path(directory)
    file = TensorFile(directory / FILE)
    config = Config.from_hf(read_json(directory / "config.json"))
    if config.n_experts:
        raise CheckpointError(f"{directory}: a model with experts is not held in blocks")
    return config, file, _precision(file)


def _precision(file: TensorFile) -> str:
    precision = file.metadata.get("precision", "")
    if file.metadata.get("format") != FORMAT or precision not in PRECISIONS:
        raise CheckpointError(f"{file.path}: not of format {FORMAT!r}")
    return precision
