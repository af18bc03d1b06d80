"""A stand-in for an OpenAI-compatible server that answers by a rule and fails on wish."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeOpenAI(ThreadingHTTPServer):
    """`rule(body)` gives the answer; `fault(number)` of the n-th request: 0, an HTTP status, or -1 to break off."""

    daemon_threads = True

    def __init__(self, rule: Callable[[dict[str, Any]], str], fault: Callable[[int], int] = lambda n: 0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.rule, self.fault = rule, fault
        self.count, self.bodies, self.keys = 0, [], set()
        self.lock = threading.Lock()

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: FakeOpenAI

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.count += 1
            number = self.server.count
            self.server.bodies.append(body)
            self.server.keys.add(self.headers.get("Authorization"))
        fault = self.server.fault(number)
        if fault > 0:
            self.send_response(fault)
            self.end_headers()
            self.wfile.write(b'{"error": {"message": "as told"}}')
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        text = self.server.rule(body)
        for piece in (text[: len(text) // 2], text[len(text) // 2 :]):
            self._event({"model": "fake-1", "choices": [{"delta": {"content": piece}}]})
            if fault < 0:
                return
        self._event({"choices": [{"delta": {}, "finish_reason": "stop"}]})
        self._event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, event: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(rule: Callable[[dict[str, Any]], str], fault: Callable[[int], int] = lambda n: 0) -> Iterator[FakeOpenAI]:
    """A server for a while."""
    server = FakeOpenAI(rule, fault)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
