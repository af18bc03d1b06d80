"""vLLM servers that hold the same model, and one completion from one of them, ids in and ids out.

A prompt goes where its beginning was read before, so that the server's prefix cache finds it, else to
the servers in turn. A server that does not answer is left alone for a while. Knows HTTP and ids
(vLLM 0.32: `/v1/completions` with `prompt` as ids, `return_token_ids`, `allowed_token_ids`).
"""

from __future__ import annotations

import http.client
import json
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from m27.infer.request import RequestError

PIECE = 64  # ids by which beginnings are told apart
KNOWN = 65_536  # beginnings remembered
REST = 5.0  # seconds that a server which failed is left alone
AHEAD = 4  # requests that a server may have more than the idlest one before it is passed over


class ReplicaError(RuntimeError):
    """A server that does not answer, or not as it should; another one may."""


class DeclinedError(RequestError):
    """A request that a server says is wrong; no other server is asked."""


class Replica:
    """One server. `busy`: requests that it is answering; `resting` until then it is not asked."""

    def __init__(self, url: str, timeout: float) -> None:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise RequestError(f"{url}: not the address of a server, such as http://host:8000")
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self._parts, self._timeout = parts, timeout
        self.busy, self.resting = 0, 0.0
        self.model: str | None = None

    def connect(self) -> http.client.HTTPConnection:
        """A connection, not yet opened."""
        host, port = self._parts.hostname or "", self._parts.port
        if self._parts.scheme == "https":
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(host, port, timeout=self._timeout, context=context)
        return http.client.HTTPConnection(host, port, timeout=self._timeout)

    def ask(
        self, connection: http.client.HTTPConnection, path: str, body: dict[str, Any] | None = None
    ) -> http.client.HTTPResponse:
        """Send a request. Raises ReplicaError, or DeclinedError for a status of 400 to 499 but 429."""
        method, sent = ("GET", None) if body is None else ("POST", json.dumps(body).encode())
        base = self._parts.path.rstrip("/").removesuffix("/v1")
        headers = {"Content-Type": "application/json"}
        try:
            connection.request(method, f"{base}/v1/{path}", sent, headers)
            response = connection.getresponse()
            if response.status == 200:
                return response
            said = response.read(4000).decode("utf-8", "replace")
        except (OSError, http.client.HTTPException) as error:
            raise ReplicaError(f"{self.url}: {_line(error)}") from error
        message = f"{self.url}: status {response.status}: {_said(said)}"
        if 400 <= response.status < 500 and response.status != 429:
            raise DeclinedError(message)
        raise ReplicaError(message)

    def name(self) -> str:
        """The name of the model that it serves."""
        if self.model is None:
            connection = self.connect()
            try:
                listed = json.loads(self.ask(connection, "models").read(1_000_000))
                self.model = str(listed["data"][0]["id"])
            except (
                OSError,
                http.client.HTTPException,
                ValueError,
                LookupError,
                TypeError,
            ) as error:
                raise ReplicaError(f"{self.url}: names no model ({_line(error)})") from error
            finally:
                connection.close()
        return self.model

    def complete(
        self, connection: http.client.HTTPConnection, body: dict[str, Any]
    ) -> Iterator[list[int]]:
        """The ids of a streamed completion as they come. Raises ReplicaError where the stream breaks
        off or is not understood, and as `ask` does."""
        response = self.ask(connection, "completions", body)
        ended = False
        try:
            for line in response:
                data = line.strip()
                if not data.startswith(b"data:"):
                    continue
                data = data[5:].strip()
                if data == b"[DONE]":
                    return
                event = json.loads(data)
                if "error" in event:
                    raise ReplicaError(f"{self.url}: {_said(data.decode('utf-8', 'replace'))}")
                for choice in event["choices"]:
                    ids = [int(id) for id in choice["token_ids"] or ()]
                    stop = choice.get("stop_reason")
                    if isinstance(stop, int) and stop not in ids[-1:]:
                        ids.append(stop)
                    ended = ended or choice.get("finish_reason") is not None
                    if ids:
                        yield ids
        except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
            raise ReplicaError(f"{self.url}: {_line(error)}") from error
        if not ended:
            raise ReplicaError(f"{self.url}: the answer broke off")


class Replicas:
    """The servers, and which one is asked. May be used by several threads."""

    def __init__(self, urls: Sequence[str], timeout: float = 60.0) -> None:
        """`timeout`: seconds without a sign of life. Raises RequestError for a wrong address."""
        if not urls:
            raise RequestError("no server is named")
        self.all = [Replica(url, timeout) for url in urls]
        self._lock = threading.Lock()
        self._known: OrderedDict[int, Replica] = OrderedDict()
        self._turn = 0

    def take(self, prompt: Sequence[int], shunned: Sequence[Replica] = ()) -> Replica:
        """The server for a prompt; `give` it back. Those in `shunned`, and those at rest, come last."""
        with self._lock:
            now = time.monotonic()
            good = [r for r in self.all if r not in shunned and r.resting <= now]
            good = good or [r for r in self.all if r not in shunned] or self.all
            least = min(replica.busy for replica in good)
            names = list(_beginnings(prompt))
            known = next((self._known[n] for n in reversed(names) if n in self._known), None)
            if known not in good or known.busy > least + AHEAD:
                idle = [replica for replica in good if replica.busy == least]
                known = idle[self._turn % len(idle)]
                self._turn += 1
            for name in names:
                self._known[name] = known
                self._known.move_to_end(name)
            while len(self._known) > KNOWN:
                self._known.popitem(last=False)
            known.busy += 1
            return known

    def give(self, replica: Replica, failed: bool = False) -> None:
        """A server's answer has ended, or failed."""
        with self._lock:
            replica.busy -= 1
            if failed:
                replica.resting = time.monotonic() + REST
                replica.model = None


def _beginnings(prompt: Sequence[int]) -> Iterator[int]:
    name = 0
    for end in range(PIECE, len(prompt) + 1, PIECE):
        name = hash((name, *prompt[end - PIECE : end]))
        yield name


def _said(text: str) -> str:
    """What a server says is wrong, in one line."""
    try:
        found = json.loads(text)
        found = found.get("error", found)
        text = str(found.get("message", text)) if isinstance(found, dict) else str(found)
    except (ValueError, AttributeError):
        pass
    return " ".join(text.split())[:300]


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
