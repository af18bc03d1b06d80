"""The backbone of a shipped folder as it was before it was taught to see, draw, hear and sound.

Only comparisons need it: "did the language model stay itself?" is answered by running both.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from m27.model.checkpoint import assemble
from m27.model.config import Config
from m27.model.decoder import Decoder
from m27.model.gguf import Blocks
from m27.model.packed import read_base, read_json


def load_base(
    folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Decoder:
    """The base of a packed folder without its adapters, with the base's own (text) vocabulary.

    Raises `CheckpointError` where the folder holds no packed base.
    """
    folder = Path(folder)
    state = {
        name: tensor.dequantize() if isinstance(tensor, Blocks) else tensor.float()
        for name, tensor in read_base(folder).items()
    }
    config = Config.from_hf(read_json(folder / "config.json"))
    config = replace(config, vocab_size=len(state["model.embed_tokens.weight"]))
    return assemble(config, state, dtype, device, where=str(folder / "base.safetensors"))
