"""Pictures that look alike: a perceptual signature, and the list of what must leave training.

A signature is the picture, alpha on white, squeezed to 16×16 RGB. Two pictures are alike when
their signatures correlate by at least `CORRELATION` and differ by at most `DIFFERENCE` of 255
levels (root mean square). Correlation, because pale line drawings on white differ little although
nothing in them is the same. The list is shipped as `near_duplicates.txt`; a test checks it.

    python -m m27.data.likeness

writes it anew, from every picture source (minutes the first time, while signatures are made).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m27.data import holdout, registry
from m27.data.progress import track
from m27.data.sources.base import Item, split

SIDE = 16
CORRELATION = 0.93
DIFFERENCE = 25.0
_BLOCK = 2048


def signature(item: Item) -> NDArray[np.uint8]:
    """uint8 [16, 16, 3] of an item's picture; MediaError where it cannot be read."""
    from PIL import Image

    from m27.codec import media

    rgb = media.read_image(item.image or b"")
    squeezed = Image.fromarray(rgb).resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(squeezed, dtype=np.uint8)


def signatures(source: str, items: Iterable[Item]) -> dict[str, NDArray[np.uint8]]:
    """Content hash → signature of every picture of a source, kept in the cache folder."""
    path = registry.cache_folder() / "likeness" / f"{source}.npz"
    known: dict[str, NDArray[np.uint8]] = {}
    if path.exists():
        with np.load(path, allow_pickle=False) as file:
            known = dict(zip(file["hashes"].tolist(), file["signatures"], strict=True))
    found: dict[str, NDArray[np.uint8]] = {}
    for item in track(items, f"signatures of {source}"):
        if item.image is not None:
            digest = item.content_hash
            found[digest] = known[digest] if digest in known else signature(item)
    if found.keys() != known.keys():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{source}.{os.getpid()}.tmp.npz")
        np.savez(temporary, hashes=np.array(list(found)), signatures=np.stack(list(found.values())))
        os.replace(temporary, path)
    return found


def alike(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> Iterator[tuple[int, int, float]]:
    """Pairs (i, j, correlation) of signatures left[i] [M, 16, 16, 3] and right[j] that are alike.

    Candidates come from 8×8 means, in blocks, as all pairs at full size would be slow.
    """
    a, b = _coarse(left), _coarse(right)
    for start in range(0, len(a), _BLOCK):
        close = a[start : start + _BLOCK] @ b.T >= CORRELATION
        for row, column in zip(*np.nonzero(close), strict=True):
            i, j = start + int(row), int(column)
            x, y = left[i].astype(np.float32).ravel(), right[j].astype(np.float32).ravel()
            if float(np.sqrt(np.mean((x - y) ** 2))) > DIFFERENCE:
                continue
            x, y = x - x.mean(), y - y.mean()
            correlation = float(x @ y) / max(1e-6, float(np.sqrt((x @ x) * (y @ y))))
            if correlation >= CORRELATION:
                yield i, j, correlation


def _coarse(signatures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """8×8 means of signatures [M, 16, 16, 3], centred and of unit length: float32 [M, 192]."""
    half = SIDE // 2
    blocks = signatures.reshape(-1, half, 2, half, 2, 3).astype(np.float32)
    flat = blocks.mean(axis=(2, 4)).reshape(len(signatures), -1)
    flat -= flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.ascontiguousarray(flat / np.maximum(length, 1e-3), dtype=np.float32)


def find() -> dict[str, tuple[str, str]]:
    """Content hash of a train picture that is alike a test picture → (its key, that one's key)."""
    from m27.data.sources import fluent
    from m27.data.sources.pictures import SOURCES

    # The 28×28 sources are left out: half of all shirts are alike at this size.
    searched = {**SOURCES, fluent.NAME: fluent.items}
    sides: dict[str, tuple[list[str], list[str], list[NDArray[np.uint8]]]] = {
        side: ([], [], []) for side in ("train", "test")
    }
    for source, items in searched.items():
        every = signatures(source, items())
        for item in items():
            if item.image is None:
                continue
            digest = item.content_hash
            keys, hashes, images = sides["test" if split(item) == "test" else "train"]
            keys.append(item.key)
            hashes.append(digest)
            images.append(every[digest])
    (train_keys, train_hashes, train), (test_keys, test_hashes, test) = (
        sides["train"],
        sides["test"],
    )
    held = dict(zip(test_hashes, test_keys, strict=True))
    found = {h: (k, held[h]) for k, h in zip(train_keys, train_hashes, strict=True) if h in held}
    for i, j, _ in alike(np.stack(train), np.stack(test)):
        found.setdefault(train_hashes[i], (train_keys[i], test_keys[j]))
    return found


def write(path: Path = holdout.NEAR_DUPLICATES) -> int:
    """Find them and write the shipped list; returns how many there are."""
    found = find()
    lines = ["# content hash, picture left out of training, held-out picture it looks like"]
    lines += [f"{digest} {a} {b}" for digest, (a, b) in sorted(found.items(), key=lambda x: x[1])]
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text("\n".join(lines) + "\n")
    os.replace(temporary, path)
    return len(found)


if __name__ == "__main__":
    print(f"{holdout.NEAR_DUPLICATES}: {write():,} pictures")
