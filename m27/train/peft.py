"""Adapters out and in as PEFT writes them: a folder that plain `peft` loads on the stock checkpoint.

    adapter_config.json        rank, alpha, targets, the base's name
    adapter_model.safetensors  `base_model.model.NAME.lora_A.weight` [R, I] and `….lora_B.weight` [O, R]

Only factors on matrices are written: rows of the vocabulary that were trained have no place there.
Reading for the engine, with every check on a stranger's folder, is `m27.infer.adapters`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from m27.train.lora import LoraConfig, LoraError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def peft_config(config: LoraConfig, base: str) -> dict[str, Any]:
    """The adapter_config.json of plain LoRA on a causal language model called `base`."""
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base,
        "r": config.rank, "lora_alpha": config.alpha, "lora_dropout": 0.0,
        "target_modules": sorted(config.targets), "bias": "none", "fan_in_fan_out": False,
        "use_rslora": False, "use_dora": False, "inference_mode": True, "init_lora_weights": True,
        "modules_to_save": None, "rank_pattern": {}, "alpha_pattern": {}, "revision": None,
    }  # fmt: skip


def write_adapter(
    folder: Path,
    factors: Mapping[str, Tensor],
    config: LoraConfig,
    base: str,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write `factors` (`NAME.lora_A`, `NAME.lora_B`, see `Adapters.parameters`) as a PEFT folder.

    The weights are put in place first, so a folder with a configuration is whole. Raises `LoraError` for
    a tensor that is no factor, a factor of another rank than `config`'s, and one that is not finite.
    """
    out: dict[str, Tensor] = {}
    for name, tensor in factors.items():
        stem, _, kind = name.rpartition(".")
        if kind not in ("lora_A", "lora_B"):
            raise LoraError(f"{name}: is no factor of an adapter; PEFT has no place for it")
        if tensor.shape[0 if kind == "lora_A" else 1] != config.rank:
            raise LoraError(f"{name}: is {list(tensor.shape)}, not of rank {config.rank}")
        if not bool(torch.isfinite(tensor).all()):
            raise LoraError(f"{name}: is not finite")
        out[f"base_model.model.{stem}.{kind}.weight"] = tensor.detach().cpu().to(dtype).contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{WEIGHTS}.{os.getpid()}"
    save_file(out, partial, metadata={"format": "pt"})
    os.chmod(partial, 0o644)  # safetensors makes it private; an adapter is to be shared
    os.replace(partial, folder / WEIGHTS)
    partial = folder / f".{CONFIG}.{os.getpid()}"
    partial.write_text(json.dumps(peft_config(config, base), indent=2) + "\n", encoding="utf-8")
    os.replace(partial, folder / CONFIG)
