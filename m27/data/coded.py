"""The pictures and sounds of many documents → their codes, in batches, each medium once.

Media of one shape go through the codec together, and several batches at once: a worker computes with one thread,
so none waits for another within a product. What was coded before is read from a cache, by what the medium shows and
by the codec's revision. The oracle is `Processor.encode`, which codes one by one: a batch adds the same products in
another order, so a latent within a rounding of a cell's edge may fall on its other side (tests say how many do).
It knows nothing of ids, of shards or of models.

Shapes: B batch, T samples, H W pixels, h w grid of image codes.
"""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from m27 import runtime
from m27.codec.media import MediaError, write_atomic
from m27.language.codecs import AudioCodec, Codes, ImageCodec
from m27.language.processor import PartError, Processor, pixels, samples

Kind = Literal["image", "audio"]
Medium = NDArray[np.uint8] | NDArray[np.float32]
Key = tuple[Kind, str]  # and what it shows, as a hash
_BATCH = {"image": 16, "audio": 8}  # at once in one call: more are no faster on a core, and want more memory


class CodeCache:
    """Codes by what a medium shows: a file each below `folder`, which may be deleted at any time."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def get(self, revision: str, digest: str) -> Codes | None:
        """The codes of a medium, or None where they are not there (or not whole)."""
        try:
            data = self._path(revision, digest).read_bytes()
            codes = np.load(io.BytesIO(data), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return codes.astype(np.int64) if codes.dtype.kind in "iu" and codes.size else None

    def put(self, revision: str, digest: str, codes: Codes) -> None:
        """Keep the codes of a medium; where nothing can be written, nothing is kept."""
        file = io.BytesIO()
        np.save(file, codes.astype(np.uint32), allow_pickle=False)
        path = self._path(revision, digest)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, file.getvalue())
        except OSError:
            return

    def _path(self, revision: str, digest: str) -> Path:
        return self.folder / revision / digest[:2] / f"{digest[2:]}.npy"


class Coder:
    """Documents → the same with codes in the place of pictures and sounds.

    `threads` batches are coded at once, where the codec computes on the CPU; a `cache` is read and written.
    """

    def __init__(self, processor: Processor, cache: CodeCache | None = None, threads: int = 1) -> None:
        self.codecs, self.cache, self.threads = processor.codecs, cache, threads

    def spell(self, documents: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The documents with codes; those given stay as they are.

        A medium that cannot be read stays what it is: `Processor.encode` then says what is wrong with it, and where.
        """
        parts = {id(part): part for document in documents for part in raw(document)}
        codes = dict(zip(parts, self._codes(list(parts.values())), strict=True))
        return [_replaced(document, codes) for document in documents] if parts else list(documents)

    def _codes(self, parts: Sequence[Mapping[str, Any]]) -> list[Codes | None]:
        """The codes of each part, None where there is no codec for it or it cannot be read."""
        keys: list[Key | None] = []
        found: dict[Key, Codes] = {}
        waiting: dict[Key, Medium] = {}
        for part in parts:
            medium = _medium(part) if self._codec(part["type"]) is not None else None
            keys.append(None if medium is None else (part["type"], _digest(medium)))
            if medium is None or (key := keys[-1]) is None or key in found or key in waiting:
                continue
            held = self.cache.get(self._revisions[key[0]], key[1]) if self.cache else None
            if held is None:
                waiting[key] = medium
            else:
                found[key] = held
        for key, codes in self._encoded(waiting):
            found[key] = codes
            if self.cache:
                self.cache.put(self._revisions[key[0]], key[1], codes)
        return [None if key is None else found.get(key) for key in keys]

    def _encoded(self, media: Mapping[Key, Medium]) -> Iterator[tuple[Key, Codes]]:
        """The codes of each medium that its codec takes: batches of one shape, the long ones first."""
        alike: dict[tuple[Any, ...], list[Key]] = {}
        for key, medium in media.items():
            alike.setdefault((key[0], *self._shape(key[0], medium)), []).append(key)
        batches = [
            keys[i : i + _BATCH[keys[0][0]]]
            for keys in alike.values()
            for i in range(0, len(keys), _BATCH[keys[0][0]])
        ]
        batches.sort(key=lambda keys: -sum(media[key].size for key in keys))

        def work(keys: list[Key]) -> list[tuple[Key, Codes]]:
            some = [media[key] for key in keys]
            try:
                if keys[0][0] == "image":
                    many = self.codecs.encode_images(np.stack(some))
                else:
                    many = self.codecs.encode_sounds(self._padded(some))
            except ValueError:  # whose it is, is found where each is coded alone
                return []
            return list(zip(keys, many, strict=True))

        if self.threads <= 1 or len(batches) <= 1:
            yield from itertools.chain.from_iterable(map(work, batches))
            return
        with ThreadPoolExecutor(self.threads, initializer=runtime.lone_thread) as pool:
            yield from itertools.chain.from_iterable(pool.map(work, batches))

    def _codec(self, kind: Kind) -> ImageCodec | AudioCodec | None:
        return self.codecs.image if kind == "image" else self.codecs.audio

    @cached_property
    def _revisions(self) -> dict[Kind, str]:
        kinds: tuple[Kind, Kind] = ("image", "audio")
        found = {kind: self._codec(kind) for kind in kinds}
        return {kind: codec.codes_revision for kind, codec in found.items() if codec is not None}

    def _shape(self, kind: Kind, medium: Medium) -> tuple[int, ...]:
        """Media of one shape go together: sounds of as many codes, which the codec pads to one length."""
        return medium.shape if kind == "image" else (-(-len(medium) // self._hop),)

    @property
    def _hop(self) -> int:
        """Samples a code; 1 where a codec does not say, so that sounds of one length go together."""
        return int(getattr(self.codecs.audio, "hop", 1))

    def _padded(self, waves: Sequence[Medium]) -> NDArray[np.float32]:
        """[B, T] of sounds of as many codes, with the silence at their ends that the codec would add."""
        out_BT = np.zeros((len(waves), -(-len(waves[0]) // self._hop) * self._hop), np.float32)
        for row_T, wave in zip(out_BT, waves, strict=True):
            row_T[: len(wave)] = wave
        return out_BT


def raw(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The parts of a document, branches included, that are a picture or a sound without codes."""
    contents = [m["content"] for one in conversations(document) for m in one]
    return [
        part
        for content in contents
        if not isinstance(content, str)
        for part in content
        if part.get("type") in ("image", "audio") and part.get("codes") is None
    ]


def conversations(document: Mapping[str, Any]) -> list[Sequence[Mapping[str, Any]]]:
    """The document's messages, and those of its branches."""
    return [document["messages"], *document.get("branches", ())]


def _medium(part: Mapping[str, Any]) -> Medium | None:
    try:
        return pixels(part) if part["type"] == "image" else samples(part)
    except (MediaError, PartError, OSError):
        return None


def _digest(medium: Medium) -> str:
    found = hashlib.sha256(f"{medium.shape}{medium.dtype}".encode())
    found.update(np.ascontiguousarray(medium).tobytes())
    return found.hexdigest()[:32]


def _replaced(document: Mapping[str, Any], codes: Mapping[int, Codes | None]) -> Mapping[str, Any]:
    def of(messages: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        return [
            message
            if isinstance(message["content"], str)
            else {**message, "content": [_coded(part, codes.get(id(part))) for part in message["content"]]}
            for message in messages
        ]

    changed = {**document, "messages": of(document["messages"])}
    if "branches" in document:
        changed["branches"] = [of(one) for one in document["branches"]]
    return changed


def _coded(part: Mapping[str, Any], codes: Codes | None) -> Mapping[str, Any]:
    if codes is None:
        return part
    kept = {key: value for key, value in part.items() if key in ("type", "loss")}
    return {**kept, "codes": codes}
