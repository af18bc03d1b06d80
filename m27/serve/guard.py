"""What every request passes before a route sees it: id, Host, origin, key, limits, log and count.

A plain ASGI wrapper, so that a stream is not held up, and one that looks at the path as it came, so that
no trick with a Host header or a prefix leads round it. What is not named open needs a key.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
import time
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from m27.serve.auth import Key, Keys
from m27.serve.errors import ApiError
from m27.serve.metrics import Metrics
from m27.serve.settings import Settings

OPEN = frozenset({"/health", "/openapi.json"})  # besides the files of the playground
_ID = re.compile(rb"[A-Za-z0-9._\-]{1,64}")
_LINGER = 2.0  # seconds in which a body that is too large is still read, and thrown away
_SLACK = 30.0  # seconds beyond those of body and answer until a request is given up whatever it does
_log = logging.getLogger("m27.serve")
SAFE_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)


class Guard:
    """Wraps the application. `pages` are the paths of the playground's files."""

    def __init__(
        self, app: ASGIApp, settings: Settings, keys: Keys, metrics: Metrics, pages: frozenset[str]
    ) -> None:
        self.app, self.settings, self.keys, self.metrics = app, settings, keys, metrics
        self.open = OPEN | pages
        self.routes: frozenset[str] = frozenset()  # what metrics may be labelled with
        self.draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the start and end of the server."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        await _Call(self, scope, receive, send).run()


class _Call:
    """One request on its way through."""

    def __init__(self, guard: Guard, scope: Scope, receive: Receive, send: Send) -> None:
        self.guard, self.scope, self.receive, self.send = guard, scope, receive, send
        self.headers = [(k.lower(), v) for k, v in scope["headers"]]
        self.began = time.perf_counter()
        given = self.header(b"x-request-id") or b""
        whole = _ID.fullmatch(given)
        self.id = given.decode("ascii") if whole else f"req_{secrets.token_hex(8)}"
        self.status = 0
        self.gone = False  # the client has left before its answer was whole
        self.read = 0
        self.limit = guard.settings.body_bytes
        self.origin: bytes | None = None
        self.facts: dict[str, Any] = {}  # routes add to these; they go into the log
        self.key: Key | None = None

    def header(self, name: bytes) -> bytes | None:
        """The one value of a header; None where there is none, or more than one."""
        values = [value for key, value in self.headers if key == name]
        return values[0] if len(values) == 1 else None

    async def run(self) -> None:
        """Let the request through, or refuse it; log and count it either way."""
        metrics = self.guard.metrics
        metrics.in_flight += 1
        try:
            await self._run()
        except ApiError as error:
            await self.refuse(error)
        except TimeoutError:
            self.gone = True
        except Exception as error:
            _log.error("a request failed", exc_info=error, extra={"facts": {"request_id": self.id}})
            if not self.status:
                await self.refuse(ApiError(500, "the server failed", code="internal_error"))
        finally:
            metrics.in_flight -= 1
            self._note()

    async def _run(self) -> None:
        scope, guard = self.scope, self.guard
        self._check_host()
        if self._check_origin():
            await self._preflight()
            return
        path = scope["path"]
        if path not in guard.open:
            authorization = self.header(b"authorization")
            text = authorization.decode("latin-1") if authorization else None
            self.key = guard.keys.find(text)
            self.limit = self.key.body or self.limit
        if guard.draining and path != "/health":
            raise ApiError(503, "the server is stopping", code="stopping", retry_after=5.0)
        length = self.header(b"content-length") or b"0"
        if not length.isdigit() or int(length) > self.limit:
            raise self._too_large()
        scope["state"] = {**scope.get("state", {}), "call": self}
        most = guard.settings.body_seconds + guard.settings.seconds + _SLACK
        async with asyncio.timeout(most):  # whoever does not read the answer is not waited for
            if self.key is None or path == "/metrics":
                await guard.app(scope, self.take, self.give)
                return
            with guard.keys.admitted(self.key):
                await guard.app(scope, self.take, self.give)

    def _check_host(self) -> None:
        hosts = self.guard.settings.hosts
        if hosts and _hostname(self.header(b"host")) not in hosts:
            raise ApiError(403, "this server does not go by that Host", code="host_not_allowed")

    def _check_origin(self) -> bool:
        """Whether this is a preflight that may be answered. Raises ApiError for a page of another
        origin that asks for more than to look."""
        origin = self.header(b"origin")
        if origin is None:
            return False
        allowed = origin.decode("latin-1") in self.guard.settings.origins
        if allowed:
            self.origin = origin
            return bool(
                self.scope["method"] == "OPTIONS" and self.header(b"access-control-request-method")
            )
        with suppress(ValueError):
            if urlsplit(origin.decode("latin-1")).netloc.encode() == self.header(b"host"):
                return False
        if self.scope["method"] not in ("GET", "HEAD"):
            raise ApiError(403, "pages of that origin may not ask here", code="origin_not_allowed")
        return False

    async def _preflight(self) -> None:
        headers = [
            (b"access-control-allow-methods", b"GET, POST"),
            (b"access-control-allow-headers", b"authorization, content-type, x-request-id"),
            (b"access-control-max-age", b"600"),
        ]
        await self.give({"type": "http.response.start", "status": 204, "headers": headers})
        await self.give({"type": "http.response.body", "body": b""})

    async def take(self) -> Message:
        """The next piece of the body, never more of them than allowed, and in time."""
        left = self.guard.settings.body_seconds - (time.perf_counter() - self.began)
        if self.read < 0:  # it has all come: only a disconnect can follow
            return await self.receive()
        try:
            message = await asyncio.wait_for(self.receive(), max(left, 0.01))
        except TimeoutError:
            raise ApiError(408, "the body did not come in time", code="body_timeout") from None
        if message["type"] == "http.request":
            self.read += len(message.get("body", b""))
            if self.read > self.limit:
                raise self._too_large()
            if not message.get("more_body", False):
                self.read = -1
        return message

    def _too_large(self) -> ApiError:
        why = f"the body is larger than the {self.limit} bytes allowed"
        return ApiError(413, why, code="body_too_large")

    async def give(self, message: Message) -> None:
        """Pass on what a route answers, with the headers that every answer has."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            there = {name.lower() for name, _ in message.get("headers", ())}
            extra = [pair for pair in SAFE_HEADERS if pair[0] not in there]
            extra.append((b"x-request-id", self.id.encode("ascii")))
            if self.origin is not None:
                extra.append((b"access-control-allow-origin", self.origin))
                extra.append((b"access-control-expose-headers", b"retry-after, x-request-id"))
                extra.append((b"vary", b"Origin"))
            message = {**message, "headers": [*message.get("headers", ()), *extra]}
        await self.send(message)

    async def refuse(self, error: ApiError) -> None:
        """Answer with an error, unless an answer has begun."""
        self.guard.metrics.refused(error.reason)
        if self.status:  # the answer has begun: all that can be done is to end it
            return
        body = json.dumps(error.to_json(), ensure_ascii=False).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        headers += [(k.encode(), v.encode("ascii")) for k, v in error.headers().items()]
        unread = self.read >= 0 and self.scope["method"] not in ("GET", "HEAD")
        if unread:
            headers.append((b"connection", b"close"))
        await self.give({"type": "http.response.start", "status": error.status, "headers": headers})
        # The answer is whole by its length. Who is still sending is read for a while, or the answer
        # would be lost with the connection that is cut off.
        await self.give({"type": "http.response.body", "body": body, "more_body": unread})
        if unread:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LINGER):
                    while (message := await self.receive())["type"] == "http.request":
                        if not message.get("more_body", False):
                            break
            await self.give({"type": "http.response.body", "body": b""})

    def _note(self) -> None:
        seconds = time.perf_counter() - self.began
        path = self.scope["path"]
        route = path if path in self.guard.routes else "other"
        status = 499 if self.gone else self.status or 499
        metrics = self.guard.metrics
        if self.gone:
            metrics.count("m27_disconnects_total", route=route)
        metrics.count("m27_requests_total", route=route, status=str(status))
        metrics.observe("m27_request_seconds", seconds, route=route)
        facts = {
            "request_id": self.id, "method": self.scope["method"], "path": path[:200],
            "status": status, "seconds": round(seconds, 4), **self.facts,
        }  # fmt: skip
        if self.key is not None:
            facts["key"] = self.key.name
        _log.info("request", extra={"facts": facts})


def _hostname(host: bytes | None) -> str:
    """The name in a Host header without its port; "" for one that is no host."""
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.\-]+)(?::\d{1,5})?", (host or b"").decode("latin-1"))
    return match.group(1).strip("[]").lower().rstrip(".") if match else ""
