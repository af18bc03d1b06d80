"""Where a training run stands, on disk: weights, optimiser, generator and place in the data, exactly.

    runs/NAME/step-000120/trained.safetensors    the trained part, float32
                          optimiser.safetensors  moments, and the random generator's state
                          state.json             step, seconds, tokens, the loader's state, fingerprints,
                                                 the digests of the two files beside it, and its own
    runs/NAME/reference.safetensors              what the run began with, where answers are measured against it

Safetensors and JSON only. A folder appears whole or not at all; the two newest are kept. One that was damaged
since, so that its files and their digests disagree, is passed over for the one before it. Several ranks write
their parts instead (`m27.train.sharded_checkpoint`); both are read here.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from m27.model import checkpoint as weights
from m27.model.config import Config
from m27.model.packed import CheckpointError, read_trained
from m27.train import seal
from m27.train.seal import steps as steps
from m27.train.sharded_checkpoint import PartsError, Place, Reader

_FILES = ("trained.safetensors", "optimiser.safetensors")
_REFERENCE = "reference.safetensors"


class ResumeError(ValueError):
    """A checkpoint that cannot be gone on from; the message names the file and the reason."""


class Ranks(Protocol):
    """Ranks that read a snapshot together (`m27.train.parallel`)."""

    rank: int
    world: int

    @property
    def leads(self) -> bool:
        """Whether this one speaks."""

    def place(self, name: str, shape: Sequence[int]) -> Place:
        """Which part of a tensor is wanted here."""

    def any(self, flag: bool) -> bool:
        """Whether any rank says so."""


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
    seal.sweep(run)
    partial = run / f".step-{step:06d}.{os.getpid()}"
    partial.mkdir(parents=True)
    save_file(_plain(trained), partial / _FILES[0], metadata={"format": "pt"})
    rng = {"rng": torch.get_rng_state()}
    save_file(_plain({**optimiser, **rng}), partial / _FILES[1])
    for name in _FILES:
        seal.settle(partial / name)
    digests = {name: seal.digest(partial / name) for name in _FILES}
    seal.write_state(partial, {"step": step, **state}, digests)
    final = run / f"step-{step:06d}"
    seal.put_in_place(partial, final, step, keep)
    return final


def latest(run: Path, ranks: Ranks | None = None) -> Snapshot | None:
    """The newest whole snapshot under `run`, or None where there is none at all.

    It may have been written by any number of ranks; `ranks` say which parts of its tensors are wanted here
    (None: all of it), and pass over alike. Damaged ones are passed over with a line on standard error.
    Raises ResumeError where all are.
    """
    fault: ResumeError | None = None
    for step, folder in reversed(steps(run)):
        found, error = _tried(step, folder, ranks)
        if ranks is not None and ranks.any(error is not None):
            error = error or ResumeError(f"{folder}: another rank cannot read it")
        if found is not None and error is None:
            return found
        if ranks is None or ranks.leads:
            print(f"{error}; passed over", file=sys.stderr)
        fault = error
    if fault is not None:
        raise fault
    return None


def _tried(step: int, folder: Path, ranks: Ranks | None) -> tuple[Snapshot | None, ResumeError | None]:
    try:
        return _read(step, folder, ranks), None
    except ResumeError as error:
        return None, error


def _read(step: int, folder: Path, ranks: Ranks | None) -> Snapshot:
    rank, world = (0, 1) if ranks is None else (ranks.rank, ranks.world)
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        if state.pop("seal", None) not in (None, seal.seal(state)):
            raise ResumeError(f"{folder}: state.json is not what was written")
        for number, (name, digest) in enumerate(state.get("files", {}).items()):
            if number % world == rank and seal.digest(folder / name) != digest:  # each rank its share
                raise ResumeError(f"{folder}: {name} is not what was written")
        reader = Reader(folder)
        trained, optimiser = (
            {n: reader.read(kind, n, None if ranks is None else ranks.place) for n in reader.names(kind)}
            for kind in ("trained", "optimiser")
        )
    except PartsError as error:
        raise ResumeError(str(error)) from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, ResumeError):
            raise
        raise ResumeError(f"{folder}: {error}") from None
    if not trained:
        raise ResumeError(f"{folder}: it holds no weights")
    if state.get("step") != step or "rng" not in optimiser:
        raise ResumeError(f"{folder}: state.json and the folder's name disagree, or it has no rng")
    return Snapshot(step, trained, optimiser, state)


def keep_reference(run: Path, trained: Mapping[str, Tensor]) -> str:
    """Write the trained part that `run` begins with, for as long as the run lasts; its digest comes back."""
    run.mkdir(parents=True, exist_ok=True)
    final, partial = run / _REFERENCE, run / f".{_REFERENCE}.{os.getpid()}"
    save_file(_plain(trained), partial, metadata={"format": "pt"})
    os.replace(partial, final)
    return seal.digest(final)


def reference(run: Path, digest: str) -> dict[str, Tensor]:
    """What `keep_reference` wrote. Raises ResumeError where it is gone or another."""
    path = run / _REFERENCE
    try:
        if seal.digest(path) == digest:
            return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ResumeError(f"{path}: {error}") from None
    raise ResumeError(f"{path}: not what the run began with")


def export(run: Path, out: Path, dtype: torch.dtype = torch.bfloat16) -> int:
    """Write the newest snapshot of a run that trains every weight to `out` as a stock checkpoint; its step.

    Whatever the number of ranks that wrote it. Raises ResumeError for a run without one, or of other rows.
    """
    found = latest(run)
    if found is None:
        raise ResumeError(f"{run}: no snapshot")
    if "model" not in found.state or found.state["config"]["rows"] != "free":
        raise ResumeError(f"{run}: not a run with rows=free, whose snapshots hold a whole model")
    decoder = weights.assemble(Config(**found.state["model"]), found.trained, where=str(run))
    weights.save(decoder, out, dtype)
    return found.step


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
