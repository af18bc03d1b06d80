"""llama.cpp's own server, `llama-server`: continuous batching over HTTP.

Runs in llama.cpp's environment, though it needs nothing of it but numpy.
"""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.worker import Floats, Ids, Timed, die_with_parent, serve


class LlamaServer:
    """Settings: `model` (GGUF), `threads`, `build` (folder of the binaries), `slots`, `room`
    (tokens a slot)."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]
        slots, threads = settings.get("slots", 16), str(settings["threads"])
        room = str(slots * settings.get("room", 768))
        self.process = subprocess.Popen(
            [
                str(Path(settings["build"]) / "bin/llama-server"), "-m", settings["model"],
                "--host", "127.0.0.1", "--port", str(self.port), "-np", str(slots), "-c", room,
                "-t", threads, "-tb", threads, "-b", "2048", "-ub", "512", "--threads-http", "2",
                "--no-webui", "--no-warmup", "--cache-ram", "0", "-lv", "1",
            ],
            stdin=subprocess.DEVNULL, stdout=sys.stderr, preexec_fn=die_with_parent,
        )  # fmt: skip
        for _ in range(600):
            if self.process.poll() is not None:
                raise RuntimeError(f"llama-server ended with status {self.process.returncode}")
            try:
                if self._get("/health").status == 200:
                    return
            except OSError:
                pass
            time.sleep(0.1)
        raise RuntimeError("llama-server does not come up")

    def _get(self, path: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request("GET", path)
        return connection.getresponse()

    def facts(self) -> dict[str, Any]:
        """Versions and bytes."""
        return {
            "versions": {"llama-cpp-python": self.settings.get("version", "")},
            "bytes": Path(self.settings["model"]).stat().st_size,
        }

    def _ask(self, prompt: Ids, count: int) -> tuple[Ids, float, float]:
        """Ids of one streamed answer, and the moments of the first and the last."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        body = {
            "prompt": prompt, "n_predict": count, "temperature": 0.0, "top_k": 1,
            "samplers": ["top_k"], "ignore_eos": True, "cache_prompt": False, "stream": True,
            "return_tokens": True,
        }  # fmt: skip
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/completion", json.dumps(body), headers)
        response = connection.getresponse()
        ids: Ids = []
        first = 0.0
        for line in response:
            if line.startswith(b"data: "):
                event = json.loads(line[6:])
                if "error" in event:
                    raise RuntimeError(str(event["error"]))
                if event.get("tokens"):
                    ids += event["tokens"]
                    first = first or time.perf_counter()
        connection.close()
        return ids[:count], first, time.perf_counter()

    def generate(self, prompt: Ids, count: int) -> Timed:
        """As the protocol says."""
        return self.batch([prompt], count)

    def batch(self, prompts: Sequence[Ids], count: int) -> Timed:
        """A connection a prompt, all at once."""
        results: list[Any] = [None] * len(prompts)

        def ask(i: int) -> None:
            results[i] = self._ask(prompts[i], count)

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(prompts))]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if None in results:
            raise RuntimeError("a request to llama-server failed")
        ids, first, last = zip(*results, strict=True)
        return Timed(list(ids), min(first) - began, max(last) - began)

    def logits(self, ids: Ids) -> Floats:
        """The peer `llamacpp` tells them."""
        raise NotImplementedError

    def close(self) -> None:
        """End the server."""
        self.process.terminate()
        self.process.wait(10)


if __name__ == "__main__":
    serve(LlamaServer)
