"""What goes wrong, and what is then said: clients that leave, a full queue, a dead or stuck engine."""

import asyncio
import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from m27.infer.request import Event, Request
from m27.language.processor import Processor
from m27.serve.engine_loop import Linger, worth
from m27.serve.engine_thread import EngineThread
from m27.serve.errors import ApiError
from m27.serve.settings import Settings
from m27.serve.ticket import Ticket
from tests import tiny
from tests.serve import live
from tests.serve.live import CHAT, Live


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.01)


class Stand:
    """An engine that answers with what its prompt says, a word a step, and does as it is told."""

    def __init__(self) -> None:
        self.processor: Processor = tiny.processor()
        self.open: dict[int, list[str]] = {}
        self.cancelled: list[int] = []
        self.numbers = 0
        self.go = threading.Event()
        self.go.set()
        self.fault: BaseException | None = None
        self.closed = False

    def add(self, request: Request, live: bool = True) -> int:
        self.numbers += 1
        content = request.messages[-1]["content"]
        text = "".join(part.get("text", "") for part in content)
        self.open[self.numbers] = [f"{text} "] * request.max_tokens
        return self.numbers

    def cancel(self, number: int) -> None:
        if self.open.pop(number, None) is not None:
            self.cancelled.append(number)

    def step(self) -> list[tuple[int, Event]]:
        assert self.go.wait(60)
        if self.fault is not None:
            raise self.fault
        time.sleep(0.005)
        told: list[tuple[int, Event]] = []
        for number, words in list(self.open.items()):
            if words:
                told.append((number, {"type": "text", "text": words.pop()}))
            else:
                del self.open[number]
                told.append((number, {"type": "done", "usage": USAGE, "seconds": 0.0, "ids": []}))
        return told

    def busy(self) -> bool:
        return bool(self.open)

    def metrics(self) -> dict[str, Any]:
        return {"running": len(self.open), "waiting": 0}

    def close(self) -> None:
        self.closed = True


USAGE = tiny.engine().chat(Request([{"role": "user", "content": "x"}], max_tokens=2, modalities=("text",))).usage


@pytest.fixture
def stand() -> Iterator[tuple[Stand, Live]]:
    engine = Stand()
    settings = Settings(name="tiny", stuck_seconds=0.5, ping_seconds=0.1, drain_seconds=1)
    with live.running(engine, settings) as server:
        yield engine, server
        engine.go.set()


def begun(server: Live, body: dict[str, Any]) -> socket.socket:
    """A request that is under way, its socket not read."""
    data = json.dumps({"messages": [{"role": "user", "content": "hi"}], **body}).encode()
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    return connection


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_cancels(stand: tuple[Stand, Live], stream: bool) -> None:
    engine, server = stand
    connection = begun(server, {"stream": stream, "max_tokens": 4000})
    until(lambda: bool(engine.open))
    connection.close()
    until(lambda: not engine.open)
    assert engine.cancelled == [1]
    until(lambda: server.metric("m27_disconnects_total") == 1)
    assert server.server.engine.open_tickets() == 0
    assert server.ask("GET", "/health").status == 200


def test_a_client_that_does_not_read_holds_up_nobody(stand: tuple[Stand, Live]) -> None:
    _, server = stand
    silent = begun(server, {"stream": True, "max_tokens": 4000})
    assert server.chat("x", max_tokens=3).json["choices"][0]["message"]["content"] == "x x x "
    silent.close()


def test_a_dead_engine_is_told_at_once(stand: tuple[Stand, Live]) -> None:
    engine, server = stand
    engine.go.clear()
    answers: list[live.Answer] = []
    waiting = [threading.Thread(target=lambda: answers.append(server.chat("x"))) for _ in range(3)]
    for thread in waiting:
        thread.start()
    until(lambda: len(engine.open) + server.server.engine._in.qsize() >= 3)
    engine.fault = MemoryError("secret at 0x7f001122")
    engine.go.set()
    for thread in waiting:
        thread.join(20)
    assert [answer.status for answer in answers] == [500] * 3
    assert {answer.error["code"] for answer in answers} == {"engine_failed"}
    assert all("secret" not in answer.error["message"] for answer in answers)
    health = server.ask("GET", "/health")
    assert health.status == 503 and health.json["status"] == "dead"
    late = server.chat("x")
    assert late.status == 503 and late.error["code"] == "engine_unavailable"
    assert server.metric('m27_engine_state{state="dead"}') == 1


def test_a_stuck_engine_is_told_and_taken_again(stand: tuple[Stand, Live]) -> None:
    engine, server = stand
    engine.go.clear()
    answer = server.chat("x", max_tokens=50)
    assert answer.status == 500 and answer.error["code"] == "engine_failed"
    health = server.ask("GET", "/health")
    assert health.status == 503 and health.json["status"] == "stuck"
    assert server.chat("x").status == 503
    engine.go.set()
    until(lambda: server.ask("GET", "/health").status == 200)
    assert engine.cancelled == [1]
    assert server.chat("x", max_tokens=2).status == 200


def test_a_stream_that_fails_says_so(stand: tuple[Stand, Live]) -> None:
    engine, server = stand
    connection = begun(server, {"stream": True, "max_tokens": 4000})
    until(lambda: bool(engine.open))
    engine.fault = RuntimeError("oh")
    said = b""
    while not said.endswith(b"0\r\n\r\n"):
        said += connection.recv(65_536)
    connection.close()
    assert b'"code": "engine_failed"' in said and b"data: [DONE]" in said


def test_a_silent_stream_shows_signs_of_life(stand: tuple[Stand, Live]) -> None:
    engine, server = stand
    engine.go.clear()
    threading.Timer(0.3, engine.go.set).start()
    answer = server.chat("x", stream=True, max_tokens=2)
    assert answer.body.count(b": still at it") >= 1
    assert live.deltas(live.events(answer.body))[-1] == {}


def test_time_runs_out() -> None:
    settings = Settings(name="tiny", seconds=0.3, drain_seconds=1)
    with live.running(Stand(), settings) as server:
        whole = server.chat("x", max_tokens=4000)
        assert whole.status == 504 and whole.error["code"] == "timeout"
        streamed = live.events(server.chat("x", max_tokens=4000, stream=True).body)
        assert streamed[-1]["error"]["code"] == "timeout"
        until(lambda: not server.server.engine.engine.open)


def test_a_full_queue_is_a_429_that_says_when() -> None:
    with live.running(live.engine(sequences=1, waiting=1)) as server:
        body = {"stream": True, "max_tokens": 900, "modalities": ["text"], "temperature": 1}
        held = [begun(server, {**body, "seed": seed}) for seed in (3, 4)]
        until(lambda: server.server.engine.open_tickets() == 2)
        refused = server.chat("x", modalities=["text"], max_tokens=3)
        for connection in held:
            connection.close()
        assert refused.status == 429, refused.body
        assert refused.error["code"] == "queue_full" and refused.error["type"] == "rate_limit_error"
        assert int(refused.headers["retry-after"]) >= 1
        until(lambda: server.server.engine.open_tickets() == 0)
        assert server.chat("x", modalities=["text"], max_tokens=3).status == 200
        assert server.metric('m27_refused_total{reason="queue_full"}') == 1


def test_an_engine_that_faults_on_one_request_goes_on() -> None:
    class Picky(Stand):
        def add(self, request: Request, live: bool = True) -> int:
            if "bad" in str(request.messages):
                raise KeyError("0xdeadbeef /etc/secret")
            return super().add(request, live)

    with live.running(Picky()) as server:
        answer = server.chat("bad")
        assert answer.status == 500 and "secret" not in answer.body.decode()
        assert server.chat("good", max_tokens=1).status == 200


def test_closing_fails_what_waits() -> None:
    async def scenario() -> None:
        engine = Stand()
        thread = EngineThread(engine)
        ticket = await thread.ask(Request([{"role": "user", "content": [{"text": "x"}]}], max_tokens=500))
        await asyncio.to_thread(thread.close)
        assert thread.check() == "closed" and engine.closed
        with pytest.raises(ApiError, match="closed"):
            async for _ in ticket:
                pass
        with pytest.raises(ApiError, match="closed"):
            await thread.ask(Request([{"role": "user", "content": "x"}]))

    asyncio.run(scenario())


def test_a_request_that_follows_an_answer_goes_into_the_next_step() -> None:
    """Of two clients one asks again as soon as it has its answer; the engine's next step has both."""

    class Watched(Stand):
        def __init__(self) -> None:
            super().__init__()
            self.held: list[int] = []

        def step(self) -> list[tuple[int, Event]]:
            self.held.append(len(self.open))
            return super().step()

    async def both(linger: float) -> list[int]:
        engine = Watched()
        thread = EngineThread(engine, linger=linger)
        message = [{"role": "user", "content": [{"type": "text", "text": "word"}]}]
        long = await thread.ask(Request(message, max_tokens=40))
        for _ in range(10):
            ticket = await thread.ask(Request(message, max_tokens=2))
            async for _ in ticket:
                pass
        long.leave()
        thread.close()
        return engine.held

    held = asyncio.run(both(30.0))  # so long that a busy machine makes no difference
    first, last = held.index(2), len(held) - 1 - held[::-1].index(2)
    assert held[first : last + 1] == [2] * (last + 1 - first)
    assert len(held) < 40  # it waits for those that follow, not for what does not come


def test_where_nobody_follows_waiting_is_given_up() -> None:
    linger = Linger(1.0)
    waited = 0
    for _ in range(200):
        if linger.begin(1):
            linger.end(False)
            waited += 1
    assert 12 <= waited <= 20
    for _ in range(100):
        if linger.begin(1):
            linger.end(True)
    assert all(linger.begin(1) for _ in range(10))


def test_waiting_is_worth_what_those_who_follow_would_lose() -> None:
    assert worth(0.048, 0, 16) == 0.0
    assert worth(0.048, 1, 15) == pytest.approx(0.003)  # a sixteenth of a step, which all sixteen lose
    assert worth(0.048, 4, 12) == pytest.approx(0.012)
    assert worth(0.004, 1, 1) == pytest.approx(0.002)


def test_media_that_nobody_takes_are_given_up() -> None:
    async def scenario() -> None:
        left: list[Ticket] = []
        ticket = Ticket(Request([{"role": "user", "content": "x"}]), True, left.append)
        event = {"type": "image", "image": np.zeros((1024, 1024, 3), np.uint8)}
        for _ in range(8):
            ticket.put(dict(event))
        taken = aiter(ticket)
        for _ in range(8):  # what is taken makes room
            await anext(taken)
            ticket.put(dict(event))
        assert left == []
        for _ in range(100):
            ticket.put(dict(event))
        assert left == [ticket] and len(ticket._events) < 15
        with pytest.raises(ApiError, match="not read in time"):
            async for _ in taken:
                pass

    asyncio.run(scenario())


def test_what_is_due_together_is_taken_together_but_media_are_not() -> None:
    async def scenario() -> None:
        ticket = Ticket(Request([{"role": "user", "content": "x"}], n=2), True, lambda _: None)
        words = [{"type": "text", "text": text} for text in "abc"]
        picture = {"type": "image", "image": np.zeros((8, 8, 3), np.uint8)}
        taken = ticket.batches()
        waits = asyncio.ensure_future(anext(taken))
        await asyncio.sleep(0)
        for event in (*words, picture, picture, words[0], {"type": "done"}):
            ticket.put(event)
        found = [await waits, *[await anext(taken) for _ in range(3)]]
        assert found == [words, [picture], [picture], [words[0], {"type": "done"}]]
        ticket.put(words[1])
        ticket.put({"type": "error", "message": "m"})
        assert await anext(taken) == [words[1]]  # before the failure is told
        with pytest.raises(ApiError, match="failed"):
            await anext(taken)

    asyncio.run(scenario())


def test_two_pictures_of_the_same_length_never_share(server: Live) -> None:
    """30 x 100 and 100 x 30 of as many bytes, and two of one shape; the same one twice does share."""
    import base64

    def found(data: bytes, text: str) -> tuple[int, str]:
        url = "data:image/bmp;base64," + base64.b64encode(data).decode()
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
        body = server.chat(content, modalities=["text"], max_tokens=20, temperature=0).json
        return body["usage"]["prompt_tokens_details"]["cached_tokens"], body["choices"][0]["message"]["content"]

    one, two = live.bmp(1), live.bmp(2)
    wide, high = live.bmp(3, 96, 32), live.bmp(3, 32, 96)
    assert len(one) == len(two) and len(wide) == len(high) and wide != high
    size = server.server.engine.engine.blocks.size
    head = 6 // size * size  # what stands before the codes is the same for all
    hits = server.metric("m27_prefix_cache_hit_tokens_total")
    answers = [found(data, "same words")[1] for data in (one, two, wide, high)]
    for data, answer in zip((one, two, wide, high), answers, strict=True):
        cached, again = found(data, "same words")
        assert cached >= 64 and again == answer
    assert server.metric("m27_prefix_cache_hit_tokens_total") >= hits + 4 * 64
    assert found(live.bmp(9), "same words")[0] <= head + size


@pytest.mark.slow
def test_64_clients_of_which_half_leave_each_get_their_own_number() -> None:
    rng = random.Random(0)
    failures: list[str] = []
    answered = []

    with live.running(Stand()) as server:

        def client(number: int, leaves: bool) -> None:
            stream = number % 2 == 0
            for turn in range(3):
                word = f"number-{number}-{turn}"
                body = {"messages": [{"role": "user", "content": word}], "stream": stream, "max_tokens": 40}
                if leaves:
                    connection = begun(server, body)
                    time.sleep(rng.random() * 0.3)
                    connection.close()
                    continue
                answer = server.ask("POST", CHAT, body)
                if stream:
                    text = "".join(d.get("content", "") for d in live.deltas(live.events(answer.body)))
                else:
                    text = answer.json["choices"][0]["message"]["content"]
                if text != f"{word} " * 40:
                    failures.append(f"{word}: {text[:80]}")
                answered.append(word)

        threads = [threading.Thread(target=client, args=(n, n % 4 < 2)) for n in range(64)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
            assert not thread.is_alive()
        assert failures == [] and len(answered) == 32 * 3
        until(lambda: server.server.engine.open_tickets() == 0)
        assert server.ask("GET", "/health").status == 200
