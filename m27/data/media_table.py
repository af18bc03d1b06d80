"""Pictures and sounds of many documents in one folder, each once, by number: what is carried to where codecs are.

    media.bin   the bytes of all, end to end      media.npy  int64 [n + 1], where each begins
    media.json  {"format", "kinds": one letter each}

Kinds: `p` a picture as WebP, `r` one as it is (height and width as two uint16, then its pixels), `s` a sound
by `sound_bytes`, `w` one as int16 samples. Raw ones cost no time and are for a folder that stays where it is made.
It knows nothing of codes, and of documents only that they name media by number.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from m27.codec.media import read_image
from m27.data import sound_bytes

FORMAT = "m27-media-1"
QUALITY = 88  # of lossy WebP; its effect on codes is in docs/LOG.md
FLAT = 256  # colours up to which a picture is kept exactly
Pixels = NDArray[np.uint8]
Samples = NDArray[np.float32]


class MediaTableError(ValueError):
    """A folder that is no table of media; the message names it."""


def picture_bytes(rgb_HW3: Pixels, quality: int = QUALITY) -> bytes:
    """A picture as WebP: exactly where it has few colours, as drawings by rule have, else nearly."""
    image, out = Image.fromarray(rgb_HW3), io.BytesIO()
    if image.getcolors(FLAT) is not None:
        image.save(out, "WEBP", lossless=True, quality=40, method=3)
    else:
        image.save(out, "WEBP", quality=quality, method=3)
    return out.getvalue()


class MediaWriter:
    """Writes a table; a context manager that puts the folder in its place at the end, or nothing at all."""

    def __init__(self, folder: str | Path, packed: bool = True) -> None:
        self.folder, self.packed = Path(folder), packed
        self._partial = self.folder.with_name(f".{self.folder.name}.{os.getpid()}")
        self._kinds: list[str] = []
        self._starts = [0]
        self._known: dict[bytes, int] = {}

    def __enter__(self) -> Self:
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(parents=True)
        self._file = open(self._partial / "media.bin", "wb")
        return self

    def picture(self, rgb_HW3: Pixels) -> int:
        """The number of a picture, uint8 ``[H, W, 3]``; equal ones have one."""
        shape = np.array(rgb_HW3.shape[:2], "<u2").tobytes()
        raw = shape + np.ascontiguousarray(rgb_HW3).tobytes()
        return self._add("p" if self.packed else "r", raw, rgb_HW3)

    def sound(self, samples_T: Samples) -> int:
        """The number of a sound, float32 ``[T]`` at 16 kHz in −1..1; equal ones have one."""
        raw = np.round(np.clip(samples_T, -1, 1) * 32_767).astype("<i2").tobytes()
        return self._add("s" if self.packed else "w", raw, samples_T)

    def _add(self, kind: str, raw: bytes, array: NDArray[np.generic]) -> int:
        key = hashlib.blake2b(raw, digest_size=12, person=kind.encode()).digest()
        if key not in self._known:
            if kind == "p":
                raw = picture_bytes(array.astype(np.uint8, copy=False))
            elif kind == "s":
                raw = sound_bytes.pack(array.astype(np.float32, copy=False))
            self._known[key] = len(self._kinds)
            self._kinds.append(kind)
            self._file.write(raw)
            self._starts.append(self._starts[-1] + len(raw))
        return self._known[key]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        if kind is not None:
            shutil.rmtree(self._partial, ignore_errors=True)
            return
        np.save(self._partial / "media.npy", np.asarray(self._starts, np.int64))
        about = {"format": FORMAT, "kinds": "".join(self._kinds)}
        (self._partial / "media.json").write_text(json.dumps(about), encoding="utf-8")
        shutil.rmtree(self.folder, ignore_errors=True)
        os.replace(self._partial, self.folder)


class MediaTable:
    """Reads a table. `kinds[i]` is the letter of medium i. With `keep` what `read` has decoded stays in memory."""

    def __init__(self, folder: str | Path, keep: bool = False) -> None:
        folder = Path(folder)
        self._kept: dict[int, Pixels | Samples] | None = {} if keep else None
        try:
            about = json.loads((folder / "media.json").read_text(encoding="utf-8"))
            self.kinds = str(about["kinds"])
            self._starts = np.load(folder / "media.npy")
            size = (folder / "media.bin").stat().st_size
        except (OSError, ValueError, KeyError) as error:
            raise MediaTableError(f"{folder}: no table of media: {error}") from None
        if about.get("format") != FORMAT or size != self._starts[-1]:
            raise MediaTableError(f"{folder}: not a whole table of media")
        self._data = np.memmap(folder / "media.bin", mode="r") if size else np.zeros(0, np.uint8)

    def __len__(self) -> int:
        return len(self.kinds)

    def bytes_of(self, number: int) -> bytes:
        """The stored bytes of a medium."""
        return bytes(self._data[self._starts[number] : self._starts[number + 1]])

    def picture(self, number: int) -> Pixels:
        """A picture, uint8 ``[H, W, 3]``."""
        data = self.bytes_of(number)
        if self.kinds[number] == "r":
            height, width = np.frombuffer(data, "<u2", 2)
            return np.frombuffer(data, np.uint8, offset=4).reshape(height, width, 3)
        return read_image(data)

    def sound(self, number: int) -> Samples:
        """A sound, float32 ``[T]``."""
        data = self.bytes_of(number)
        if self.kinds[number] == "w":
            return (np.frombuffer(data, "<i2") / 32_767).astype(np.float32)
        return sound_bytes.unpack(data)

    def read(self, numbers: Sequence[int], workers: int) -> Iterator[Pixels | Samples]:
        """The media of `numbers` in their order, decoded by so many threads (whose work is done in C)."""

        def get(number: int) -> Pixels | Samples:
            kept = self._kept
            if kept is not None and number in kept:
                return kept[number]
            found = self.picture(number) if self.kinds[number] in "pr" else self.sound(number)
            if kept is not None:
                kept[number] = found
            return found

        with ThreadPoolExecutor(workers) as pool:
            yield from pool.map(get, numbers)
