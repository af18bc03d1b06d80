"""A checkpoint folder to one in blocks of 8 or 4 bits, rounded as the step rounds when it loads.

An engine of the one then gives the logits of an engine of the other, to the last bit, and needs neither
the time to round nor the room for a matrix in float32. Tokenizer and codecs are not its matter.
"""

from __future__ import annotations

from pathlib import Path

from m27.infer import quantize
from m27.model import checkpoint, importance
from m27.model.config import Config
from m27.model.files import CheckpointError
from m27.model.quantized import held_precision, save_quantized


def store(folder: str | Path, out: str | Path, precision: str) -> Config:
    """Write the weights of `folder` at "int8" or "int4" into `out`; their configuration comes back.

    Where the step cannot be compiled they are rounded by the definition in torch, which is as good and
    not the same to the last bit. Raises CheckpointError for a folder that is in blocks already (a
    second rounding would lose more than the first) or has experts, and as `checkpoint.open_state`.
    """
    held = held_precision(folder)
    if held:
        raise CheckpointError(f"{folder}: holds weights in {held} already; export the whole ones")
    config, state = checkpoint.open_state(folder)
    counted = importance.read(folder, config)
    save_quantized(out, config, quantize.quantized(state, precision, _rounding(), counted), precision)
    return config


def _rounding() -> quantize.Rounding:
    from m27.infer.cpu import BuildError, binding

    try:
        library = binding.library()
    except BuildError:
        return quantize.rounded
    return library.rounded
