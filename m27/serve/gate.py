"""The media gate: pictures and sounds of a request to arrays, or one line that says why not.

The only way for media into the server. It checks what can be checked without decoding (is it a data
URL, is it too long, may addresses be fetched), and has the rest done by processes that may die of it.
What came is judged by its first bytes, never by what its sender calls it. Knows nothing of HTTP routes,
messages or models.

One event loop uses a gate; it is closed by `aclose`. Shapes: H W pixels, T samples at 16 kHz.
"""

from __future__ import annotations

import re
import ssl
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m27.serve import payload
from m27.serve.address import IP, public
from m27.serve.decoder import PICTURE, SOUND
from m27.serve.fetch import Fetcher, Resolve, resolve
from m27.serve.limits import GateLimits, MediaRefused
from m27.serve.pool import Job, Pool

__all__ = ["Gate", "GateLimits", "MediaRefused"]

SOUND_NAMES = ("wav", "flac", "ogg", "mp3")
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]{0,15}):", re.IGNORECASE | re.ASCII)

Picture = NDArray[np.uint8]
Sound = NDArray[np.float32]
Fit = tuple[int, int]


class Gate:
    """Decodes within `limits`. Everything raises MediaRefused, and nothing else, on what clients send.

    `resolve`, `allowed` and `trust` (name to addresses, which of them may be dialled, which certificates
    are trusted) are for tests that fetch from a server of their own.
    """

    def __init__(
        self,
        limits: GateLimits | None = None,
        resolve: Resolve = resolve,
        allowed: Callable[[IP], bool] = public,
        trust: ssl.SSLContext | None = None,
    ) -> None:
        self.limits = limits or GateLimits()
        self._pool = Pool(self.limits)
        self._fetcher = Fetcher(self.limits, resolve, allowed, trust)
        self._decoded: Counter[str] = Counter()
        self._seconds = {"image": 0.0, "audio": 0.0}
        self._refused: Counter[str] = Counter()
        self._fetched: Counter[str] = Counter()

    async def __aenter__(self) -> Gate:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def start(self) -> None:
        """Start the decoders, which else the first request waits for. Raises MediaRefused where they do
        not come up: the server should then not start either."""
        await self._pool.start()

    async def aclose(self) -> None:
        """End the decoders; what waits for one is refused."""
        await self._pool.close()

    def check_count(self, media: int) -> None:
        """Refuse a request that holds more pictures and sounds than `limits.media`."""
        if media > self.limits.media:
            what = f"{media} pictures and sounds are more than the {self.limits.media} a request may hold"
            with self._counted():
                raise MediaRefused(what, "too_many_media")

    async def picture(self, url: str, fit: Fit | None = None, letterbox: bool = False) -> Picture:
        """uint8 [H, W, 3] of a data URL or, where `limits.fetch` is on, an http(s) address.

        With `fit` (height, width) it comes in that size, as the processor would fit it
        (`fit_image` with `crop`, or with `letterbox`), and a large picture never reaches this process.
        Raises ValueError for a `fit` that is no size, or beyond `limits.decoded_bytes`.
        """
        with self._counted():
            if url[:5].lower() == "data:":
                data = self._encoded(payload.data_url(url, self.limits.file_bytes))
                return await self._decode(Job(PICTURE, data, True, self._fit(fit), letterbox))
            if url[:8].lower().startswith(("http://", "https://")):
                data = self._sized(await self._fetch(url))
                return await self._decode(Job(PICTURE, data, False, self._fit(fit), letterbox))
            raise MediaRefused(_no_address(url), "bad_url")

    async def picture_bytes(
        self, data: bytes, fit: Fit | None = None, letterbox: bool = False
    ) -> Picture:
        """uint8 [H, W, 3] of a PNG, JPEG, WebP, GIF or BMP file; `fit` and `letterbox` as for `picture`."""
        with self._counted():
            job = Job(PICTURE, self._sized(data), False, self._fit(fit), letterbox)
            return await self._decode(job)

    async def sound(self, data_base64: str, format: str = "wav") -> Sound:
        """float32 [T] at 16 kHz, in -1..1, of base64. `format` must name one of ours (so that raw samples
        are refused by a clear line), but only the first bytes say which it is."""
        with self._counted():
            if format.lower() not in SOUND_NAMES:
                named = format if re.fullmatch(r"[a-zA-Z0-9_./-]{1,20}", format) else "that"
                what = f"sounds are {', '.join(SOUND_NAMES)}; {named} is not accepted"
                raise MediaRefused(what, "unsupported_format")
            return await self._decode(Job(SOUND, self._encoded(data_base64), True))

    async def sound_bytes(self, data: bytes) -> Sound:
        """float32 [T] at 16 kHz, in -1..1, of a WAV, FLAC, OGG Vorbis or MP3 file."""
        with self._counted():
            return await self._decode(Job(SOUND, self._sized(data)))

    def metrics(self) -> dict[str, Any]:
        """Counts since the start: `decoded` and `seconds` of decoding by medium ("image", "audio"),
        `refused` by code, `fetched` ("files", "bytes"), `replaced` workers; and now: `workers`, `busy`, `waiting`."""
        return {
            "decoded": dict(self._decoded), "seconds": self._seconds.copy(),
            "refused": dict(self._refused), "fetched": dict(self._fetched),
            "replaced": self._pool.replaced, "workers": len(self._pool.pids()),
            "busy": self._pool.busy, "waiting": self._pool.waiting,
        }  # fmt: skip

    async def _decode(self, job: Job) -> Any:
        array, seconds = await self._pool.run(job)
        medium = "image" if job.what == PICTURE else "audio"
        self._decoded[medium] += 1
        self._seconds[medium] += seconds
        return array

    async def _fetch(self, url: str) -> bytes:
        if not self.limits.fetch:
            what = "pictures are not fetched from addresses here; send a data URL"
            raise MediaRefused(what, "url_not_allowed")
        data = await self._fetcher.fetch(url)
        self._fetched["files"] += 1
        self._fetched["bytes"] += len(data)
        return data

    def _encoded(self, text: str) -> bytes:
        if not text:
            raise MediaRefused("the file is empty", "empty_media")
        payload.check_size(len(text), self.limits.file_bytes)
        return payload.ascii_bytes(text)

    def _sized(self, data: bytes) -> bytes:
        if not data:
            raise MediaRefused("the file is empty", "empty_media")
        if len(data) > self.limits.file_bytes:
            what = f"the file is larger than {self.limits.file_bytes / 1e6:g} MB"
            raise MediaRefused(what, "media_too_large")
        return data

    def _fit(self, size: Fit | None) -> Fit:
        if size is None:
            return 0, 0
        height, width = size
        if not (0 < height < 65_536 and 0 < width < 65_536) or (
            height * width * 3 > self.limits.decoded_bytes
        ):
            raise ValueError(f"a picture cannot be fitted into {height} x {width}")
        return size

    @contextmanager
    def _counted(self) -> Iterator[None]:
        try:
            yield
        except MediaRefused as error:
            self._refused[error.code] += 1
            raise


def _no_address(url: str) -> str:
    found = _SCHEME.match(url)
    known = "send a data URL" if not found else f"{found[1].lower()} addresses are not read"
    return f"the picture's address is neither data: nor http(s): {known}"
