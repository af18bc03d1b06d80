"""API keys: who asks, as which tenant, and how much of it. Knows no route and no HTTP.

Only hashes of keys are kept; each is compared in constant time, and all are, so that the time taken
says nothing about which is near.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from m27.serve.errors import ApiError
from m27.serve.settings import Settings

SHORTEST = 16  # characters of a key
OPTIONS = ("rpm", "concurrent", "body")


class KeysError(ValueError):
    """A file or a list of keys that cannot be used; the message names the line, never the key."""


@dataclass
class Key:
    """One key: its `name` in logs, the hash, and limits (0: none, `body` 0: the server's).

    `rpm`: requests a minute; `concurrent`: requests at once; `body`: bytes of one request.
    """

    name: str
    digest: bytes
    rpm: int = 0
    concurrent: int = 0
    body: int = 0
    tenant: str = ""
    running: int = field(default=0, compare=False)
    tokens: float = field(default=0.0, compare=False)
    since: float = field(default=0.0, compare=False)


ANYBODY = "anybody"


class Keys:
    """The keys of a server; without any, everybody is the one tenant "" under the given limits."""

    def __init__(
        self,
        keys: Sequence[Key],
        rpm: int = 0,
        concurrent: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keys, self._clock = list(keys), clock
        self._anybody = Key(ANYBODY, b"", rpm, concurrent)
        for key in [*self._keys, self._anybody]:
            key.rpm = key.rpm or rpm
            key.concurrent = key.concurrent or concurrent
            key.tokens, key.since = float(key.rpm), clock()

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, authorization: str | None) -> Key:
        """Whose request this is, by its Authorization header. Raises ApiError (401)."""
        if not self._keys:
            return self._anybody
        scheme, _, given = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not given.strip():
            raise ApiError(401, "give an API key: Authorization: Bearer KEY", code="missing_api_key")
        digest = _digest(given.strip())
        found: Key | None = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        if found is None:
            raise ApiError(401, "the API key is not known here", code="invalid_api_key")
        return found

    @contextmanager
    def admitted(self, key: Key) -> Iterator[None]:
        """One request of a key, counted while it lasts. Raises ApiError (429) beyond its limits."""
        if key.concurrent and key.running >= key.concurrent:
            why = f"this key has {key.running} requests under way, the most it may have"
            raise ApiError(429, why, code="too_many_concurrent", retry_after=1.0)
        if key.rpm:
            now = self._clock()
            key.tokens = min(key.rpm, key.tokens + (now - key.since) * key.rpm / 60.0)
            key.since = now
            if key.tokens < 1.0:
                wait = (1.0 - key.tokens) * 60.0 / key.rpm
                why = f"this key may ask {key.rpm} times a minute"
                raise ApiError(429, why, code="rate_limit_exceeded", retry_after=wait)
            key.tokens -= 1.0
        key.running += 1
        try:
            yield
        finally:
            key.running -= 1


def load_keys(settings: Settings, path: Path | None, environment: str | None) -> Keys:
    """The keys of a file and of the environment's list. Raises KeysError.

    The file has one key a line: `NAME KEY [rpm=60] [concurrent=4] [body=1000000]`, # for a comment; the
    list is keys with commas between.
    """
    keys: list[Key] = []
    if path is not None:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            raise KeysError(f"{path}: cannot be read as a file of keys") from None
        for number, line in enumerate(lines, 1):
            words = line.partition("#")[0].split()
            if words:
                keys.append(_key(words, f"{path}:{number}"))
    for number, text in enumerate(filter(None, (environment or "").split(",")), 1):
        keys.append(_key([f"key{number}", text.strip()], f"M27_API_KEYS, key {number}"))
    if (path is not None or environment) and not keys:
        raise KeysError(f"{path or 'M27_API_KEYS'}: holds no key")
    for name in ("name", "digest"):
        if len({getattr(key, name) for key in keys}) != len(keys):
            raise KeysError(f"two keys have the same {'name' if name == 'name' else 'value'}")
    return Keys(keys, settings.requests_a_minute, settings.concurrent)


def _key(words: Sequence[str], where: str) -> Key:
    if len(words) < 2:
        raise KeysError(f"{where}: a line is NAME KEY, and limits after it")
    name, value = words[:2]
    if len(value) < SHORTEST or not value.isascii():
        raise KeysError(f"{where}: a key has at least {SHORTEST} characters, all of them ASCII")
    limits = dict(_limits(words[2:], where))
    digest = _digest(value)
    return Key(name, digest, tenant=hashlib.sha256(b"tenant" + digest).hexdigest()[:16], **limits)


def _limits(words: Iterable[str], where: str) -> Iterator[tuple[str, int]]:
    for word in words:
        name, _, number = word.partition("=")
        if name not in OPTIONS or not number.isdecimal():
            raise KeysError(f"{where}: limits are {', '.join(f'{o}=N' for o in OPTIONS)}, not {word}")
        yield name, int(number)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()
