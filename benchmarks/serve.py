"""What a client waits for, and what of it is the server: 200 requests, 16 at once, a third with a picture.

    python -m benchmarks.serve --requests 200 --concurrent 16
    python -m benchmarks.serve --requests 8 --concurrent 2       # a trial

The same requests first go to the engine in this process, as many at once, then over HTTP to a server of
the same weights, streamed: time to the first token, time between tokens, the whole. The same seed gives
the same answers, so both write as many tokens. None may fail, and none may be lost. What the server adds
is the difference of the medians of the whole. Prints a table, writes JSON; exit status 1 where a request
failed.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import statistics
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # found from any folder

from benchmarks import machine
from benchmarks.serving import ROOT, serving
from m27.codec.media import png_bytes, read_image, write_atomic
from m27.infer.engine import Engine
from m27.infer.request import Request

RESULTS = Path(__file__).resolve().parent / "results"
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
            content: list[dict[str, Any]] = [{"type": "text", "text": request.text}]
            if request.picture is not None:
                content.insert(0, {"type": "image", "image": read_image(request.picture)})
            message = {"role": "user", "content": content}
            number = engine.add(Request([message], modalities=("text",), max_tokens=tokens, seed=1))
            began[number] = (start, Timing())
            timings.append(began[number][1])
        for number, event in engine.step():
            start, timing = began[number]
            now = time.perf_counter() - start
            if event["type"] == "text" and not timing.first:
                timing.first = now
            elif event["type"] in ("done", "error"):
                timing.whole, timing.fault = now, event.get("message", "")
                timing.tokens = event["usage"].completion_tokens if event["type"] == "done" else 0
                del began[number]
    return timings


def over_http(url: str, requests: list[Asked], concurrent: int, tokens: int) -> list[Timing]:
    """The same over HTTP, one thread a client."""
    waiting = deque(requests)
    timings: list[Timing] = []

    def client() -> None:
        while True:
            try:
                request = waiting.popleft()
            except IndexError:
                return
            timing = Timing()
            timings.append(timing)
            try:
                _ask(url, request, tokens, timing)
            except (OSError, ValueError, KeyError, http.client.HTTPException) as error:
                timing.fault = f"{type(error).__name__}: {error}"

    clients = [threading.Thread(target=client) for _ in range(concurrent)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    return timings


def _ask(url: str, request: Asked, tokens: int, timing: Timing) -> None:
    content: list[dict[str, Any]] = [{"type": "text", "text": request.text}]
    if request.picture is not None:
        data = "data:image/png;base64," + base64.b64encode(request.picture).decode("ascii")
        content.insert(0, {"type": "image_url", "image_url": {"url": data}})
    body = {
        "messages": [{"role": "user", "content": content}], "modalities": ["text"], "seed": 1,
        "max_completion_tokens": tokens, "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=600)
    start = time.perf_counter()
    try:
        head = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), head)
        response = connection.getresponse()
        if response.status != 200:
            raise ValueError(f"status {response.status}: {response.read(200)!r}")
        for line in response:
            if line.startswith(b"data: {"):
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    raise ValueError(chunk["error"]["message"])
                if chunk.get("usage"):
                    timing.tokens = chunk["usage"]["completion_tokens"]
                elif not timing.first and chunk["choices"][0]["delta"].get("content"):
                    timing.first = time.perf_counter() - start
        timing.whole = time.perf_counter() - start
    finally:
        connection.close()


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


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", type=Path, default=ROOT / "weights" / "m27-nano")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--concurrent", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--out", type=Path, default=RESULTS / "serve.json")
    options = parser.parse_args()
    requests = asked(options.requests)
    rows: dict[str, dict[str, float]] = {}
    faults: list[str] = []

    def noted(name: str, ask: Any) -> None:
        began = time.perf_counter()
        timings = ask()
        rows[name] = summary(timings, time.perf_counter() - began)
        faults.extend(f"{name}: {t.fault}" for t in timings if t.fault)
        assert len(timings) == len(requests)

    engine = Engine.load(options.model, precision=options.precision)
    over_engine(engine, asked(2, seed=1), 2, 4)  # what is done once is not measured
    noted("engine", lambda: over_engine(engine, requests, options.concurrent, options.tokens))
    engine.close()
    with serving(options.model, ["--precision", options.precision]) as url:
        over_http(url, asked(2, seed=1), 2, 4)
        noted("server", lambda: over_http(url, requests, options.concurrent, options.tokens))
    added = rows["server"]["whole_p50"] / rows["engine"]["whole_p50"] - 1.0
    for name, row in rows.items():
        print(name, *(f"{key}={value:.4g}" for key, value in row.items()))
    print(f"added at p50: {100 * added:+.1f} %")
    for fault in faults[:10]:
        print(fault, file=sys.stderr)
    result = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine.describe(0),
        "options": {k: str(v) for k, v in vars(options).items()}, **rows, "added_p50": added,
    }  # fmt: skip
    write_atomic(options.out, json.dumps(result, indent=1).encode())
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
