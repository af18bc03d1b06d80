"""Snapshot folders: known by their digests, settled on the disk, put in place whole, and pruned.

What is in them is the matter of `m27.train.checkpoint` and `m27.train.sharded_checkpoint`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_NAME = re.compile(r"step-(\d{6,})")


def digest(path: Path) -> str:
    """What a file is known by. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def seal(state: Mapping[str, Any]) -> str:
    """What a state is known by: the digest of its JSON."""
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()[:16]


def write(path: Path, content: bytes) -> None:
    """Write a file, onto the disk."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def settle(path: Path) -> None:
    """Have what was written to a file or folder on the disk before what follows."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_state(folder: Path, state: Mapping[str, Any], digests: Mapping[str, str]) -> None:
    """Write state.json with the digests of the files beside it, and its own seal."""
    whole = {**state, "files": dict(digests)}
    write(folder / "state.json", json.dumps({**whole, "seal": seal(whole)}).encode())


def put_in_place(partial: Path, final: Path, step: int, keep: int) -> None:
    """Give a folder that is whole its name, and remove all snapshots but the `keep` newest up to `step`."""
    settle(partial)
    remove(final)
    os.replace(partial, final)
    settle(final.parent)
    # Also those of later steps: they were damaged, or the run would have gone on from them.
    have = steps(final.parent)
    kept = [folder for number, folder in have if number <= step][-max(keep, 1) :]
    for _, folder in have:
        if folder not in kept:
            remove(folder)


def remove(folder: Path) -> None:
    """Remove a snapshot, which from the first moment on is none any more."""
    if folder.is_dir():
        gone = folder.with_name(f".{folder.name}.gone")
        os.replace(folder, gone)
        shutil.rmtree(gone, ignore_errors=True)


def sweep(run: Path) -> None:
    """Remove what was cut off while it was written, by processes that were killed."""
    if run.is_dir():
        for left in run.glob(".step-*"):
            shutil.rmtree(left, ignore_errors=True)


def steps(run: Path) -> list[tuple[int, Path]]:
    """The (step, folder) of each whole snapshot under `run`, oldest first."""
    if not run.is_dir():
        return []
    found = [(match, path) for path in run.iterdir() if (match := _NAME.fullmatch(path.name))]
    return sorted((int(match[1]), path) for match, path in found)
