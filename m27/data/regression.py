"""A small shard in one file, beside the weights: what a model must not forget while it is fine-tuned.

`regression.safetensors` holds the ids of some held-out documents of every medium (the task of each names its
kind), as a shard does, and the shard's meta as metadata. Codes are not media: nobody's picture or recording
can be had back from it in full. `recipes/regression.py` makes it; nothing here is random.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from m27.data.build import ShardError, is_current
from m27.language.processor import Processor

NAME = "regression.safetensors"
_FILES = {"tokens": (np.uint32, "tokens.bin"), "loss": (np.uint8, "loss.bin")}
_ARRAYS = {"index": np.int64, "tasks": np.uint16}


def pack(shard: Path, file: Path) -> None:
    """Write the shard as one file. Raises ShardError for one whose documents have branches."""
    if (shard / "branches.bin").is_file():
        raise ShardError(f"{shard}: documents with branches do not go into {file.name}")
    tensors: dict[str, Any] = {
        name: np.fromfile(shard / path, dtype) for name, (dtype, path) in _FILES.items()
    }
    tensors |= {name: np.load(shard / f"{name}.npy") for name in _ARRAYS}
    meta = (shard / "meta.json").read_text(encoding="utf-8")
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    save_file(tensors, partial, metadata={"meta": json.dumps(json.loads(meta))})
    os.chmod(partial, 0o644)  # safetensors makes it private; weights are to be shared
    os.replace(partial, file)


def unpack(file: Path, folder: Path, processor: Processor) -> bool:
    """Write the file's shard into `folder`; False where it was made with another vocabulary or codecs.

    Raises ShardError for a file that cannot be read.
    """
    try:
        with safe_open(file, framework="numpy") as held:
            meta = json.loads((held.metadata() or {})["meta"])
            tensors = {name: held.get_tensor(name) for name in (*_FILES, *_ARRAYS)}
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise ShardError(f"{file}: no set of documents ({error})") from None
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, (dtype, path) in _FILES.items():
        tensors[name].astype(dtype).tofile(partial / path)
    for name, kind in _ARRAYS.items():
        np.save(partial / f"{name}.npy", tensors[name].astype(kind))
    (partial / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    return is_current(folder, processor)
