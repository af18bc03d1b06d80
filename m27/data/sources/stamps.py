"""Tux Paint stamps: 785 named cut-out pictures, about 130 with the thing's own sound, 65 spoken.

The captions, effects and spoken captions are files beside the picture. 100 pictures are held out by
caption, 40 sounds by caption, and every spoken caption.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m27.data import holdout, pairs, registry
from m27.data import messages as say
from m27.data.sources.base import (
    Document,
    Item,
    Side,
    SourceError,
    of_split,
    plain,
)

NAME = "stamps"
LICENCE = "GPL-2 in part: train, do not ship the files"
ORIGIN = "Debian tuxpaint-stamps-default 2022.06.04-1"
RATE = 16_000
MAX_SECONDS = 3.0


def items() -> Iterator[Item]:
    """Every picture with an English caption; `meta` has alpha and the paths of its sounds."""
    for path in pictures():
        text = caption(path)
        meta = {"alpha": True, "sound": _beside(path, ""), "spoken": _beside(path, "_desc")}
        yield Item(_key(path), holdout.normalise(text), text, path.read_bytes(), meta=meta)


def sounds() -> Iterator[Item]:
    """Pictures that have a sound effect: `audio` is the sound, `meta["split"]` its side.

    A sound is held out with its picture, or by the rate of the family "stamp-sounds".
    """
    for item in items():
        path = item.meta["sound"]
        if path is None:
            continue
        audio = load_sound(path)
        if audio.size == 0:
            continue
        held = holdout.held_out(NAME, item.concept) or holdout.held_out(
            "stamp-sounds", item.concept
        )
        side: Side = "test" if held else "train"
        meta = {"split": side}
        yield Item(item.key, item.concept, item.text, item.image, audio, meta)


def spoken() -> Iterator[Item]:
    """The English spoken captions, all held out: `audio` is the voice, text what it says."""
    for item in items():
        path = item.meta["spoken"]
        if path is not None:
            audio = load_sound(path, seconds=10.0)
            key = f"{item.key}-spoken"
            yield Item(key, item.concept, item.text, item.image, audio, {"split": "test"})


def caption(path: Path) -> str:
    """The English caption of a stamp in the house style: 'A dog.' → 'dog'."""
    first = path.with_suffix(".txt").read_text("utf-8", errors="replace").split("\n", 1)[0]
    sentence = re.split(r"[.!?—(;](?:\s|$)|—", first.strip(), maxsplit=1)[0]
    return plain(re.split(r",? (?:also|sometimes) (?:called|known)|, which", sentence)[0])


def translations(languages: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """Key of a stamp → language → its caption there, without the closing full stop.

    A caption that is the English one, left as it was, is no translation.
    """
    found: dict[str, dict[str, str]] = {}
    for path in pictures():
        first, *rest = path.with_suffix(".txt").read_text("utf-8", errors="replace").split("\n")
        for line in rest:
            language, _, text = line.partition(".utf8=")
            text = re.sub(r"\s+", " ", text).strip().rstrip(".")
            if language in languages and text and text != first.strip().rstrip("."):
                found.setdefault(_key(path), {})[language] = text
    return found


def load_sound(path: Path, seconds: float = MAX_SECONDS) -> NDArray[np.float32]:
    """A sound file as float32 [T] at 16 kHz: silence cut off, at most `seconds`, peak 0.9."""
    from m27.codec import media

    try:
        limits = media.Limits(max_seconds=120)
        return trim(media.read_audio(path, limits), seconds)
    except media.MediaError as error:
        raise SourceError(f"{path}: {error}") from error


def trim(wave: NDArray[np.float32], seconds: float) -> NDArray[np.float32]:
    """Cut silence (below 2 % of the peak) from both ends, then to `seconds` with a short fade."""
    peak = float(np.abs(wave).max(initial=0.0))
    if peak < 1e-4:
        return np.zeros(0, np.float32)
    loud = np.flatnonzero(np.abs(wave) > 0.02 * peak)
    wave = wave[max(0, int(loud[0]) - RATE // 100) : int(loud[-1]) + RATE // 50]
    limit = round(seconds * RATE)
    if wave.size > limit:
        fade = min(limit, RATE // 10)
        wave = wave[:limit].copy()
        wave[-fade:] *= np.linspace(1.0, 0.0, fade, dtype=np.float32)
    return (wave * np.float32(0.9 / peak)).astype(np.float32)


def pictures() -> list[Path]:
    """Paths of the PNG stamps that have a caption, sorted."""
    folder = registry.fetch("tuxpaint-stamps-default") / "usr/share/tuxpaint/stamps"
    if not folder.is_dir():
        raise SourceError(f"{folder}: missing in the package tuxpaint-stamps-default")
    return [path for path in sorted(folder.rglob("*.png")) if path.with_suffix(".txt").exists()]


def _key(path: Path) -> str:
    parts = path.with_suffix("").parts
    return "/".join((NAME, *parts[parts.index("stamps") + 1 :]))


def _beside(path: Path, tail: str) -> Path | None:
    for suffix in (".ogg", ".wav"):
        other = path.with_name(f"{path.stem}{tail}{suffix}")
        if other.exists():
            return other
    return None


def documents(split: Side, seed: int) -> Iterator[Document]:
    """caption_picture and draw for every stamp whose caption is short (up to six words)."""
    for item in say.shuffled(of_split(items(), split), seed):
        if len(item.text.split()) > 6:
            continue
        yield from pairs.captioned(item, split, seed, NAME)
