"""What each input of a decoder's matrices counts: its mean square over real tokens, measured once and kept.

A few inputs of a matrix are hundreds of times as large as the others, so the same error of a weight costs there as
much more. Rounding to 4 bits that weighs errors by these squares (`m27.model.rounding`) loses a third of what even
rounding does. They lie beside the weights:

    importance.safetensors   `NAME` [C] in bfloat16 for the matrices below, NAME without `.weight`

Matrices that read the same vector share one entry. A folder without the file is rounded evenly. `m27 calibrate`
writes it.

Shapes: C inputs of a matrix, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from m27.model.config import Config
from m27.model.decoder import Decoder
from m27.model.files import CheckpointError, TensorFile, write_tensors

NAME = "importance.safetensors"
FORMAT = "m27-importance-1"
# The matrix under whose name the inputs stand, and those that are rounded by them: what `rounding.kind_of` leaves
# at 8 bits has no need of them.
SHARED = {
    "self_attn.q_proj": ("self_attn.q_proj", "self_attn.k_proj"),
    "mlp.gate_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj": ("mlp.down_proj",),
}


def measure(decoder: Decoder, rows: Iterable[Sequence[int]]) -> tuple[dict[str, Tensor], int]:
    """Mean squares [C] by matrix name, over the ids of `rows` read one after the other, and the number of tokens.

    Raises ValueError where `rows` hold no token, or the decoder has experts.
    """
    if decoder.config.n_experts:
        raise ValueError("a model with experts is not rounded to 4 bits")
    sums: dict[str, Tensor] = {}
    hooks = []
    for stem in _stems(decoder.config):

        def see(module: nn.Module, args: tuple[Tensor, ...], stem: str = stem) -> None:
            x_TC = args[0].detach().flatten(0, -2).double()
            sums[stem] = sums.get(stem, 0) + x_TC.square().sum(0)

        hooks.append(decoder.get_submodule(stem).register_forward_pre_hook(see))
    tokens = 0
    try:
        device = decoder.model.embed_tokens.weight.device
        with torch.inference_mode():
            for ids in rows:
                if len(ids):
                    tokens += len(ids)
                    decoder.hidden(decoder.embed(torch.tensor([list(map(int, ids))], device=device)))
    finally:
        for hook in hooks:
            hook.remove()
    if not tokens:
        raise ValueError("no token to measure with")
    return {stem: (squares / tokens).float().cpu() for stem, squares in sums.items()}, tokens


def write(folder: Path | str, squares: dict[str, Tensor], about: str) -> Path:
    """Write what `measure` found into a model's folder; `about` says what of. Raises CheckpointError."""
    path = Path(folder) / NAME
    narrow = {stem: value.to(torch.bfloat16) for stem, value in squares.items()}
    write_tensors(path, narrow, {"format": FORMAT, "measured": about})
    return path


def read(folder: Path | str, config: Config) -> dict[str, Tensor]:
    """Mean squares [C] by the names of all matrices that are rounded by them; none where there is no file.

    Raises CheckpointError for a file that is of another model, or holds what is no mean square.
    """
    path = Path(folder) / NAME
    if not path.is_file():
        return {}
    file = TensorFile(path)
    if file.metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not of format {FORMAT!r}")
    out: dict[str, Tensor] = {}
    for stem in _stems(config):
        value = file.get(stem)
        inputs = config.ffn_dim if stem.endswith("down_proj") else config.dim
        if not isinstance(value, Tensor) or value.shape != (inputs,):
            raise CheckpointError(f"{path}: {stem} is missing or not of {inputs} inputs; calibrate this model anew")
        value = value.float()
        if not (value.isfinite().all() and (value >= 0).all()):
            raise CheckpointError(f"{path}: {stem} holds what is no mean square")
        layer, part = stem.split(".", 3)[:3], stem.split(".", 3)[3]
        for name in SHARED[part]:
            out[".".join((*layer, name, "weight"))] = value
    return out


def _stems(config: Config) -> Iterator[str]:
    for layer in range(config.n_layers):
        for part in SHARED:
            yield f"model.layers.{layer}.{part}"
