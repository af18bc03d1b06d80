"""Rows of results: what was measured, with everything needed to measure it again, as JSON and as a
table.

A row without its seed, commit, weights and data is a rumour; `Origin` holds those. Knows no task.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from m27 import __version__


@dataclass(frozen=True)
class Origin:
    """Where a figure comes from. `weights`, `data` and the others are the first 12 hex digits of a sha256: `reads` is
    `reading_revision`, `image` and `audio` are the codecs' files; "" where nobody looked."""

    seed: int
    commit: str
    weights: str
    reads: str = ""
    image: str = ""
    audio: str = ""
    torch: str = torch.__version__
    m27: str = __version__


@dataclass(frozen=True)
class Row:
    """One result. `score`, `low`, `high`, `chance`, `frequent` and `by_kind` are shares (0 to 1)
    or, where `unit` says so, other numbers; `frequent` is what the best constant answer gets on
    these very samples, `by_kind` what the best constant answer to each kind of question gets; None:
    not defined. `passed` says whether the bar of the task is met, `goal` whether what is hoped for
    beyond it is, and `decodes` the medium whose decoder the score hangs on, "" for none."""

    task: str
    n: int
    score: float
    low: float
    high: float
    chance: float | None
    frequent: float | None
    by_kind: float | None
    passed: bool
    bar: str
    data: str
    seconds: float
    origin: Origin
    unit: str = "share"
    note: str = ""
    goal: bool = False
    decodes: str = ""

    def to_json(self) -> dict[str, Any]:
        """A flat dict of plain values, `origin` merged in; `weights` is the weights' revision."""
        fields = asdict(self)
        origin: dict[str, Any] = fields.pop("origin")
        return fields | origin


def bars(
    score: float, floor: float, goal: float, lower: bool = False, unit: str = "share"
) -> tuple[bool, bool, str]:
    """Whether a score meets its floor and its goal, and both in words: "floor 50 %, goal 85 %".

    With `lower` less is better. Shares are told in per cent, other units as they are.
    """
    met = [score <= level if lower else score >= level for level in (floor, goal)]
    said = [f"{100 * x:g} %" if unit == "share" else f"{x:g}" for x in (floor, goal)]
    words = f"{'at most' if lower else 'floor'} {said[0]}" + (
        f", goal {said[1]}" if goal != floor else ""
    )
    return met[0], met[1], words


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table, aligned so that it also reads well in a terminal."""
    head = [
        "task",
        "n",
        "score",
        "95 % interval",
        "chance",
        "most frequent",
        "by kind",
        "bar",
        "met",
    ]
    body = [head]
    for row in rows:
        interval = f"{_figure(row.low, row.unit)} – {_figure(row.high, row.unit)}"
        others = [_figure(x, row.unit) for x in (row.chance, row.frequent, row.by_kind)]
        met = "yes" if row.passed else "**no**"
        score = _figure(row.score, row.unit)
        body.append([row.task, str(row.n), score, interval, *others, row.bar, met])
    widths = [max(len(line[i]) for line in body) for i in range(len(head))]
    numeric = {1, 2, 3, 4, 5, 6}
    lines = [
        "| " + " | ".join(
            cell.rjust(width) if i in numeric else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ) + " |"
        for line in body
    ]  # fmt: skip
    rule = "|" + "|".join(
        "-" * (w + 1) + ":" if i in numeric else "-" * (w + 2) for i, w in enumerate(widths)
    )
    return "\n".join([lines[0], rule + "|", *lines[1:]])


def _figure(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.1f} %" if unit == "share" else f"{value:.3f}"


def write_jsonl(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line, under a temporary name first; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    partial.write_text("".join(lines), encoding="utf-8")
    os.replace(partial, path)


def commit(root: Path | None = None) -> str:
    """The commit of the checkout that holds this code, "+" behind it if files differ; "unknown"
    outside git."""
    root = root or Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=True, timeout=30
        )
        return done.stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + (
            "+" if git("status", "--porcelain", "-uno") else ""
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def files_hash(paths: Iterable[Path]) -> str:
    """12 hex digits of the sha256 over names and contents of files, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(paths, key=lambda p: p.name):
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:12]


CODECS = {"image": "image_codec.safetensors", "audio": "audio_codec.safetensors"}
_MAKERS = ("decoder.", "refiner.")  # tensors of a codec that act on codes, and so on no code
_BESIDE = ("regression.safetensors", "importance.safetensors")


def weights_revision(folder: Path, adapter: Path | None = None) -> str:
    """The revision of a folder of weights: `files_hash` of its safetensors and tokenizer, then + that of an adapter.

    What lies beside the weights is not counted: the set that fine-tuning watches, and what 4 bits are rounded by.
    """
    return _with_adapter(files_hash(_weights(folder)), adapter)


def _weights(folder: Path) -> list[Path]:
    """The files that a folder's revision is made of."""
    weights = [path for path in folder.glob("*.safetensors") if path.name not in _BESIDE]
    return [*weights, *folder.glob("tokenizer.json")]


def _with_adapter(own: str, adapter: Path | None) -> str:
    return own if adapter is None else f"{own}+{files_hash(adapter.glob('adapter_*'))}"


def reading_revision(folder: Path, adapter: Path | None = None) -> str:
    """The revision of what decides which ids are answered: `weights_revision` but for the codecs' decoders.

    Where it stays, every figure stays that is about ids alone.
    """
    digest = hashlib.sha256()
    whole = [path for path in _weights(folder) if path.name not in CODECS.values()]
    digest.update(files_hash(whole).encode())
    for name in CODECS.values():
        if (folder / name).is_file():
            digest.update(name.encode())
            for part in _kept_tensors(folder / name):
                digest.update(part)
    return _with_adapter(digest.hexdigest()[:12], adapter)


def origin(folder: Path, seed: int, adapter: Path | None = None) -> Origin:
    """Where figures of a folder of weights come from, with the code as it is."""
    media = {kind: files_hash([folder / name]) for kind, name in CODECS.items() if (folder / name).is_file()}
    weights, reads = weights_revision(folder, adapter), reading_revision(folder, adapter)
    return Origin(seed, commit(), weights, reads, **media)


def holds_for(row: Mapping[str, Any], held: Origin) -> bool:
    """Whether a row of results still holds for weights: its own, or such as differ only in a codec's decoder that
    the row's score does not hang on."""
    if row["weights"] == held.weights:
        return True
    medium = row.get("decodes")
    if medium is None or row.get("reads") != held.reads:
        return False
    return medium == "" or row.get(medium) == getattr(held, medium)


def _kept_tensors(path: Path) -> Iterator[bytes]:
    """Names, types, shapes and bytes of a codec's tensors that decide codes, in the order of their names; the whole
    of a file in which no tensors are found by name."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header: dict[str, Any] = json.loads(file.read(min(length, 100_000_000)))
        except ValueError:
            file.seek(0)
            yield file.read()
            return
        for name in sorted(set(header) - {"__metadata__"}):
            if name.startswith(_MAKERS):
                continue
            first, end = header[name]["data_offsets"]
            file.seek(8 + length + first)
            yield f"{name}|{header[name]['dtype']}|{header[name]['shape']}|".encode()
            yield file.read(end - first)
