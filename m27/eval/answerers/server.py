"""A model behind an OpenAI-compatible server: closed APIs, vLLM, our own `m27 serve`.

Several questions at once, answers streamed so that the first piece can be timed. What fails in passing (a broken
connection, 408, 409, 425, 429, 5xx) is tried again after a pause that doubles, so it changes no score. Opens no media
itself: pictures and sounds go along as they are, in data URLs. The key comes from the environment and is written
nowhere.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import random
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from typing import Any
from urllib.parse import SplitResult, urlsplit

from m27.data.media_parts import as_file
from m27.eval.answerers.base import Answer, AnswererError, Asked, Facts, Messages, Settings

PASSING = {408, 409, 425, 429}
TIMEOUT = 300.0  # seconds without a byte after which a connection counts as broken
LONGEST = 60.0  # seconds between two tries at most
MOST = 16 << 20  # bytes of one answer
_LOCAL = {"localhost", "127.0.0.1", "::1"}


class _AgainError(Exception):
    """A try that failed in passing; `after`: seconds that the server asks for."""

    def __init__(self, why: str, after: float = 0.0) -> None:
        super().__init__(why)
        self.after = after


class _RefusedError(Exception):
    """This question will not be answered, however often it is asked."""


class Server:
    """`name` at `base` ("http://host:port/v1"). Raises AnswererError for an address that is none, and for a key that
    would go over the network in the clear."""

    def __init__(
        self, name: str, base: str, settings: Settings, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._name, self._settings, self._sleep = name, settings, sleep
        self._url = _address(base)
        self._key = os.environ.get(settings.key, "")
        if self._key and self._url.scheme == "http" and self._url.hostname not in _LOCAL:
            raise AnswererError(
                f"{base}: the key in {settings.key} would go there in the clear; use https, or unset it"
            )
        self._lock = threading.Lock()
        self._retries = 0
        self._says = ""  # what the server calls the model that answered
        self._tokens_key = "max_tokens"

    def facts(self) -> Facts:
        """The model as the server names it; how often a try failed."""
        host = self._url.netloc.rpartition("@")[2]
        where = "nowhere: the server is on this machine" if self._url.hostname in _LOCAL else f"to {self._url.hostname}"
        return Facts(
            f"openai:{self._name}@{self._url.scheme}://{host}{self._url.path}", "openai", self._name,
            "the server's", "the server's", "the provider's terms", where, None, self._settings.at_once,
            {"retries": self._retries, "answered_as": self._says},
        )  # fmt: skip

    def answer(self, asked: Sequence[Asked]) -> Iterator[Answer]:
        """Each answer as it is done. AnswererError where a question failed `tries` times: the server is down."""
        pool = ThreadPoolExecutor(self._settings.at_once)
        try:
            for done in as_completed([pool.submit(self._one, one) for one in asked]):
                yield done.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def close(self) -> None:
        """Nothing is held."""

    def _one(self, one: Asked) -> Answer:
        pauses = random.Random(one.key)  # so that those who failed together do not come back together
        for attempt in range(1, self._settings.tries + 1):
            try:
                return self._ask(one)
            except _RefusedError as error:
                return Answer(one.key, "", error=str(error))
            except (_AgainError, OSError, http.client.HTTPException) as error:
                why = " ".join(str(error).split())[:200] or type(error).__name__
                if attempt == self._settings.tries:
                    break
                with self._lock:
                    self._retries += 1
                pause = min(LONGEST, 0.5 * 2 ** (attempt - 1) * (1 + pauses.random()))
                self._sleep(max(pause, min(LONGEST, getattr(error, "after", 0.0))))
        raise AnswererError(f"{self.facts().name}: failed {self._settings.tries} times in a row: {why}")

    def _ask(self, one: Asked) -> Answer:
        settings = self._settings
        try:
            messages = wire(one.messages)
        except (ValueError, OSError) as error:
            raise _RefusedError(" ".join(str(error).split())) from error
        body = {
            "model": self._name, "messages": messages, self._tokens_key: settings.max_tokens,
            "temperature": settings.temperature, "seed": one.seed, "stream": True,
            "stream_options": {"include_usage": True},
        }  # fmt: skip
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream", "User-Agent": "m27-eval"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        connection = self._connection()
        began = time.perf_counter()
        try:
            connection.request("POST", f"{self._url.path.rstrip('/')}/chat/completions", json.dumps(body), headers)
            with closing(connection.getresponse()) as response:
                if response.status != 200:
                    self._failed(response)
                return self._read(one.key, response, began)
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        host, port = self._url.hostname or "", self._url.port
        if self._url.scheme == "https":
            return http.client.HTTPSConnection(host, port, timeout=TIMEOUT, context=ssl.create_default_context())
        return http.client.HTTPConnection(host, port, timeout=TIMEOUT)

    def _failed(self, response: http.client.HTTPResponse) -> None:
        said = response.read(4000).decode("utf-8", "replace")
        why = f"{response.status} {' '.join(said.split())[:200]}"
        if response.status in PASSING or response.status >= 500:
            after = response.headers.get("Retry-After", "")
            raise _AgainError(why, float(after) if after.replace(".", "", 1).isdigit() else 0.0)
        if response.status == 400 and "max_completion_tokens" in said and self._tokens_key == "max_tokens":
            self._tokens_key = "max_completion_tokens"  # what newer models of OpenAI's call it
            raise _AgainError(why)
        if response.status in (401, 403, 404):
            raise AnswererError(f"{self.facts().name}: {why}")
        raise _RefusedError(why)

    def _read(self, key: str, response: http.client.HTTPResponse, began: float) -> Answer:
        pieces: list[str] = []
        first: float | None = None
        usage: dict[str, Any] = {}
        read, ended = 0, False
        streamed = "text/event-stream" in response.headers.get("Content-Type", "")
        chunks: Iterator[bytes] = iter(response) if streamed else iter([b"data: " + response.read(MOST)])
        for line in chunks:
            read += len(line)
            if read > MOST:
                raise _RefusedError(f"the answer is longer than {MOST:,} bytes")
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                ended = True
                break
            try:
                event = json.loads(data)
                if "error" in event:
                    raise _AgainError(f"while it answered: {event['error']}")
                usage = event.get("usage") or usage
                self._says = str(event.get("model") or self._says)
                for choice in event.get("choices") or []:
                    piece = (choice.get("delta") or choice.get("message") or {}).get("content") or ""
                    if piece and first is None and streamed:
                        first = time.perf_counter() - began
                    pieces.append(piece if isinstance(piece, str) else _words(piece))
                    ended = ended or bool(choice.get("finish_reason"))
            except (ValueError, AttributeError, TypeError) as error:
                raise _AgainError(f"what came is no chat completion: {error}") from error
        if not ended:
            raise _AgainError("the answer broke off")
        counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
        return Answer(key, "".join(pieces).strip(), time.perf_counter() - began, first, *counts)


def _words(parts: list[dict[str, Any]]) -> str:
    return "".join(part.get("text", "") for part in parts if part.get("type") == "text")


def _address(base: str) -> SplitResult:
    try:
        url = urlsplit(base)
        port = url.port
    except ValueError:
        url, port = urlsplit(""), None
    if url.scheme not in ("http", "https") or not url.hostname or port == 0:
        raise AnswererError(f"{base}: is no address such as https://host/v1")
    return url


def wire(messages: Messages) -> list[dict[str, Any]]:
    """Messages in OpenAI's form, media as base64. Raises MediaError and OSError for a medium that cannot be had."""
    out = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            content = [_part(part) for part in content]
            if all(part["type"] == "text" for part in content):  # servers of words alone take no lists
                content = "".join(part["text"] for part in content)
        out.append({"role": message["role"], "content": content})
    return out


def _part(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    kind, data = as_file(part)
    encoded = base64.b64encode(data).decode()
    if part["type"] == "image":
        return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{encoded}"}}
    form = {"audio/wav": "wav", "audio/mpeg": "mp3", "audio/flac": "flac", "audio/ogg": "ogg"}[kind]
    return {"type": "input_audio", "input_audio": {"data": encoded, "format": form}}
