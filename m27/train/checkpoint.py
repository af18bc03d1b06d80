"""Where a training run stands, on disk: weights, optimiser, generator and place in the data, exactly.

    runs/NAME/step-000120/trained.safetensors    the trained part, float32
                          optimiser.safetensors  moments, and the random generator's state
                          state.json             step, seconds, tokens, the loader's state, fingerprints,
                                                 the digests of the two files beside it, and its own
    runs/NAME/reference.safetensors              what the run began with, where answers are measured against it

Safetensors and JSON only. A folder appears whole or not at all; the two newest are kept. One that was damaged
since, so that its files and their digests disagree, is passed over for the one before it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from m27.model.packed import CheckpointError, read_trained

_NAME = re.compile(r"step-(\d{6,})")
_FILES = ("trained.safetensors", "optimiser.safetensors")
_REFERENCE = "reference.safetensors"


class ResumeError(ValueError):
    """A checkpoint that cannot be gone on from; the message names the file and the reason."""


@dataclass
class Snapshot:
    """One saved moment of a run. `optimiser` also holds `rng`, uint8, of torch's CPU generator."""

    step: int
    trained: dict[str, Tensor]
    optimiser: dict[str, Tensor]
    state: dict[str, Any]


def save(
    run: Path,
    step: int,
    trained: Mapping[str, Tensor],
    optimiser: Mapping[str, Tensor],
    state: Mapping[str, Any],
    keep: int = 2,
) -> Path:
    """Write a snapshot of `step` under the folder `run`, and remove all but the `keep` newest."""
    final = run / f"step-{step:06d}"
    partial = run / f".{final.name}.{os.getpid()}"
    if run.is_dir():
        for left in run.glob(".step-*"):  # by processes that were killed
            shutil.rmtree(left, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(_plain(trained), partial / _FILES[0], metadata={"format": "pt"})
    rng = {"rng": torch.get_rng_state()}
    save_file(_plain({**optimiser, **rng}), partial / _FILES[1])
    digests = {name: _digest(partial / name) for name in _FILES}
    whole = {"step": step, **state, "files": digests}
    sealed = {**whole, "seal": _seal(whole)}
    _write(partial / "state.json", json.dumps(sealed).encode())
    for path in (*(partial / name for name in _FILES), partial):
        _settle(path)
    _remove(final)
    os.replace(partial, final)
    _settle(run)
    # Also those of later steps: they were damaged, or the run would have gone on from them.
    have = steps(run)
    kept = [folder for number, folder in have if number <= step][-max(keep, 1) :]
    for _, folder in have:
        if folder not in kept:
            _remove(folder)
    return final


def _remove(folder: Path) -> None:
    """Remove a snapshot, which from the first moment on is none any more."""
    if folder.is_dir():
        gone = folder.with_name(f".{folder.name}.gone")
        os.replace(folder, gone)
        shutil.rmtree(gone, ignore_errors=True)


def _write(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _settle(path: Path) -> None:
    """Have what was written to a file or folder on the disk before what follows."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _seal(state: Mapping[str, Any]) -> str:
    """What a state is known by: the digest of its JSON."""
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()[:16]


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def steps(run: Path) -> list[tuple[int, Path]]:
    """The (step, folder) of each whole snapshot under `run`, oldest first."""
    if not run.is_dir():
        return []
    found = [(match, path) for path in run.iterdir() if (match := _NAME.fullmatch(path.name))]
    return sorted((int(match[1]), path) for match, path in found)


def latest(run: Path) -> Snapshot | None:
    """The newest whole snapshot under `run`, or None where there is none at all.

    Damaged ones are passed over with a line on standard error. Raises ResumeError where all are.
    """
    fault: ResumeError | None = None
    for step, folder in reversed(steps(run)):
        try:
            found = _read(step, folder)
        except ResumeError as error:
            print(f"{error}; passed over", file=sys.stderr)
            fault = error
        else:
            return found
    if fault is not None:
        raise fault
    return None


def _read(step: int, folder: Path) -> Snapshot:
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        if state.pop("seal", None) not in (None, _seal(state)):
            raise ResumeError(f"{folder}: state.json is not what was written")
        for name, digest in state.get("files", {}).items():
            if _digest(folder / name) != digest:
                raise ResumeError(f"{folder}: {name} is not what was written")
        trained, optimiser = (load_file(folder / name) for name in _FILES)
    except (OSError, ValueError, TypeError, AttributeError, SafetensorError) as error:
        if isinstance(error, ResumeError):
            raise
        raise ResumeError(f"{folder}: {error}") from None
    if state.get("step") != step or "rng" not in optimiser:
        raise ResumeError(f"{folder}: state.json and the folder's name disagree, or it has no rng")
    return Snapshot(step, trained, optimiser, state)


def keep_reference(run: Path, trained: Mapping[str, Tensor]) -> str:
    """Write the trained part that `run` begins with, for as long as the run lasts; its digest comes back."""
    run.mkdir(parents=True, exist_ok=True)
    final, partial = run / _REFERENCE, run / f".{_REFERENCE}.{os.getpid()}"
    save_file(_plain(trained), partial, metadata={"format": "pt"})
    os.replace(partial, final)
    return _digest(final)


def reference(run: Path, digest: str) -> dict[str, Tensor]:
    """What `keep_reference` wrote. Raises ResumeError where it is gone or another."""
    path = run / _REFERENCE
    try:
        if _digest(path) == digest:
            return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ResumeError(f"{path}: {error}") from None
    raise ResumeError(f"{path}: not what the run began with")


@dataclass(frozen=True)
class Beginning:
    """A trained part to begin another run with: its tensors, and its adapters' alpha / rank."""

    trained: dict[str, Tensor]
    scale: float


def beginning(folder: Path) -> Beginning:
    """The trained part of a run's newest snapshot, or of a shipped model's `trained.safetensors`.

    Shipped tensors are narrower and come as float32. Raises ResumeError where the folder holds neither.
    """
    found = latest(folder)
    if found is not None:
        lora = found.state["config"]["lora"]
        return Beginning(found.trained, lora["alpha"] / max(lora["rank"], 1))
    try:
        trained, about = read_trained(folder)
    except CheckpointError as error:
        raise ResumeError(
            f"{folder}: neither a run with a snapshot nor a model ({error})"
        ) from None
    try:
        return Beginning(trained, float(about["alpha"]) / float(about["rank"]))
    except (KeyError, ValueError, ZeroDivisionError) as error:
        path = folder / "trained.safetensors"
        raise ResumeError(f"{path}: its metadata give no alpha and rank ({error})") from None


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
