"""`m27 serve` as a process of its own: it says where it is, drains on SIGTERM, and refuses in one line."""

import contextlib
import json
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from m27.infer.store import store
from tests import tiny
from tests.serve import live

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model without codecs: it answers in words alone."""
    return tiny.write_words(tmp_path_factory.mktemp("tiny-model"))


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")


def start(
    model: Path, *arguments: str, before: tuple[str, ...] = (), **environment: str
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *before, "m27.cli", "serve", "--model", str(model), "--precision", "float32",
         *arguments],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip


class Running:
    """A process that serves, what it has said, and what it logs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: queue.Queue[str] = queue.Queue()
        self.logged: list[str] = []
        for stream, keep in ((process.stdout, self.lines.put), (process.stderr, self.logged.append)):
            threading.Thread(target=lambda s, k: [k(line) for line in s], args=(stream, keep), daemon=True).start()
        said = self.lines.get(timeout=120)
        found = re.fullmatch(r"(\S+) answers at (http://\S+:(\d+))\n", said)
        assert found, said
        self.name, self.url, self.port = found[1], found[2], int(found[3])

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@pytest.fixture(params=["--engine-process", "--no-engine-process"])
def serving(model: Path, request: pytest.FixtureRequest) -> Iterator[Running]:
    process = start(model, "--port", "0", "--name", "tiny", "--drain", "20", request.param)
    try:
        yield Running(process)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(30)
        for stream in (process.stdout, process.stderr):
            stream.close()


def test_it_says_where_it_is_and_ends_when_told(serving: Running) -> None:
    assert serving.lines.get(timeout=10) == "\n"
    curl = serving.lines.get(timeout=10)
    assert curl.startswith(f"curl {serving.url}/v1/chat/completions ")
    body = json.loads(curl.split("-d '")[1].rstrip("'\n")) | {"max_tokens": 4}
    head = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{serving.url}/v1/chat/completions", json.dumps(body).encode(), head)
    with urllib.request.urlopen(request, timeout=30) as response:
        assert json.load(response)["model"] == serving.name == "tiny"
    with urllib.request.urlopen(f"{serving.url}/health", timeout=30) as response:
        health = json.load(response)
    assert health["status"] == "ok" and health["modalities"] == ["text"]
    assert serving.end() == 0
    rows = [json.loads(line) for line in serving.logged]
    chat = next(row for row in rows if row.get("path") == "/v1/chat/completions")
    assert chat["status"] == 200 and chat["request_id"] and chat["seconds"] > 0
    assert chat["completion_tokens"] <= 4


def test_sigterm_lets_answers_end_and_takes_no_more(serving: Running) -> None:
    body = {
        "messages": [{"role": "user", "content": "x"}], "stream": True, "max_tokens": 700,
        "temperature": 1.5, "seed": 3,
    }  # fmt: skip
    data = json.dumps(body).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(data)}\r\n\r\n"
    streams = [socket.create_connection(("127.0.0.1", serving.port), timeout=60) for _ in range(4)]
    said = [b""] * len(streams)
    for stream in streams:
        stream.sendall(head.encode() + data)
    for k, stream in enumerate(streams):
        said[k] = stream.recv(200)  # it is under way
    serving.process.send_signal(signal.SIGTERM)
    ends = time.monotonic() + 20
    while time.monotonic() < ends:  # nobody listens any more
        try:
            socket.create_connection(("127.0.0.1", serving.port), timeout=5).close()
        except OSError:
            break
        time.sleep(0.05)
    else:
        pytest.fail("still listening")
    for k, stream in enumerate(streams):
        while piece := stream.recv(65_536):
            said[k] += piece
        stream.close()
        assert b"data: [DONE]" in said[k] and b'"finish_reason": "' in said[k]
    assert serving.process.wait(60) == 0


def test_what_cannot_be_is_one_line(model: Path) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    port = str(taken.getsockname()[1])
    for arguments, words in (
        (("--port", port), "cannot be listened at"),
        (("--host", "0.0.0.0"), "--force"),
        (("--keys", "nowhere.txt"), "cannot be read"),
        (("--port", "0", "--adapter", "x"), "NAME=FOLDER"),
        (("--port", "0", "--waiting", "-1"), "waiting"),
        (("--port", "0", "--body-mb", "0"), "body_bytes"),
    ):
        process = start(model, *arguments)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 2, err
        assert out == "" and err.count("\n") == 1 and words in err, err
    taken.close()


def test_a_public_address_with_a_key(model: Path) -> None:
    process = start(model, "--host", "0.0.0.0", "--port", "0", M27_API_KEYS="sk-0123456789abcdef")
    serving = Running(process)
    connection = live.http.client.HTTPConnection("127.0.0.1", serving.port, timeout=30)
    connection.request("GET", "/v1/models", headers={"Host": "some.name"})
    assert live.Answer(connection.getresponse()).status == 401
    connection.close()
    assert serving.end() == 0
    process.stdout.close()
    process.stderr.close()


def test_a_folder_of_rounded_weights_is_served(model: Path, tmp_path: Path) -> None:
    store(model, tmp_path, "int8")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        if (model / name).is_file():
            shutil.copyfile(model / name, tmp_path / name)
    process = start(tmp_path, "--port", "0", "--precision", "auto", "--threads", "1")
    serving = Running(process)
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 4}
    head = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{serving.url}/v1/chat/completions", json.dumps(body).encode(), head)
    with urllib.request.urlopen(request, timeout=60) as response:
        assert json.load(response)["usage"]["completion_tokens"] <= 4
    assert serving.end() == 0
    process.stdout.close()
    process.stderr.close()
    process = start(tmp_path, "--port", "0")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2 and out == "" and err.count("\n") == 1
    assert "holds weights in int8; float32 cannot be had of them" in err


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="processes are read from /proc")
def test_two_processes_serve_one_model_and_end_together(model: Path) -> None:
    process = start(model, "--port", "0", "--name", "tiny", before=TORCHRUN)
    serving = Running(process)
    workers = children(process.pid)
    assert len(workers) >= 2
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 300, "temperature": 1.5, "seed": 3}
    head = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{serving.url}/v1/chat/completions", json.dumps(body).encode(), head)
    said: list[bytes] = []

    def ask() -> None:
        with urllib.request.urlopen(request, timeout=60) as response:
            said.append(response.read())

    ask()
    askers = [threading.Thread(target=ask) for _ in range(4)]
    for asker in askers:
        asker.start()
    ends = time.monotonic() + 60
    while time.monotonic() < ends:  # the answers are under way when the stop comes
        with urllib.request.urlopen(f"{serving.url}/metrics", timeout=30) as response:
            running = re.search(r"^m27_\w*running\w* ([\d.]+)", response.read().decode(), re.MULTILINE)
        if len(said) > 1 or (running and float(running[1]) >= 4):
            break
    process.send_signal(signal.SIGTERM)
    for asker in askers:
        asker.join(60)
    answers = {json.loads(answer)["choices"][0]["message"]["content"] for answer in said}
    assert len(said) == 5 and len(answers) == 1
    process.wait(60)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert not [line for line in serving.logged if line.startswith("m27: ")]
    process.stdout.close()
    process.stderr.close()
