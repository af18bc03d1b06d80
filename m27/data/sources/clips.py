"""A repeatable store of mono 16 kHz clips: rendered or decoded once, then read from one memory map.

Does: keep every clip of a source as 16-bit samples in one flat file beside one JSON line a clip, so
that the second pass over a source costs a file read. Two builders at once are safe: the folder
appears by one rename. Does not know: where clips come from, or which side of the hold-out they are
on (a source writes that in `meta`).

Shapes: T samples of one clip.
"""

import hashlib
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m27.codec.media import resample
from m27.data.progress import track
from m27.data.registry import cache_folder
from m27.data.sources.base import Item, Side, SourceError

Samples = NDArray[np.float32]
RATE = 16_000
"""Samples a second of every clip in this project."""


def level(samples_T: Samples, rms: float = 0.1, peak: float = 0.9) -> Samples:
    """The clip without offset, at one loudness: `rms` over its louder half, peaks kept under
    `peak`. Silence stays silence.
    """
    wave = np.asarray(samples_T, dtype=np.float32)
    if wave.size == 0:
        return wave
    wave = wave - np.float32(wave.mean(dtype=np.float64))
    frames = wave[: wave.size // 160 * 160].reshape(-1, 160) if wave.size >= 160 else wave[None]
    power = np.sort((frames.astype(np.float64) ** 2).mean(axis=1))
    loud = float(np.sqrt(power[power.size // 2 :].mean()))
    top = float(np.abs(wave).max())
    if loud < 1e-6 or top < 1e-6:
        return wave
    return (wave * min(rms / loud, peak / top)).astype(np.float32)


def trim(samples_T: Samples, floor: float = 0.03, margin: float = 0.05) -> Samples:
    """Cut silence (10 ms frames under `floor` of the loudest frame) from both ends, leaving
    `margin` seconds.
    """
    wave = np.asarray(samples_T, dtype=np.float32)
    if wave.size < 480:
        return wave
    frames = np.abs(wave[: wave.size // 160 * 160].reshape(-1, 160)).max(axis=1)
    loud = np.flatnonzero(frames >= floor * frames.max())
    first, last = int(loud[0]) * 160, (int(loud[-1]) + 1) * 160
    pad = int(margin * RATE)
    return wave[max(0, first - pad) : min(wave.size, last + pad)]


def fade(samples_T: Samples, seconds: float = 0.01) -> Samples:
    """Copy with both ends faded over `seconds`, so that a cut makes no click."""
    wave = np.array(samples_T, dtype=np.float32)
    n = min(int(seconds * RATE), wave.size // 2)
    if n:
        ramp = np.linspace(0.0, 1.0, n, dtype=np.float32)
        wave[:n] *= ramp
        wave[-n:] *= ramp[::-1]
    return wave


def warp(samples_T: Samples, factor: float) -> Samples:
    """The clip played `factor` times as fast, thus higher: nearly another speaker, for nothing."""
    return fade(resample(samples_T, round(RATE * factor), RATE), 0.002)


def loudest(samples_T: Samples, seconds: float) -> Samples:
    """The window of at most `seconds` that holds the most energy, faded at its ends; shorter clips
    come back whole.
    """
    wave = np.asarray(samples_T, dtype=np.float32)
    n = int(seconds * RATE)
    if wave.size <= n:
        return wave
    total = np.concatenate([[0.0], np.cumsum(wave.astype(np.float64) ** 2)])
    starts = np.arange(0, wave.size - n + 1, 400)
    start = int(starts[np.argmax(total[starts + n] - total[starts])])
    return fade(wave[start : start + n])


def on_side(items: Iterable[Item], side: Side) -> Iterator[Item]:
    """Items of one side. Every source of sound names the side itself, in `meta["split"]`."""
    return (item for item in items if item.meta["split"] == side)


def some_window(samples_T: Samples, seconds: float, rng: random.Random) -> Samples:
    """A random window of `seconds` that is not near-silent beside the loudest one, faded."""
    n = int(seconds * RATE)
    if samples_T.size <= n:
        return samples_T
    best = loudest(samples_T, seconds)
    for _ in range(8):
        start = rng.randrange(samples_T.size - n + 1)
        window = fade(samples_T[start : start + n])
        if float((window**2).sum()) >= 0.3 * float((best**2).sum()):
            return window
    return best


def digest(spec: object) -> str:
    """Twelve hex digits that name a specification (any JSON value): equal specifications share a
    cache folder.
    """
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:12]


def lowest(keys: Iterable[str], count: int, salt: str) -> set[str]:
    """The `count` keys whose salted SHA-256 is lowest: a fixed choice of exact size that ignores
    the order of the input.
    """
    ranked = sorted(
        set(keys), key=lambda key: hashlib.sha256(f"m27-holdout:{salt}:{key}".encode()).digest()
    )
    return set(ranked[:count])


def hashed(key: str, salt: str) -> float:
    """Where a key lies in [0, 1), by its salted SHA-256: the same whatever else there is."""
    digest = hashlib.sha256(f"m27-holdout:{salt}:{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def stored(name: str, revision: str, make: Callable[[], Iterable[Item]]) -> Iterator[Item]:
    """Clips of `make`, made once and kept under `generated/<name>-<revision>`; audio comes back as
    float32 [T] in −1..1.

    `make` yields items with `audio` set (float32 [T] at 16 kHz); their `meta` must be JSON. Samples
    are kept as 16 bits, and so is the first pass, which makes both passes equal. Raises
    `SourceError` naming a damaged folder.
    """
    folder = cache_folder() / "generated" / f"{name}-{revision}"
    if not folder.is_dir():
        _write(folder, make())
    lines = (folder / "clips.jsonl").read_text(encoding="utf-8").splitlines()
    size = (folder / "clips.i16").stat().st_size
    samples = np.memmap(folder / "clips.i16", dtype="<i2", mode="r") if size else np.zeros(0, "<i2")
    for line in lines:
        row = json.loads(line)
        start, stop = row["start"], row["stop"]
        if stop > samples.shape[0]:
            raise SourceError(
                f"{folder}: clip {row['key']} lies past the end of the samples; delete the folder"
            )
        audio = samples[start:stop].astype(np.float32) / 32767.0
        yield Item(
            key=row["key"], concept=row["concept"], text=row["text"], audio=audio, meta=row["meta"]
        )


def _write(folder: Path, items: Iterable[Item]) -> None:
    """Write the clips to a temporary folder and give it its name at the end."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=folder.name + ".", dir=folder.parent))
    try:
        at = 0
        with (
            open(temporary / "clips.i16", "wb") as samples,
            open(temporary / "clips.jsonl", "w", encoding="utf-8") as lines,
        ):
            for item in track(items, f"preparing {folder.name}"):
                if item.audio is None:
                    raise SourceError(f"{folder.name}: clip {item.key} has no samples")
                data = np.round(np.clip(item.audio, -1.0, 1.0) * 32767.0).astype("<i2")
                samples.write(data.tobytes())
                row = {"key": item.key, "concept": item.concept, "text": item.text}
                place = {"meta": item.meta, "start": at, "stop": at + int(data.size)}
                lines.write(json.dumps(row | place) + "\n")
                at += int(data.size)
        try:
            os.replace(temporary, folder)
        except OSError:
            if not folder.is_dir():  # another builder was first: keep its folder, which is equal
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
