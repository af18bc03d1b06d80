"""What a client waits for, and what of it is the server: 200 requests, 16 at once, a third with a picture.

    python -m benchmarks.serve --requests 200 --concurrent 16
    python -m benchmarks.serve --requests 8 --concurrent 2 --rounds 1      # a trial

Each round asks the same requests in three ways, as many at once, each way with the same seed and so with as
many tokens. "engine": by this process, between its steps, so that none ever waits for a step under way.
"threads": by threads beside it, which is the same engine asked as anything must ask it that is not its own
loop. "server": over HTTP, streamed, by clients that are woken by their first words and by the end, whose requests
were written before and whose answers are read afterwards: they run on the cores that the engine computes
on, and their work is not the server's. Time to the first token, time
between tokens, the whole; what the server adds is by how much its median of the whole is longer, over the
requests of all rounds, with an interval by a bootstrap over rounds; the ways begin the rounds by turns. None may
fail, and none may be lost. Prints a table, writes JSON; exit status 1 where a request failed.
"""

from __future__ import annotations

import argparse
import base64
import json
import queue
import re
import socket
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # found from any folder

from benchmarks import machine
from benchmarks.serving import ROOT, record, serving
from m27.codec.media import png_bytes, read_image
from m27.infer.engine import Engine
from m27.infer.request import Request

RESULTS = Path(__file__).resolve().parent / "results"
WAYS = ("engine", "threads", "server")
_WORDS_CAME = re.compile(rb'"content":\s*"[^"]')
_AGAIN = 10_000
T = TypeVar("T")
_MORE = 1 << 20  # bytes that no answer has: who waits for so many is woken by the end
WORDS = "sea wind apple river stone cloud bread house cat bird red small far old new three".split()


@dataclass
class Timing:
    """Of one request, in seconds: to its first text, to its end; and tokens written. `fault`: why it
    failed, if it did."""

    first: float = 0.0
    whole: float = 0.0
    tokens: int = 0
    fault: str = ""


@dataclass
class Asked:
    """One request: words, and the picture that a third of them have."""

    text: str
    picture: bytes | None


def asked(count: int, seed: int = 0) -> list[Asked]:
    """Requests, no two alike, so that nothing is found in the cache but the template."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        text = f"Tell a long story, number {number}, of " + " ".join(rng.choice(WORDS, 40))
        rgb = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8).repeat(20, 0).repeat(20, 1)
        made.append(Asked(text, png_bytes(rgb) if number % 3 == 0 else None))
    return made


def over_engine(engine: Engine, requests: list[Asked], concurrent: int, tokens: int) -> list[Timing]:
    """The requests through the engine itself, `concurrent` under way at once."""
    waiting = deque(requests)
    began: dict[int, tuple[float, Timing]] = {}
    timings: list[Timing] = []
    while waiting or began:
        while waiting and len(began) < concurrent:
            start, request = time.perf_counter(), waiting.popleft()
            number = engine.add(_request(request, tokens, "engine"))
            began[number] = (start, Timing())
            timings.append(began[number][1])
        for number, event in engine.step():
            if _noted(*began[number], event):
                del began[number]
    return timings


def over_threads(
    engine: Engine, requests: list[Asked], concurrent: int, tokens: int
) -> list[Timing]:
    """The same, asked by threads while the engine steps."""
    timings = [Timing() for _ in requests]
    waiting, arrived = deque(zip(requests, timings, strict=True)), queue.SimpleQueue[Any]()

    def client() -> None:
        for request, timing in _each(waiting):
            start, over = time.perf_counter(), threading.Event()
            arrived.put((_request(request, tokens, "threads"), start, timing, over))
            over.wait()
        arrived.put(None)

    for _ in range(concurrent):
        threading.Thread(target=client).start()
    began: dict[int, tuple[float, Timing, threading.Event]] = {}
    clients = concurrent
    while clients or began:
        while not began or not arrived.empty():
            if (one := arrived.get()) is None:
                clients -= 1
            else:
                began[engine.add(one[0])] = one[1:]
            if not clients:
                break
        for number, event in engine.step():
            start, timing, over = began[number]
            if _noted(start, timing, event):
                del began[number]
                over.set()
    return timings


def _request(request: Asked, tokens: int, way: str) -> Request:
    """As a tenant's, so that no way finds what another has computed."""
    content: list[dict[str, Any]] = [{"type": "text", "text": request.text}]
    if request.picture is not None:
        content.insert(0, {"type": "image", "image": read_image(request.picture)})
    message = {"role": "user", "content": content}
    return Request([message], modalities=("text",), max_tokens=tokens, seed=1, tenant=way)


def _each(waiting: deque[T]) -> Iterator[T]:
    """Those that are left, for one of several threads."""
    with suppress(IndexError):
        while True:
            yield waiting.popleft()


def _noted(start: float, timing: Timing, event: dict[str, Any]) -> bool:
    """Note an event; whether it is the last of its request."""
    now = time.perf_counter() - start
    if event["type"] == "text" and not timing.first:
        timing.first = now
    elif event["type"] in ("done", "error"):
        timing.whole, timing.fault = now, event.get("message", "")
        timing.tokens = event["usage"].completion_tokens if event["type"] == "done" else 0
        return True
    return False


def over_http(url: str, requests: list[Asked], concurrent: int, tokens: int) -> list[Timing]:
    """The same over HTTP, one thread a client."""
    timings, answers = [Timing() for _ in requests], [b""] * len(requests)
    waiting = deque((place, _written(url, request, tokens)) for place, request in enumerate(requests))

    def client() -> None:
        for place, request in _each(waiting):
            try:
                answers[place] = _ask(url, request, timings[place])
            except OSError as error:
                timings[place].fault = f"{type(error).__name__}: {error}"

    clients = [threading.Thread(target=client) for _ in range(concurrent)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    for timing, told in zip(timings, answers, strict=True):
        if not timing.fault:
            try:
                timing.tokens = _tokens(told)
            except (ValueError, KeyError, IndexError) as error:
                timing.fault = f"{type(error).__name__}: {error}"
    return timings


def _written(url: str, request: Asked, tokens: int) -> bytes:
    """A request as it goes over the wire."""
    content: list[dict[str, Any]] = [{"type": "text", "text": request.text}]
    if request.picture is not None:
        data = "data:image/png;base64," + base64.b64encode(request.picture).decode("ascii")
        content.insert(0, {"type": "image_url", "image_url": {"url": data}})
    body = {
        "messages": [{"role": "user", "content": content}], "modalities": ["text"], "seed": 1,
        "max_completion_tokens": tokens, "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    parts, data = urlsplit(url), json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


def _ask(url: str, request: bytes, timing: Timing) -> bytes:
    """Send a request and note when its words come; what came."""
    parts, told, start = urlsplit(url), bytearray(), time.perf_counter()
    with socket.create_connection((parts.hostname, parts.port), timeout=600) as link:
        link.sendall(request)
        while piece := link.recv(_MORE):
            told += piece
            if not timing.first and _WORDS_CAME.search(told):
                timing.first = time.perf_counter() - start
                link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, _MORE)
        timing.whole = time.perf_counter() - start
    return bytes(told)


def _tokens(told: bytes) -> int:
    """How many tokens an answer says that it has. Raises ValueError where it is none, or not whole."""
    status, _, rest = told.partition(b"\r\n\r\n")
    if not status.startswith(b"HTTP/1.1 200 "):
        raise ValueError(f"{status[:40]!r}: {rest[:200]!r}")
    messages = [line[6:] for line in rest.splitlines() if line.startswith(b"data: ")]
    if not messages or messages[-1] != b"[DONE]":
        raise ValueError("the answer broke off")
    chunks = [json.loads(message) for message in messages[:-1]]
    if "error" in chunks[-1]:
        raise ValueError(chunks[-1]["error"]["message"])
    return int(chunks[-1]["usage"]["completion_tokens"])


def summary(timings: list[Timing], seconds: float) -> dict[str, float]:
    """Medians and the 95th percentile, and tokens a second of all."""
    good = [t for t in timings if not t.fault]
    whole = sorted(t.whole for t in good)
    each = [(t.whole - t.first) / (t.tokens - 1) for t in good if t.tokens > 1]
    return {
        "requests": len(timings), "failed": len(timings) - len(good),
        "first_p50": statistics.median(t.first for t in good), "between_p50": statistics.median(each),
        "whole_p50": statistics.median(whole), "whole_p95": whole[int(0.95 * (len(whole) - 1))],
        "tokens_per_second": sum(t.tokens for t in good) / seconds,
    }  # fmt: skip


def added(wholes: Mapping[str, Sequence[Sequence[float]]], over: str) -> dict[str, Any]:
    """By how much more the server takes at p50 than `over`, as a share: over all requests, with a 95 % interval
    (10,000 bootstraps over rounds), and round by round. `wholes`: seconds of each request of each round."""
    pairs = list(zip(wholes["server"], wholes[over], strict=True))

    def share(rounds: Sequence[tuple[Sequence[float], Sequence[float]]]) -> float:
        ours, theirs = ([s for pair in rounds for s in pair[side]] for side in (0, 1))
        return float(np.median(ours) / np.median(theirs) - 1.0)

    rng = np.random.default_rng(0)
    again = [share([pairs[i] for i in rng.integers(0, len(pairs), len(pairs))]) for _ in range(_AGAIN)]
    low, high = np.quantile(again, (0.025, 0.975))
    return {
        "share": share(pairs), "low": float(low), "high": float(high), "rounds": [share([pair]) for pair in pairs],
    }  # fmt: skip


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", type=Path, default=ROOT / "weights" / "m27-nano")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--concurrent", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--out", type=Path, default=RESULTS / "serve.json")
    options = parser.parse_args()
    rows: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    wholes: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    faults: list[str] = []
    seeds = count()
    sys.setswitchinterval(0.0005)  # as in the server
    engine = Engine.load(options.model, precision=options.precision)
    with serving(options.model, ["--precision", options.precision]) as url:
        ask = {
            "engine": lambda *what: over_engine(engine, *what),
            "threads": lambda *what: over_threads(engine, *what),
            "server": lambda *what: over_http(url, *what),
        }
        for way in WAYS:  # what is done once is not measured
            ask[way](asked(2, next(seeds)), 2, 4)
        for number in range(options.rounds):
            seed, first = next(seeds), number % len(WAYS)
            for way in (*WAYS[first:], *WAYS[:first]):
                requests, began = asked(options.requests, seed), time.perf_counter()
                timings = ask[way](requests, options.concurrent, options.tokens)
                assert len(timings) == len(requests)
                rows[way].append(summary(timings, time.perf_counter() - began))
                wholes[way].append([t.whole for t in timings if not t.fault])
                faults += [f"{way}: {t.fault}" for t in timings if t.fault]
                print(way, *(f"{key}={value:.4g}" for key, value in rows[way][-1].items()), flush=True)
    engine.close()
    over = {way: added(wholes, way) for way in WAYS[:2]}
    for way, found in over.items():
        share, low, high = (f"{100 * found[name]:+.1f}" for name in ("share", "low", "high"))
        print(f"the server adds to {way} at p50: {share} % ({low} to {high})")
    for fault in faults[:10]:
        print(fault, file=sys.stderr)
    result = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine.describe(0),
        "options": {k: str(v).replace(f"{ROOT}/", "") for k, v in vars(options).items()}, **rows,
        "added_p50": over,
    }  # fmt: skip
    record(options.out, f"chat, {options.tokens} tokens", result)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
