"""Snapshots of a run over several ranks: every rank writes its own parts, and any number of ranks reads them.

    runs/NAME/step-000120/part-00000-of-00004.safetensors   one rank's parts of all tensors
                          …
                          index.json     where each part lies in its whole tensor, and its file
                          state.json     as in `m27.train.checkpoint`

A save copies the parts to the host and returns; a thread writes them, and the leading rank puts the folder in
place when all parts are there, by one rename. So a snapshot appears whole or not at all, and the ranks need to
share the folder's file system. Reading takes the slices that are asked for, also of the snapshots of a single
process. torch.distributed.checkpoint does the like, but its metadata file is a pickle, which runs code when it
is read. It knows nothing of models and of optimisers.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from m27.train import seal


@dataclass(frozen=True)
class Place:
    """Where this rank's part of a tensor lies in the whole; `copies` ranks hold it, and one `writes` it."""

    shape: tuple[int, ...]
    offset: tuple[int, ...]
    size: tuple[int, ...]
    copies: int = 1
    writes: bool = True

    @classmethod
    def all_of(cls, shape: Iterable[int], copies: int = 1, writes: bool = True) -> Place:
        """The place of a tensor that every rank holds whole."""
        shape = tuple(shape)
        return cls(shape, (0,) * len(shape), shape, copies, writes)


FORMAT = "m27-parts-1"
INDEX = "index.json"
Groups = Mapping[str, Mapping[str, Tensor]]  # by kind ("trained", "optimiser", …) and name
PlaceOf = Callable[[str, Sequence[int]], Place]


class PartsError(ValueError):
    """A snapshot that is not whole or cannot be written; the message names the file and the tensor."""


class Writer:
    """Writes the snapshots of a run into the folder `run`, one at a time, beside the training.

    Every rank has one and calls `save` and `wait` alike. `patience` is how many seconds the leading rank
    waits for the others' parts.
    """

    def __init__(self, run: Path, rank: int, world: int, keep: int = 2, patience: float = 1800.0) -> None:
        self.run, self.rank, self.world, self.keep = run, rank, world, keep
        self.patience = patience
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def clean(self) -> None:
        """Remove what was cut off while it was written; for the leading rank, before any `save`."""
        seal.sweep(self.run)

    def save(
        self, step: int, token: int, groups: Groups, place_of: PlaceOf, state: Mapping[str, Any]
    ) -> None:
        """Copy this rank's parts and begin to write the snapshot of `step`.

        `token` is a number that the ranks agree on and that no earlier try had. Waits for the snapshot
        before; raises PartsError if that could not be written.
        """
        self.wait()
        parts: dict[str, Tensor] = {}
        index: dict[str, Any] = {}
        for kind, tensors in groups.items():
            for name, tensor in tensors.items():
                place = place_of(name, tensor.shape)
                if not place.writes or 0 in place.size:
                    continue
                key = f"{kind}/{name}"
                parts[key] = tensor.detach().to("cpu", copy=True).contiguous()
                index[key] = {
                    "shape": place.shape, "offset": place.offset, "size": place.size,
                    "dtype": str(tensor.dtype).removeprefix("torch."),
                }  # fmt: skip
        folder = self.run / f".step-{step:06d}.{token}"
        self._thread = threading.Thread(
            target=self._write, args=(folder, step, parts, index, dict(state)), name="snapshot"
        )
        self._thread.start()

    def wait(self) -> None:
        """Wait for what is being written. Raises PartsError if it could not be."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise PartsError(f"{self.run}: a snapshot could not be written ({error})")

    def _write(
        self, folder: Path, step: int, parts: dict[str, Tensor], index: dict[str, Any], state: dict[str, Any]
    ) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            name = f"part-{self.rank:05d}-of-{self.world:05d}"
            path = folder / f"{name}.safetensors"
            save_file(parts, path)
            os.chmod(path, 0o644)
            seal.settle(path)
            # After its tensors: who sees it may count on them.
            _put_json(folder / f"{name}.json", {"digest": seal.digest(path), "parts": index})
            if self.rank == 0:
                self._commit(folder, step, state)
        except (OSError, SafetensorError, TimeoutError) as error:
            self._error = error

    def _commit(self, folder: Path, step: int, state: dict[str, Any]) -> None:
        """When the parts of all ranks are there, list them and put the folder in place."""
        tensors: dict[str, Any] = {}
        digests: dict[str, str] = {}
        until = time.monotonic() + self.patience
        for rank in range(self.world):
            name = f"part-{rank:05d}-of-{self.world:05d}"
            listed = folder / f"{name}.json"
            while not listed.is_file():
                if time.monotonic() > until:
                    raise TimeoutError(f"no part of rank {rank} after {self.patience:.0f} s")
                time.sleep(0.02)
            told = json.loads(listed.read_text(encoding="utf-8"))
            digests[f"{name}.safetensors"] = told["digest"]
            for key, part in told["parts"].items():
                whole = tensors.setdefault(
                    key, {"shape": part["shape"], "dtype": part["dtype"], "parts": []}
                )
                whole["parts"].append([f"{name}.safetensors", part["offset"], part["size"]])
            listed.unlink()
        _put_json(folder / INDEX, {"format": FORMAT, "world": self.world, "tensors": tensors})
        digests[INDEX] = seal.digest(folder / INDEX)
        seal.write_state(folder, {"step": step, **state}, digests)
        seal.put_in_place(folder, self.run / f"step-{step:06d}", step, self.keep)


class Reader:
    """The tensors of a snapshot's `folder`, by kind and name, of which any slice can be read.

    Reads what `Writer` and `m27.train.checkpoint.save` wrote. Raises PartsError for a file that is missing
    or broken and for a tensor whose parts do not make up the whole.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[str, Any] = {}
        self._parts: dict[str, list[tuple[str, str, list[int], list[int]]]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        if (folder / INDEX).is_file():
            self._read_index()
            return
        for path in sorted(folder.glob("*.safetensors")):
            file = self._file(path.name)
            for name in file.keys():  # noqa: SIM118 - no mapping
                key, shape = f"{path.stem}/{name}", list(file.get_slice(name).get_shape())
                self.shapes[key] = tuple(shape)
                self._parts[key] = [(path.name, name, [0] * len(shape), shape)]

    def _read_index(self) -> None:
        path = self.folder / INDEX
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
            if index["format"] != FORMAT:
                raise PartsError(f"{path}: is of format {index['format']!r}, not {FORMAT!r}")
            for key, whole in index["tensors"].items():
                self.shapes[key] = tuple(map(int, whole["shape"]))
                self._parts[key] = [
                    (str(name), key, [int(n) for n in offset], [int(n) for n in size])
                    for name, offset, size in whole["parts"]
                ]
        except (OSError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, PartsError):
                raise
            raise PartsError(f"{path}: not an index of parts ({error!r})") from None
        for parts in self._parts.values():
            for name, *_ in parts:
                if Path(name).name != name:
                    raise PartsError(f"{path}: {name!r} is not the name of a file beside it")

    def _file(self, name: str) -> Any:
        if name not in self._open:
            try:
                self._open[name] = safe_open(self.folder / name, framework="pt")
            except (OSError, SafetensorError) as error:
                raise PartsError(f"{self.folder / name}: {error}") from None
        return self._open[name]

    def names(self, kind: str) -> Iterator[str]:
        """The names of the tensors of a kind."""
        return (key.partition("/")[2] for key in self.shapes if key.startswith(f"{kind}/"))

    def read(self, kind: str, name: str, place_of: PlaceOf | None = None) -> Tensor:
        """A tensor, or the part of it that `place_of` says."""
        key = f"{kind}/{name}"
        shape = self.shapes[key]
        place = Place.all_of(shape) if place_of is None else place_of(name, shape)
        if place.shape != shape:
            raise PartsError(
                f"{self.folder}: {name} is {list(shape)}, the run has {list(place.shape)}"
            )
        out: Tensor | None = None
        covered = 0
        for file, inside, offset, size in self._parts[key]:
            begins = [max(a, b) for a, b in zip(place.offset, offset, strict=True)]
            ends = [
                min(a + n, b + m)
                for a, n, b, m in zip(place.offset, place.size, offset, size, strict=True)
            ]
            if any(begin >= end for begin, end in zip(begins, ends, strict=True)):
                continue
            found = self._slice(file, inside, size, offset, begins, ends)
            if out is None:
                out = found if found.shape == place.size else found.new_empty(place.size)
            if out is not found:
                to = tuple(
                    slice(b - o, e - o) for b, e, o in zip(begins, ends, place.offset, strict=True)
                )
                out[to] = found
            covered += found.numel()
        if out is None and 0 in place.size:
            return torch.empty(place.size)
        if out is None or covered != out.numel():
            raise PartsError(f"{self.folder}: the parts of {name} do not make up the whole")
        return out

    def _slice(
        self, file: str, key: str, size: list[int], offset: list[int], begins: list[int], ends: list[int]
    ) -> Tensor:
        try:
            if not size:
                whole: Tensor = self._file(file).get_tensor(key)
                return whole
            held = self._file(file).get_slice(key)
            if list(held.get_shape()) != size:
                raise PartsError(f"{self.folder / file}: {key} is not of the size that {INDEX} says")
            at = tuple(
                slice(b - o, e - o) for b, e, o in zip(begins, ends, offset, strict=True)
            )
            found: Tensor = held[at]
            return found
        except SafetensorError as error:
            raise PartsError(f"{self.folder / file}: {key}: {error}") from None

    def close(self) -> None:
        """Close the files."""
        self._open.clear()


def _put_json(path: Path, value: Mapping[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}")
    seal.write(temporary, json.dumps(value).encode())
    os.replace(temporary, path)
