"""Every limit of the server and its default, in one place. Plain data; `docs/serve.md` has the table."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")


class SettingsError(ValueError):
    """Settings that contradict each other; the message is one line."""


@dataclass(frozen=True)
class Settings:
    """What the server takes on and for how long.

    `host`, `port`: where it listens; `allowed_hosts`: names that a Host header may hold ("*": any;
    by default those of the loopback address where it listens there, else any). `origins`: web pages
    of other origins that may ask (CORS). `name`: of the model in answers.

    Of a request: `body_bytes`; `body_seconds` to send it; `json_depth` and
    `json_values` of its JSON; `text_bytes` of all its
    texts; `messages`; `media`: pictures and sounds in it; `seconds` until its answer must be whole;
    `answers`: the most for `n`; `answer_tokens`: the ceiling of max_completion_tokens, and
    `default_tokens` where nothing is said; `image_side` in pixels; `sound_seconds` of a sound made;
    `priority`: the most that counts. Of the server: `connections`; `buffered_bytes` of request bodies
    held at once; `media_threads` that turn media into codes. `requests_a_minute` and `concurrent`: of
    each key that does not say itself, 0 for no limit. `stuck_seconds`: how long a step of the engine
    may take; `drain_seconds`: for the answers under way when the server is told to stop; `ping_seconds`
    between signs of life in a stream that says nothing.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    name: str = "m27-nano"
    allowed_hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    body_bytes: int = 32 << 20
    body_seconds: float = 30.0
    json_depth: int = 64
    json_values: int = 100_000
    text_bytes: int = 256 << 10
    messages: int = 256
    media: int = 16
    seconds: float = 600.0
    answers: int = 8
    answer_tokens: int = 4096
    default_tokens: int = 512
    image_side: int = 256
    sound_seconds: float = 30.0
    priority: int = 0
    connections: int = 1024
    buffered_bytes: int = 512 << 20
    media_threads: int = 2
    requests_a_minute: int = 0
    concurrent: int = 0
    stuck_seconds: float = 120.0
    drain_seconds: float = 30.0
    ping_seconds: float = 15.0

    def __post_init__(self) -> None:
        for name in ("body_bytes", "json_depth", "json_values", "text_bytes", "answers", "answer_tokens",
                     "default_tokens", "connections", "buffered_bytes", "media_threads"):  # fmt: skip
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("body_seconds", "seconds", "stuck_seconds", "ping_seconds"):
            if not getattr(self, name) > 0:
                raise SettingsError(f"{name} must be more than 0, not {getattr(self, name)}")
        if not 0 <= self.port <= 65535:
            raise SettingsError(f"port must lie between 0 and 65535, not {self.port}")

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches the server."""
        return is_loopback(self.host)

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names that a Host header may hold; empty for any."""
        if "*" in self.allowed_hosts:
            return ()
        if self.loopback:
            return (*LOOPBACK_HOSTS, *self.allowed_hosts)
        return self.allowed_hosts


def is_loopback(host: str) -> bool:
    """Whether an address to listen at is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_exposure(settings: Settings, keys: int, force: bool) -> None:
    """Raise SettingsError where others would reach a server that asks for no key."""
    if not settings.loopback and not keys and not force:
        raise SettingsError(
            f"{settings.host} can be reached from elsewhere and no key is asked for: "
            "give --keys FILE or M27_API_KEYS, or --force"
        )
