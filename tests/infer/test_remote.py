"""remote.py: the engine's answers from servers that may die, against a stub that keeps to ids."""

import json
import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from m27.infer.remote import RemoteEngine
from m27.infer.replicas import PIECE, Replicas
from m27.infer.request import Refused, Request, RequestError
from m27.infer.respond import EngineError
from tests import tiny

MODEL = tiny.decoder()
LOCK = threading.Lock()


class Stub(ThreadingHTTPServer):
    """A server of the tiny model that always takes the likeliest id among those allowed, as vLLM's
    `/v1/completions` does at temperature 0. After `dies` ids in all it breaks off every answer."""

    daemon_threads = True

    def __init__(self, dies: int | None = None, slow: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.left, self.slow = dies, slow
        self.asked: list[dict[str, Any]] = []
        self.status, self.closed = 200, 0
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        self.closed += 1


class _Handler(BaseHTTPRequestHandler):
    server: Stub

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._send(200, {"data": [{"id": "tiny"}]})

    def _send(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        if self.server.status != 200:
            self._send(self.server.status, {"error": {"message": "no\nsuch thing"}})
            return
        self.send_response(200)
        self.end_headers()
        ids, allowed = list(body["prompt"]), body["allowed_token_ids"]
        for number in range(body["max_tokens"]):
            if self.server.left is not None:
                if self.server.left == 0:
                    return
                self.server.left -= 1
            time.sleep(self.server.slow)
            with LOCK, torch.inference_mode():
                logits = MODEL(torch.tensor([ids]))[0, -1]
            ids.append(allowed[int(logits[allowed].argmax())])
            stopped = ids[-1] in body["stop_token_ids"]
            ended = "stop" if stopped else "length" if number + 1 == body["max_tokens"] else None
            choice = {"token_ids": ids[-1:], "finish_reason": ended, "stop_reason": None}
            self.wfile.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())
            self.wfile.flush()
            if ended:
                break
        self.wfile.write(b"data: [DONE]\n\n")


@pytest.fixture
def stubs() -> Iterator[list[Stub]]:
    torch.set_num_threads(1)
    made: list[Stub] = []
    yield made
    for stub in made:
        stub.shutdown()
        stub.server_close()


def engine(stubs: list[Stub], **options: Any) -> RemoteEngine:
    urls = [stub.url for stub in stubs]
    return RemoteEngine(tiny.processor(), urls, max_len=1024, timeout=20.0, **options)


def ask(words: str, **options: Any) -> Request:
    settings = {"temperature": 0.0, "repetition_penalty": 1.0, "guidance": 1.0, "max_tokens": 60}
    settings |= {"image_grid": (2, 3), "max_audio_codes": 9, "seed": 1} | options
    return Request([{"role": "user", "content": words}], **settings)


ASKED = [
    ask("hello", modalities=("text",), max_tokens=12),
    ask("two", plan=("text", "image", "text", "audio"), max_text=4),
    ask("pictures", modalities=("image",), max_images=2),
    ask("any grid", plan=("image",), image_grid=None),
    ask("sound", plan=("audio", "text"), min_audio_codes=3, max_tokens=20),
    ask("all"),
    ask("stop", modalities=("text",), max_tokens=30, stop=("a", "b", "e")),
]


def test_greedy_answers_are_those_of_the_engine_here(stubs: list[Stub]) -> None:
    stubs += [Stub(), Stub()]
    here = tiny.engine(200)
    for got, expected in zip(engine(stubs).answer(ASKED), here.answer(ASKED), strict=True):
        assert got.ids == expected.ids
        assert got.usage == expected.usage
        assert got.text == expected.text
        assert [str(p.get("codes")) for p in got.content] == [
            str(p.get("codes")) for p in expected.content
        ]
    assert all(stub.asked for stub in stubs)


def test_what_a_dead_server_began_another_one_ends(stubs: list[Stub]) -> None:
    stubs += [Stub(dies=25), Stub()]
    remote = engine(stubs)
    expected = tiny.engine(200).answer(ASKED)
    assert [r.ids for r in remote.answer(ASKED)] == [r.ids for r in expected]
    metrics = remote.metrics()
    assert metrics["retried"] > 0 and metrics["failed"] == 0
    assert [server["resting"] for server in metrics["servers"]] == [True, False]
    assert all(server["busy"] == 0 for server in metrics["servers"])


def test_a_server_that_is_not_there_is_passed_over(stubs: list[Stub]) -> None:
    stubs += [Stub(), Stub()]
    remote = engine(stubs)
    stubs[0].shutdown()
    stubs[0].server_close()
    for _ in range(3):
        assert remote.chat(ASKED[0]).ids
    stubs.pop(0)


def test_when_no_server_answers_the_request_fails_and_says_why(stubs: list[Stub]) -> None:
    stubs.append(Stub())
    stubs[0].status = 503
    with pytest.raises(EngineError, match="status 503: no such thing"):
        engine(stubs).chat(ASKED[0])
    assert len(stubs[0].asked) == 2
    stubs[0].status = 400
    with pytest.raises(EngineError, match="status 400: no such thing"):
        engine(stubs).chat(ASKED[0])
    assert len(stubs[0].asked) == 3  # what is wrong is not tried again


def test_cancel_closes_the_connection(stubs: list[Stub]) -> None:
    stubs.append(Stub(slow=0.02))
    remote = engine(stubs)
    number = remote.add(ask("long", modalities=("text",), max_tokens=200))
    while not remote.step():
        pass
    remote.cancel(number)
    assert not remote.busy() and remote.step() == []
    end = time.monotonic() + 20
    while remote.replicas.all[0].busy or not stubs[0].closed:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert remote.metrics()["cancelled"] == 1


def test_what_vllm_cannot_do_is_refused(stubs: list[Stub]) -> None:
    stubs.append(Stub())
    remote = engine(stubs, most=1)
    for wrong, words in (
        (ask("x", guidance=2.0), "guidance 1"),
        (ask("x", modalities=("text",), schema="json"), "schema"),
        (ask("x", logprobs=1), "logprobs"),
    ):
        with pytest.raises(RequestError, match=words):
            remote.add(wrong)
    with pytest.raises(Refused):
        remote.add(ask("x", n=2))
    for url in ("ftp://x", "http://", ""):
        with pytest.raises(RequestError):
            RemoteEngine(tiny.processor(), [url])
    with pytest.raises(RequestError):
        RemoteEngine(tiny.processor(), [])


def test_several_answers_carry_their_index(stubs: list[Stub]) -> None:
    stubs.append(Stub())
    response = engine(stubs).chat(ask("n", modalities=("text",), max_tokens=6, n=3))
    assert len(response.others) == 2
    assert len({body["seed"] for body in stubs[0].asked}) == 3


def test_a_prompt_goes_where_its_beginning_is_known() -> None:
    replicas = Replicas(["http://a", "http://b", "http://c"])
    first = [list(range(k, k + 3 * PIECE)) for k in range(6)]
    homes = []
    for prompt in first:
        homes.append(replicas.take(prompt))
        replicas.give(homes[-1])
    assert [r.url for r in homes] == [r.url for r in replicas.all] * 2  # in turn
    for prompt, home in zip(first, homes, strict=True):
        again = replicas.take([*prompt[: 2 * PIECE], *range(500)])
        assert again is home
        replicas.give(again)
    busy = [replicas.take(first[0]) for _ in range(20)]
    assert {r.url for r in busy} == {r.url for r in replicas.all}  # but not if others are idle
    replicas.give(busy[0], failed=True)
    assert replicas.take(first[0]) is not homes[0]


@pytest.mark.slow
def test_against_vllm() -> None:
    """`M27_VLLM=url` of a vLLM that serves the export of the shipped model."""
    if not (url := os.environ.get("M27_VLLM")):
        pytest.skip("M27_VLLM names no server")
    folder = Path(__file__).parents[2] / "weights" / "m27-nano"
    remote = RemoteEngine.load(folder, [url], max_len=2048)
    plan = ("text", "image", "audio")
    response = remote.chat(
        Request(
            [{"role": "user", "content": "Draw a cat, and let me hear it."}],
            plan=plan,
            guidance=1.0,
            max_text=20,
            max_audio_codes=40,
            max_tokens=200,
            seed=1,
        )  # fmt: skip
    )
    assert [part["type"] for part in response.content] == list(plan)
    assert response.content[1]["image"].shape == (128, 128, 3)
    assert np.isfinite(response.content[2]["audio"]).all()
