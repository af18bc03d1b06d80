"""FID and FAD: how far generated pictures or sounds are from a set of real ones → a row that says who looked, and how.

`m27 eval GENERATED --against REFERENCE --metric fid`. Either side is a folder of files or stored features
(`m27.eval.features`). The distance and its interval are those of `m27.eval.scorers.frechet`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from m27 import __version__
from m27.eval.encoders import Encoder
from m27.eval.features import FeaturesError, is_stored, looked, media_files, stored
from m27.eval.report import commit, files_hash, write_jsonl
from m27.eval.scorers.frechet import SCORER, FrechetError, Gaussian, Stream, estimate

METRICS = {"fid": "Fréchet distance of pictures", "fad": "Fréchet distance of sounds"}


@dataclass(frozen=True)
class Side:
    """One of the two sets, looked at: its features, the hash of what they came from, by whom where that is known, and
    on which device where it was now."""

    path: Path
    features: Stream | Gaussian
    revision: str
    by: str
    device: str | None = None

    @property
    def samples(self) -> int | None:
        """Pictures or sounds, None where only mean and covariance are known."""
        return self.features.samples if isinstance(self.features, Stream) else None


def fidelity(
    metric: str,
    generated: Path,
    reference: Path,
    encoder: Callable[[], Encoder],
    out: Path,
    *,
    most: int | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """The row, which is also written to `out` with the features of every file. `encoder` is opened where a folder of
    files is to be looked at; `most` files of each side. Raises FeaturesError, EncoderError or FrechetError."""
    opened: list[Encoder] = []
    sides = []
    for path, name in ((generated, "generated"), (reference, "reference")):
        try:
            if is_stored(path):
                features, by = stored(path)
                shards = [path] if path.is_file() else list(path.glob("features-*.safetensors"))
                sides.append(Side(path, features, files_hash(shards), by))
                continue
            if not opened:
                opened.append(encoder())
            files = media_files(path, opened[0].endings)[:most]
            stream = looked(files, opened[0], out / name, name)
        except FrechetError as error:
            raise FrechetError(f"{path}: {error}") from error
        by = f"{opened[0].name}; {opened[0].seen}"
        sides.append(Side(path, stream, files_hash(files), by, opened[0].device))
    if sides[0].by and sides[1].by and sides[0].by != sides[1].by:
        raise FeaturesError(
            f"{generated} was looked at by {sides[0].by}, {reference} by {sides[1].by}: features of two kinds differ"
        )
    row = _row(metric, sides[0], sides[1])
    write_jsonl(out / "rows.jsonl", [row])
    say(line(row))
    return row


def _row(metric: str, generated: Side, reference: Side) -> dict[str, Any]:
    found = estimate(generated.features, reference.features)
    wholes = [side.features for side in (generated, reference)]
    rows = [sum(g.n for g in one.groups()) if isinstance(one, Stream) else one.n for one in wholes]
    size = len(wholes[0].groups()[0].mean_F if isinstance(wholes[0], Stream) else wholes[0].mean_F)
    device = generated.device or reference.device
    return {
        "task": f"{generated.path.name} against {reference.path.name}", "metric": metric, "says": METRICS[metric],
        "score": found.distance, "low": found.low, "high": found.high, "lower_is_better": True, "share": False,
        "figures": {} if found.extrapolated is None else {"extrapolated": found.extrapolated},
        "n": generated.samples, "n_reference": reference.samples, "rows": rows[0], "rows_reference": rows[1],
        "features": size, "encoder": generated.by or reference.by or "unknown: features were given",
        "interval": "jackknife over ten groups of samples, both sets at once",
        "notes": _notes(rows, size, generated, reference),
        "data_revision": generated.revision, "reference_revision": reference.revision,
        "library": f"m27 {__version__}, numpy {np.__version__}" + (f", torch {torch.__version__}" if device else ""),
        "scorer": SCORER, "commit": commit(), "device": device or "cpu",
        "precision": "float32 features, float64 sums",
    }  # fmt: skip


def _notes(rows: list[int | None], size: int, generated: Side, reference: Side) -> list[str]:
    notes = []
    for n, name in zip(rows, ("generated", "reference"), strict=True):
        if n is not None and n <= size:
            notes.append(
                f"{name}: {n} rows of {size} features, so the covariance has not its full rank and the distance is far "
                "too large; compare only with figures of as many"
            )
    for side, name in ((generated, "generated"), (reference, "reference")):
        if not side.by:
            notes.append(f"{name}: features were given, and who looked is not known")
        if side.samples is None:
            notes.append(f"{name}: only mean and covariance are given, so its own chance is not in the interval")
    return notes


def line(row: dict[str, Any]) -> str:
    """A row in words: the figure, then who looked, then what must be said of it."""
    interval = "" if row["low"] is None else f" (95 %: {row['low']:.3f} to {row['high']:.3f})"
    sizes = " and ".join("statistics" if n is None else str(n) for n in (row["n"], row["n_reference"]))
    told = [f"{name} {value:.3f}" for name, value in row["figures"].items()]
    head = f"{row['task']} {row['metric']}: {row['score']:.3f}{interval}, n {sizes}, less is better"
    return "\n  ".join([head, *told, f"by {row['encoder']}", *row["notes"]])
