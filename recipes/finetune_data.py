"""The user's files → shards to train on and to measure with; every record that cannot be used is named.

    OUT/data/train, OUT/data/held-out, OUT/data/regression    token shards
    OUT/data/held-out.jsonl                                   which records were held out
    OUT/data/source.json                                      what the shards were made from

What a record shows decides its side (`m27.data.split`), so the same picture is never on both, and adding
records moves none.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from m27.cli.console import InputError
from m27.codec.media import write_atomic
from m27.data import importers
from m27.data.build import ShardError, build, is_current
from m27.data.check import BadRecordsError, Report, usable
from m27.data.coded import CodeCache, Coder
from m27.data.mixture import Corpus
from m27.data.regression import NAME, unpack
from m27.data.sources.base import Document
from m27.data.split import content, split
from m27.language.processor import Processor
from m27.runtime import cache_folder

TASK = "finetune"
SHOWN = 200  # bad records that are named; the rest are counted


@dataclass(frozen=True)
class Given:
    """The user's files and how they are read; see `m27.data.importers.open` and `m27.data.split`."""

    paths: Sequence[Path]
    kind: str = "auto"
    direction: str = "both"
    prompt: str = ""
    val: str = "0.1"
    seed: int = 0
    max_tokens: int = 2048
    skip_bad: bool = False
    threads: int = 1  # pictures and sounds are coded by as many workers


@dataclass
class Prepared:
    """What there is to train on; `digest` tells it from other data."""

    train: Corpus
    held_out: Corpus
    regression: Corpus | None
    held_documents: list[Document]
    digest: str
    skipped: int = 0
    notes: list[str] = field(default_factory=list)


def prepare(given: Given, processor: Processor, base: Path, folder: Path) -> Prepared:
    """Read, check, split and encode; see the module. Raises InputError and CheckError."""
    documents, skipped = read(given.paths, given, processor)
    share = _share(given.val)
    if share is None:
        train = documents
        held, more = read([Path(given.val)], given, processor)
        skipped += more
    else:
        sides = split(documents, share, given.seed)
        train, held = list(sides.train), list(sides.held_out)
        if not held:
            raise InputError("all records show the same thing, so none can be held out; give --val FILE")
    given_digest = digest(train, held)
    shards: list[Corpus] = []
    coder = Coder(processor, CodeCache(cache_folder() / "codes"), given.threads)
    noted = folder / "source.json"
    same = noted.is_file() and json.loads(noted.read_text(encoding="utf-8")) == given_digest
    for name, side in (("train", train), ("held-out", held)):
        if same and is_current(folder / name, processor):  # of a run that was stopped
            shards.append(Corpus([folder / name]))
            continue
        try:
            meta = build(
                ({**document, "task": TASK} for document in side), processor, folder / name,
                max_tokens=given.max_tokens, total=len(side), label=f"tokens ({name})",
                coder=coder,
            )  # fmt: skip
        except ShardError as error:
            raise InputError(str(error)) from None
        if left := [*meta["reasons"], *(f"{meta[k]} {k}" for k in ("long", "empty") if meta[k])]:
            raise InputError(f"what was good before is no longer: {'; '.join(left)}")
        shards.append(Corpus([folder / name]))
    lines = [json.dumps({"id": document["id"]}, ensure_ascii=False) for document in held]
    write_atomic(folder / "held-out.jsonl", ("\n".join(lines) + "\n").encode())
    write_atomic(noted, json.dumps(given_digest).encode())
    regression, notes = _regression(base, folder / "regression", processor)
    train_shard, held_shard = shards
    return Prepared(train_shard, held_shard, regression, held, given_digest, skipped, notes)


def read(
    paths: Sequence[Path], given: Given, processor: Processor
) -> tuple[list[Document], int]:
    """The documents of all good records, and how many records were left out.

    Raises InputError where one is bad and none may be skipped, having named each on standard error.
    """
    documents: list[Document] = []
    reports: list[Report] = []
    for path in paths:
        source = importers.open(
            path, given.kind, direction=given.direction, prompt=given.prompt, seed=given.seed
        )
        if source.kind == "preferences":
            raise InputError(f"{path}: holds preferences; `m27 finetune` learns from answers alone")
        try:
            # All of them are looked at before any is refused, so that one call names every fault.
            found, report = usable(
                source, given.skip_bad, processor=processor, max_tokens=given.max_tokens
            )
            documents += found
        except BadRecordsError as error:
            report = error.report
        reports.append(report)
    bad = [str(problem) for report in reports for problem in report.problems]
    for line in bad[:SHOWN]:
        print(line, file=sys.stderr)
    if len(bad) > SHOWN:
        print(f"… and {len(bad) - SHOWN} more", file=sys.stderr)
    if bad and not given.skip_bad:
        count = sum(report.records for report in reports)
        raise InputError(
            f"{len(bad):,} of {count:,} records are bad; nothing was trained (--skip-bad goes on without them)"
        )
    return documents, len(bad)


def digest(train: Sequence[Document], held: Sequence[Document]) -> str:
    """What is trained on and measured with, in 16 hex digits: words, bytes of media, and sides."""
    found, files = hashlib.sha256(), dict[str, str]()
    for side in (train, held):
        found.update(b"side")
        for document in side:
            content(document, files)
            found.update(json.dumps(_spelled(document["messages"], files), sort_keys=True).encode())
    return found.hexdigest()[:16]


def _spelled(value: Any, files: Mapping[str, str]) -> Any:
    """Messages as JSON values, a file or an array by its hash."""
    if isinstance(value, Mapping):
        return {
            key: files.get(str(part), str(part)) if key == "path" else _spelled(part, files)
            for key, part in value.items()
        }
    if isinstance(value, list | tuple):
        return [_spelled(part, files) for part in value]
    if isinstance(value, bytes | np.ndarray):
        data = value if isinstance(value, bytes) else np.ascontiguousarray(value).tobytes()
        return hashlib.sha256(data).hexdigest()
    return value


def _share(val: str) -> float | None:
    """The share held out, or None for a file. Raises InputError."""
    try:
        share = float(val)
    except ValueError:
        if not Path(val).exists():
            raise InputError(f"--val {val}: is neither a share nor a file") from None
        return None
    if not 0 < share < 1:
        raise InputError(f"--val {val}: must lie between 0 and 1, or name a file")
    return share


def _regression(base: Path, folder: Path, processor: Processor) -> tuple[Corpus | None, list[str]]:
    """The base's own set, or why there is none."""
    if not (base / NAME).is_file():
        return None, [
            (f"{base} has no {NAME}: what it may have forgotten is not measured "
            "(`python -m recipes.regression --out FOLDER` makes one)")
        ]
    if not unpack(base / NAME, folder, processor):
        return None, [f"{base / NAME} was made with another vocabulary or codecs: it is not used"]
    return Corpus([folder]), []
