"""A server on a port of its own, in a thread, over the tiny model; and plain ways to ask it."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from m27.codec import media
from m27.infer.engine import Engine
from m27.infer.media import MediaWorker
from m27.infer.scheduler import Limits
from m27.infer.schema import JsonSchemas
from m27.infer.torch_runner import TorchRunner
from m27.serve import run
from m27.serve.auth import Keys
from m27.serve.engine_loop import EngineLike
from m27.serve.engine_thread import EngineThread
from m27.serve.front import Front
from m27.serve.gate import Gate, GateLimits
from m27.serve.listen import listen
from m27.serve.server import Server
from m27.serve.settings import Settings
from tests import tiny

CHAT = "/v1/chat/completions"
NOWHERE = Path("nowhere")


class Answer:
    """What came back: `status`, `headers` by lower-case name, `body`."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = {k.lower(): v for k, v in response.getheaders()}
        self.body = response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        return self.json["error"]


class Live:
    """A server that runs: where, and its parts."""

    def __init__(self, server: Server, service: run.Service, port: int) -> None:
        self.server, self.service, self.port = server, service, port
        self.url = f"http://127.0.0.1:{port}"

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """One request; what is not bytes is sent as JSON."""
        connection = self.connect()
        headers = dict(headers or {})
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers.setdefault("Content-Type", "application/json")
        try:
            connection.request(method, path, body, headers)
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def chat(self, content: Any, **options: Any) -> Answer:
        """One question."""
        messages = content if isinstance(content, list) and "role" in content[0] else None
        body = {"messages": messages or [{"role": "user", "content": content}], "seed": 1, **options}
        return self.ask("POST", CHAT, body)

    def stream(self, content: Any, **options: Any) -> list[dict[str, Any]]:
        """The chunks of a streamed answer, `[DONE]` checked and left out."""
        answer = self.chat(content, stream=True, **options)
        assert answer.status == 200, answer.body
        assert answer.headers["content-type"].startswith("text/event-stream")
        return events(answer.body)

    def form(self, path: str, files: dict[str, bytes], fields: dict[str, str] | None = None) -> Answer:
        """A multipart form."""
        mark = b"----m27"
        pieces = []
        for name, value in (fields or {}).items():
            head = f'Content-Disposition: form-data; name="{name}"'
            pieces.append(b"--" + mark + b"\r\n" + head.encode() + b"\r\n\r\n" + value.encode())
        for name, data in files.items():
            head = f'Content-Disposition: form-data; name="{name}"; filename="f"'
            head += "\r\nContent-Type: application/octet-stream"
            pieces.append(b"--" + mark + b"\r\n" + head.encode() + b"\r\n\r\n" + data)
        body = b"\r\n".join([*pieces, b"--" + mark + b"--\r\n"])
        kind = {"Content-Type": "multipart/form-data; boundary=" + mark.decode()}
        return self.ask("POST", path, body, kind)

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels; a name with labels is one row."""
        rows = self.ask("GET", "/metrics").body.decode().splitlines()
        found = [r for r in rows if r.startswith(name) and r[len(name)] in " {"]
        return sum(float(row.rpartition(" ")[2]) for row in found)


def events(body: bytes) -> list[dict[str, Any]]:
    """The messages of an event stream that ends in [DONE]; comments are left out."""
    found = [line[6:] for line in body.decode().splitlines() if line.startswith("data: ")]
    assert found[-1] == "[DONE]"
    return [json.loads(line) for line in found[:-1]]


def deltas(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The deltas of the first choice."""
    return [c["choices"][0]["delta"] for c in chunks if c.get("choices")]


def engine(blocks: int = 2000, **limits: Any) -> Engine:
    """The tiny model with all that the shipped one has: schemas, and media beside the step."""
    processor = tiny.processor()
    return Engine(
        TorchRunner(tiny.decoder(), blocks), processor, Limits(**limits),
        make_rules=JsonSchemas(processor), media=MediaWorker(processor),
    )  # fmt: skip


@contextmanager
def running(
    over: EngineLike | Front | None = None,
    settings: Settings | None = None,
    keys: Keys | None = None,
    *,
    limits: GateLimits | None = None,
    adapters: tuple[str, ...] = (),
    web: Path = NOWHERE,
) -> Iterator[Live]:
    """A server while the block lasts: over an engine, in a thread, or over one that runs elsewhere."""
    settings = settings or Settings(name="tiny", port=0, drain_seconds=1)
    front = over if isinstance(over, Front) else EngineThread(over or engine(), settings.stuck_seconds)
    gate = Gate(limits or GateLimits(workers=1))
    server = Server.of(front, settings, keys or Keys([]), gate, adapters)
    listening = listen("127.0.0.1", 0)
    up = threading.Event()
    service = run.service(server, up.set, web)
    failed: list[BaseException] = []

    def serve() -> None:
        try:
            asyncio.run(service.serve(sockets=[listening]))
        except BaseException as error:
            failed.append(error)
            up.set()

    running_in = threading.Thread(target=serve, name="server")
    running_in.start()
    try:
        assert up.wait(120)
        assert not failed, failed
        yield Live(server, service, listening.getsockname()[1])
    finally:
        service.should_exit = True
        running_in.join(60)
        assert not running_in.is_alive()


def png(level: int = 128, side: int = 128, seed: int | None = None) -> bytes:
    """A grey picture, or one of noise."""
    rgb = np.full((side, side, 3), level, np.uint8)
    if seed is not None:
        rgb = np.random.default_rng(seed).integers(0, 256, rgb.shape, dtype=np.uint8)
    return media.png_bytes(rgb)


def bmp(seed: int, width: int = 64, height: int = 64) -> bytes:
    """A picture of coarse noise whose length depends on its area alone."""
    rng = np.random.default_rng(seed)
    rgb = rng.integers(0, 256, (-(-height // 16), -(-width // 16), 3), dtype=np.uint8)
    out = io.BytesIO()
    rgb = rgb.repeat(16, 0).repeat(16, 1)[:height, :width]
    Image.fromarray(rgb).save(out, "BMP")
    return out.getvalue()


def wav(seconds: float = 0.5) -> bytes:
    """A sound that rises from -1 to 1."""
    return media.wav_bytes(np.linspace(-1, 1, round(16_000 * seconds)).astype(np.float32))
