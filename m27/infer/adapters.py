"""A folder that PEFT wrote, read as an adapter for the runner.

Plain LoRA on linear matrices (Hu et al. 2021), scaled by alpha / r, or by alpha / sqrt(r) where the
folder says so (rsLoRA, Kalajdzievski 2023). Anything else that would change the output is refused,
not left out. Only safetensors and JSON are read. Knows no runner and no model.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from m27.infer.request import RequestError
from m27.infer.runner import Adapter, Floats

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MOST_RANK = 1_024
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_NAME = re.compile(
    r"(?:base_model\.model\.)?(model\.layers\.\d+\.(?:self_attn|mlp)\.\w+)\.lora_([AB])(?:\.default)?\.weight"
)
# Settings that, where they are set, mean more than A and B.
_UNSUPPORTED = (
    "use_dora", "modules_to_save", "trainable_token_indices", "target_parameters", "lora_bias",
    "layer_replication", "use_bdlora", "alora_invocation_tokens", "use_qalora", "megatron_config",
)  # fmt: skip


def read_adapter(folder: str | Path, name: str | None = None) -> Adapter:
    """The adapter of a PEFT folder, under `name` or the folder's own.

    Raises RequestError, in one line that names the folder, for a file that is missing or broken, for
    an adapter of another kind, and for tensors that do not make pairs.
    """
    folder = Path(folder)
    settings = _settings(folder)
    factors = _factors(folder)
    matrices: dict[str, tuple[Floats, Floats]] = {}
    for stem in sorted({stem for stem, _ in factors}):
        a, b = factors.get((stem, "A")), factors.get((stem, "B"))
        if a is None or b is None:
            raise RequestError(f"{folder}: {stem} has no lora_{'A' if a is None else 'B'}")
        if a.ndim != 2 or b.ndim != 2 or len(a) != b.shape[1] or not 0 < len(a) <= MOST_RANK:
            raise RequestError(f"{folder}: {stem} has factors {list(a.shape)} and {list(b.shape)}")
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise RequestError(f"{folder}: {stem} is not finite")
        matrices[stem] = (a, b * np.float32(_scale(settings, stem, len(a))))
    if not matrices:
        raise RequestError(f"{folder}: the adapter holds no matrices")
    return Adapter(name or folder.resolve().name, matrices)


def _settings(folder: Path) -> dict[str, Any]:
    """adapter_config.json, once nothing in it asks for more than plain LoRA."""
    try:
        settings = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError(f"{folder}: no {_CONFIG} there") from None
    except (OSError, ValueError) as error:
        raise RequestError(f"{folder / _CONFIG}: {error}") from error
    if not isinstance(settings, dict):
        raise RequestError(f"{folder / _CONFIG}: not an object")
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise RequestError(f"{folder}: peft_type {kind!r} is not supported, only LORA")
    for key in _UNSUPPORTED:
        if settings.get(key):
            raise RequestError(f"{folder}: {key} is not supported")
    for key in ("bias", "fan_in_fan_out"):
        if settings.get(key) not in (None, "none", False):
            raise RequestError(f"{folder}: {key} {settings[key]!r} is not supported")
    return settings


def _factors(folder: Path) -> dict[tuple[str, str], Floats]:
    """(name of the matrix, "A" or "B") -> float32 tensor."""
    path = folder / _WEIGHTS
    if not path.is_file():
        pickled = " (pickled weights are not read)" if any(folder.glob("*.bin")) else ""
        raise RequestError(f"{folder}: no {_WEIGHTS} there{pickled}")
    factors: dict[tuple[str, str], Floats] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - a safetensors file is no dict
                found = _NAME.fullmatch(key)
                if found is None or found[1].rsplit(".", 1)[-1] not in TARGETS:
                    raise RequestError(f"{folder}: {key} is not supported")
                tensor = file.get_tensor(key).to(torch.float32)
                factors[found[1], found[2]] = np.ascontiguousarray(tensor.numpy())
    except SafetensorError as error:
        raise RequestError(f"{path}: not readable as safetensors ({error})") from error
    return factors


def _scale(settings: Mapping[str, Any], stem: str, rank: int) -> float:
    """What B is multiplied by. A pattern of PEFT's is the end of a matrix's name; those written as
    regular expressions are not taken."""
    alpha = settings.get("lora_alpha", 8)
    for key, value in (settings.get("alpha_pattern") or {}).items():
        if not re.fullmatch(r"[\w.]+", key):
            raise RequestError(f"alpha_pattern {key!r} is not supported, only plain names")
        if f".{stem}".endswith(f".{key}"):
            alpha = value
            break
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise RequestError(f"lora_alpha must be a number, not {alpha!r}")
    return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)
