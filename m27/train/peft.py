"""Trained adapters as a folder that PEFT opens: adapter_config.json and adapter_model.safetensors.

Names and settings as `peft` writes them for LoRA on the linear layers of a causal language model, so that `peft`,
vLLM and `m27 chat --adapter` read it. It knows no model; rows of the vocabulary are not in it.

Shapes: R rank, I in, O out.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from m27.model.files import write_json
from m27.train.lora import LoraConfig, LoraError

_PREFIX = "base_model.model."


def write_adapter(folder: Path, trained: Mapping[str, Tensor], config: LoraConfig, base: str) -> None:
    """Write the factors `….lora_A` [R, I] and `….lora_B` [O, R] of `trained`; `base` is the model they belong to.

    Raises LoraError where there is none. Each file is put in place when it is whole.
    """
    factors = {
        f"{_PREFIX}{name}.weight": tensor.detach().cpu().contiguous()
        for name, tensor in trained.items()
        if name.endswith((".lora_A", ".lora_B"))
    }
    if not factors:
        raise LoraError("nothing to write: the run trained no adapter")
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".adapter_model.{os.getpid()}"
    save_file(factors, partial, metadata={"format": "pt"})
    os.replace(partial, folder / "adapter_model.safetensors")
    write_json(
        folder / "adapter_config.json",
        {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base,
            "r": config.rank, "lora_alpha": config.alpha, "lora_dropout": 0.0, "bias": "none",
            "target_modules": sorted(config.targets), "fan_in_fan_out": False, "inference_mode": True,
        },
    )  # fmt: skip
