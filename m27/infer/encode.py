"""Pictures and sounds turned into codes beside the engine's step, on threads of their own.

What the model itself made is known by its pixels or samples: sent back as history it becomes the very
codes that it was, not those of a picture of it, so that the cache finds what was computed. What was
encoded is known likewise, within one tenant. Knows codecs and arrays; no message and no engine.

Shapes: H W pixels, T samples at 16 kHz, h w grid of image codes, N audio codes.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from m27.language.codecs import Codes, Pixels, Samples
from m27.language.processor import Processor
from m27.runtime import lone_thread

KEPT = 4096  # media whose codes are remembered


class Encoder:
    """Media to codes, on `threads` threads. Its methods may be called from any thread.

    `kept`: of how many media the codes are remembered, those of the longest unused forgotten first.
    """

    def __init__(self, processor: Processor, threads: int = 1, kept: int = KEPT) -> None:
        self._processor, self._kept = processor, kept
        self._known: OrderedDict[bytes, Codes] = OrderedDict()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(threads, "encode", initializer=lone_thread)

    def image(self, rgb_HW3: Pixels, tenant: str = "") -> Future[Codes]:
        """uint8 [H, W, 3] → codes [h, w], the middle square of it at the size of training. The
        future raises MessageError where the model cannot be shown it."""
        return self._pool.submit(self._codes, "image", rgb_HW3, tenant)

    def audio(self, samples_T: Samples, tenant: str = "") -> Future[Codes]:
        """float32 [T] → codes [N]. The future raises MessageError where the model cannot hear it."""
        return self._pool.submit(self._codes, "audio", samples_T, tenant)

    def remember(self, part: dict[str, Any], tenant: str = "") -> None:
        """Note the codes of a part that the model made, as its client will send it back: pictures
        exactly, sounds as 16-bit samples."""
        kind = part["type"]
        if kind in part and "codes" in part:
            array = part[kind]
            if kind == "audio":
                array = np.round(np.clip(array, -1.0, 1.0) * 32767.0) / np.float32(32768.0)
            self._keep(_name(kind, array, tenant), np.asarray(part["codes"]))

    def close(self) -> None:
        """End the threads; what waits is not done any more."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def known(self, kind: str, array: npt.NDArray[Any], tenant: str = "") -> Codes | None:
        """The codes of a medium, if they are remembered."""
        return self._find(_name(kind, array, tenant))

    def _codes(self, kind: str, array: npt.NDArray[Any], tenant: str = "") -> Codes:
        name = _name(kind, array, tenant)
        if (known := self._find(name)) is not None:
            return known
        ids = self._processor.encode([{"role": "user", "content": [{"type": kind, kind: array}]}])
        vocabulary = self._processor.vocabulary
        span = vocabulary.image if kind == "image" else vocabulary.audio
        codes = np.array([id - span.start for id in ids.ids if id in span], dtype=np.int64)
        if kind == "image":
            height = next(id for id in ids.ids if id in vocabulary.heights)
            codes = codes.reshape(vocabulary.heights.index(height) + 1, -1)
        self._keep(name, codes)
        return codes

    def _find(self, name: bytes) -> Codes | None:
        with self._lock:
            if (known := self._known.get(name)) is not None:
                self._known.move_to_end(name)
            return known

    def _keep(self, name: bytes, codes: Codes) -> None:
        with self._lock:
            self._known[name] = codes
            while len(self._known) > self._kept:
                self._known.popitem(last=False)


def _name(kind: str, array: npt.NDArray[Any], tenant: str) -> bytes:
    """What a medium is known by: bytes, shape, kind, and whose it is."""
    if kind == "audio":
        array = np.round(np.clip(array, -1.0, 1.0) * 32768.0).astype(np.int32)
    head = f"{kind}\n{array.dtype.str}\n{array.shape}\n{tenant}\n".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).digest()
