"""Features of a folder's files, kept as they come so that a run goes on where it was ended; and stored ones, as read.

A stored set is a `.npy` [N, F], a `.safetensors` (its tensor `features`, or the only one), a folder of those that this
module wrote, or a `.npz` with `mu` and `sigma`, the form in which statistics of reference sets are handed around.

Shapes: N rows, F features.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from m27.data.progress import Progress
from m27.eval.encoders import Encoder, Features
from m27.eval.scorers.frechet import Gaussian, Stream

FILES = 512  # of one shard
STORED = (".npy", ".npz", ".safetensors")


class FeaturesError(ValueError):
    """A set whose features cannot be had; the message names it."""


def is_stored(path: Path) -> bool:
    """Whether it holds features rather than media."""
    return path.suffix in STORED if path.is_file() else any(path.glob("features-*.safetensors"))


def media_files(folder: Path, endings: Sequence[str]) -> list[Path]:
    """The files below a folder in order of their names. Raises FeaturesError where there is none."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in endings and p.is_file())
    if not files:
        raise FeaturesError(f"{folder}: no file here that ends in {', '.join(endings)}")
    return files


def looked(files: Sequence[Path], encoder: Encoder, out: Path, label: str) -> Stream:
    """All files' features, those that `out` has of the same files and encoder being read from there."""
    stream = Stream()
    with Progress(f"{label}: looking" if ".png" in encoder.endings else f"{label}: listening", len(files)) as bar:
        for start in range(0, len(files), FILES):
            some = files[start : start + FILES]
            about = {"encoder": encoder.name, "seen": encoder.seen, "files": _hash(some)}
            path = out / f"features-{start // FILES:05d}.safetensors"
            if not path.is_file() or _about(path) != about:
                rows = []
                for each in encoder.features(some):
                    rows.append(each)
                    bar.add()
                _keep(path, rows, about)
            else:
                bar.add(len(some))
            for sample in _samples(path):
                stream.add(sample)
    for more in sorted(out.glob("features-*.safetensors"))[-(-len(files) // FILES) :]:
        more.unlink()  # of a run of more files
    return stream


def _keep(path: Path, rows: Sequence[Features], about: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    counts = np.array([len(each) for each in rows])
    save_file({"features": np.concatenate(rows), "rows": counts}, partial, about)
    os.replace(partial, path)


def stored(path: Path) -> tuple[Stream | Gaussian, str]:
    """A stored set, and who looked, where the file says it. Raises FeaturesError."""
    if path.suffix == ".npz":
        return _statistics(path), ""
    stream = Stream()
    if path.suffix == ".npy":
        try:
            rows = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise FeaturesError(f"{path}: is no .npy file of numbers ({error})") from error
        _add(stream, rows, path)
        return stream, ""
    shards = [path] if path.is_file() else sorted(path.glob("features-*.safetensors"))
    who = {json.dumps([_about(shard).get(name, "") for name in ("encoder", "seen")]) for shard in shards}
    if len(who) > 1:
        raise FeaturesError(f"{path}: holds features of several encoders")
    for shard in shards:
        for sample in _samples(shard):
            stream.add(sample)
    encoder, seen = json.loads(who.pop())
    return stream, f"{encoder}; {seen}" if encoder else ""


def _statistics(path: Path) -> Gaussian:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            mean, covariance = (np.asarray(arrays[name], np.float64) for name in ("mu", "sigma"))
    except (ValueError, OSError, KeyError, zipfile.BadZipFile) as error:
        raise FeaturesError(f"{path}: is no .npz file with mu and sigma ({error})") from error
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise FeaturesError(f"{path}: mu {list(mean.shape)} and sigma {list(covariance.shape)} do not fit")
    return Gaussian(mean, covariance)


def _samples(path: Path) -> Iterator[npt.NDArray[Any]]:
    """The rows of each sample of a shard; of a file without `rows` each row is a sample."""
    try:
        with safe_open(path, framework="numpy") as shard:
            every = list(shard.keys())
            names = [name for name in every if name != "rows"]
            name = "features" if "features" in names else names[0] if len(names) == 1 else None
            if name is None:
                raise FeaturesError(f"{path}: has no tensor called features (has {', '.join(names) or 'none'})")
            rows: Features = shard.get_tensor(name)
            counts = shard.get_tensor("rows") if "rows" in every else np.ones(len(rows), int)
    except (SafetensorError, OSError, TypeError, AttributeError) as error:
        raise FeaturesError(f"{path}: is no safetensors file of features ({error})") from error
    if rows.ndim != 2 or counts.sum() != len(rows):
        raise FeaturesError(f"{path}: features are [N, F], not {list(rows.shape)}")
    yield from np.split(rows, np.cumsum(counts)[:-1])


def _add(stream: Stream, rows: npt.NDArray[Any], path: Path) -> None:
    if rows.ndim != 2 or rows.dtype.kind not in "fiu":
        raise FeaturesError(f"{path}: features are numbers [N, F], not {rows.dtype} {list(rows.shape)}")
    for row in rows:
        stream.add(row)


def _about(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="numpy") as shard:
            return dict(shard.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise FeaturesError(f"{path}: is no safetensors file ({error})") from error


def _hash(files: Sequence[Path]) -> str:
    """Of names and contents: a file that was drawn again is looked at again."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]
