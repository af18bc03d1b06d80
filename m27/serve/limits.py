"""What one medium of a request may cost, and how the gate says no.

Plain values; the decoder's process imports this too, so nothing heavy is imported here.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from m27.codec.media import AUDIO_FORMATS, IMAGE_FORMATS

CODES = frozenset(
    (
        "unsupported_format broken_media empty_media media_too_large too_many_media bad_encoding bad_url "
        "url_not_allowed fetch_failed decoder_timeout decoder_died decoder_busy decoder_unavailable "
        "gate_closed"
    ).split()
)
# HTTP statuses that are not 400, by the code of a refusal.
_STATUS = {
    "media_too_large": 413,
    "decoder_busy": 429,
    "decoder_unavailable": 503,
    "gate_closed": 503,
}


class MediaRefused(ValueError):  # noqa: N818 - it is an answer, as `Refused` of the engine is
    """A picture or sound that the gate keeps out. The message is one line for the client.

    `code`: "unsupported_format", "broken_media", "empty_media", "media_too_large", "too_many_media",
    "bad_encoding" (of base64 or a data URL), "bad_url", "url_not_allowed", "fetch_failed",
    "decoder_timeout", "decoder_died" (on these very bytes), "decoder_busy" (try again later),
    "decoder_unavailable" or "gate_closed". `status`: the HTTP status for it.
    """

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def status(self) -> int:
        """400, but 413 for what is too large, 429 when busy and 503 where no decoder runs."""
        return _STATUS.get(self.code, 400)


@dataclass(frozen=True)
class GateLimits:
    """Every limit of the gate. Raises ValueError for one that makes no sense.

    Of one medium: `file_bytes` as stored, after base64; `pixels`, height times width, by the header;
    `decoded_bytes` of the array that comes out; `seconds` of sound; `samples` of sound over all
    channels as stored, whatever rate the header claims; `formats` that are decoded at all.
    Of its decoding: `decode_seconds` by the clock and of the processor's time; `decode_memory`, bytes
    that the decoder's process may take beyond its start.
    Of a request: `media`, pictures and sounds together.
    Of the whole gate: `workers`, processes that decode; `queue`, media that may wait for one;
    `start_seconds` that a new worker may take until it is ready.
    Of addresses: `fetch`, whether http(s) addresses are fetched at all; `fetch_bytes` and
    `fetch_seconds` of one, redirects included; `fetch_redirects` that are followed; `fetch_ports`
    that may be asked; `fetches` under way at once.
    """

    file_bytes: int = 20_000_000
    pixels: int = 25_000_000
    decoded_bytes: int = 100_000_000
    seconds: float = 30.0
    samples: int = 12_000_000
    formats: tuple[str, ...] = IMAGE_FORMATS + AUDIO_FORMATS
    decode_seconds: float = 10.0
    decode_memory: int = 1 << 30
    media: int = 16
    workers: int = 2
    queue: int = 64
    start_seconds: float = 60.0
    fetch: bool = False
    fetch_bytes: int = 20_000_000
    fetch_seconds: float = 10.0
    fetch_redirects: int = 3
    fetch_ports: tuple[int, ...] = (80, 443)
    fetches: int = 8

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in ("fetch", "fetch_redirects", "queue") else 1
            if isinstance(value, int) and value < least:
                raise ValueError(f"{field.name} must be at least {least}, not {value}")
            if isinstance(value, float) and not 0.0 < value < float("inf"):
                raise ValueError(f"{field.name} must be more than 0 seconds, not {value:g}")
        for name in self.formats:
            if name not in IMAGE_FORMATS + AUDIO_FORMATS:
                raise ValueError(f"formats: {name!r} is none that can be decoded")
