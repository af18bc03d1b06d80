"""The engine in a process of its own: it says what the one in a thread says, and nothing it does takes the
server with it."""

import asyncio
import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m27.infer.request import Event, Request
from m27.serve import engine_process
from m27.serve.engine_process import EngineProcess, EngineStartError
from m27.serve.engine_thread import EngineThread
from m27.serve.errors import ApiError
from m27.serve.front import Front
from m27.serve.launch import Launch
from tests import tiny
from tests.serve import live
from tests.serve.test_wire import same

ROOT = Path(__file__).parents[2]
SAY = [{"role": "user", "content": "word"}]


def launch(maker: str, folder: str = "", **limits: Any) -> Launch:
    return Launch(folder, limits=limits, maker=f"tests.serve.stands:{maker}", warm_up=False)


def started(maker: str, stuck: float = 3600.0, folder: str = "", **limits: Any) -> EngineProcess:
    engine = EngineProcess(launch(maker, folder, **limits), stuck, tiny.processor())
    engine.wait()
    return engine


def until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "it did not come about"
        time.sleep(0.01)


async def soon(true: Callable[[], bool], seconds: float = 60.0) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "it did not come about"
        await asyncio.sleep(0.01)


async def whole(front: Front, request: Request) -> list[Event]:
    return [event async for event in await front.ask(request)]


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for counts as ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.fixture
def stand() -> Iterator[EngineProcess]:
    engine = started("stand", stuck=1.0)
    try:
        yield engine
    finally:
        engine.close()
        assert gone(engine.pid)


@pytest.fixture(scope="module")
def server() -> Iterator[live.Live]:
    with live.running(started("tiny_engine")) as running:
        yield running


def picture(level: int) -> np.ndarray:
    return np.full((128, 128, 3), level, np.uint8)


MIXED: list[dict[str, Any]] = [
    {"messages": SAY, "modalities": ("text",), "max_tokens": 12},
    {"messages": SAY, "plan": ("text", "image", "audio", "text"), "max_tokens": 120, "max_audio_codes": 9},
    {"messages": SAY, "modalities": ("text",), "max_tokens": 9, "n": 3, "logprobs": 2, "temperature": 1.0},
    {"messages": SAY, "modalities": ("text",), "max_tokens": 40, "stop": ("a", "e"), "temperature": 1.0},
    {"messages": SAY, "modalities": ("text",), "max_tokens": 30, "schema": {"type": "object", "properties": {}}},
    {
        "messages": [{"role": "user", "content": [
            {"type": "image", "codes": np.arange(16).reshape(4, 4)}, {"type": "text", "text": "what"}]}],
        "modalities": ("image",), "plan": ("image",), "max_tokens": 90, "guidance": 1.0,
    },
    {"messages": SAY, "modalities": ("audio",), "plan": ("audio",), "max_tokens": 60, "max_audio_codes": 30},
]  # fmt: skip
REFUSED: list[dict[str, Any]] = [
    {"messages": SAY, "adapter": "none"},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "x" * 2000}]}]},
    {"messages": [{"role": "nobody", "content": "x"}]},
    {"messages": SAY, "modalities": ("text",), "schema": {"type": "no type"}},
    {"messages": [{"role": "user", "content": [{"type": "image", "codes": np.full((2, 2), 99)}]}]},
]


async def answers(front: Front) -> list[list[Event]]:
    """All of `MIXED` asked at once; and what depends on the clock left out."""

    async def one(number: int) -> list[Event]:
        ticket = await front.ask(Request(seed=number, **MIXED[number]))
        events = [event async for event in ticket]
        kept = [e for e in events if e["type"] not in ("image_preview", "audio_delta")]
        assert any(e["type"] == "done" for e in kept)
        for event in kept:  # in other company torch rounds the last digits otherwise, and finds more or less
            if event["type"] == "done":
                event["usage"] = replace(event["usage"], cached_tokens=0)
            if event["type"] == "logprobs":
                event["logprob"] = round(event["logprob"], 4)
                event["top"] = [(id, round(logprob, 4)) for id, logprob in event["top"]]
        return [{k: v for k, v in e.items() if k != "seconds"} for e in kept]

    return list(await asyncio.gather(*map(one, range(len(MIXED)))))


def test_a_process_says_what_a_thread_says() -> None:
    """Ids, words, codes, pixels, samples, usage, and refusals."""

    async def of(front: Front) -> tuple[list[list[Event]], list[Any]]:
        refusals = []
        for fields in REFUSED:
            with pytest.raises(ApiError) as caught:
                await front.ask(Request(**fields))
            refusals.append((caught.value.status, caught.value.to_json()))
        found = await answers(front)
        assert front.open_tickets() == len(MIXED)
        await asyncio.to_thread(front.close)
        return found, refusals

    events, refusals = asyncio.run(of(started("tiny_engine")))
    wanted, refused = asyncio.run(of(EngineThread(live.engine())))
    assert refusals == refused and {status for status, _ in refused} == {400}
    for found, expected in zip(events, wanted, strict=True):
        assert _by_answer(found).keys() == _by_answer(expected).keys()
        for index, mine in _by_answer(expected).items():
            assert same(_by_answer(found)[index], mine)


def _by_answer(events: list[Event]) -> dict[int, list[Event]]:
    """Events by answer, with text joined: how it is cut depends on nothing but steps, which may differ."""
    out: dict[int, list[Event]] = {}
    for event in events:
        mine = out.setdefault(event.get("index", 0), [])
        if event["type"] == "text" and mine and mine[-1]["type"] == "text":
            mine[-1] = {**mine[-1], "text": mine[-1]["text"] + event["text"]}
        else:
            mine.append(event)
    return out


def test_it_serves_over_http(server: live.Live) -> None:
    whole = server.chat("x", plan=["text", "image", "audio"], max_tokens=120).json
    kinds = [part["type"] for part in whole["choices"][0]["message"]["content"]]
    assert kinds == ["text", "image_url", "input_audio"]
    chunks = server.stream("x", plan=["image"], max_tokens=120)
    parts = [d["part"]["event"] for d in live.deltas(chunks) if "part" in d]
    assert parts[0] == "begun" and parts[-1] == "done"
    assert server.chat("x", adapter="none").status == 400
    assert server.chat("x" * 5000).status == 400
    assert server.ask("GET", "/health").json["status"] == "ok"
    assert server.metric("m27_engine_steps_total") > 10


def test_a_picture_is_known_again_and_no_other(server: live.Live) -> None:
    """Pictures go to the engine as pixels; the same one twice is found in the cache, one of its length is not."""

    def found(level: int) -> tuple[int, str]:
        url = "data:image/png;base64," + base64.b64encode(live.png(level)).decode()
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "same words"}]
        body = server.chat(content, modalities=["text"], max_tokens=9, temperature=0).json
        return body["usage"]["prompt_tokens_details"]["cached_tokens"], body["choices"][0]["message"]["content"]

    first, other = found(10)[1], found(200)[1]
    assert found(10)[0] >= 64 and found(200)[0] >= 64
    assert found(10)[1] == first and found(200)[1] == other
    with live.running(live.engine()) as threads:  # which turns pictures into codes itself
        server, process = threads, server
        assert found(10)[1] == first and found(200)[1] == other
    assert process.server.intake.pixels and not threads.server.intake.pixels


def test_killed_under_load_it_is_told_and_started_anew() -> None:
    with live.running(started("stand")) as server:
        codes: list[int] = []
        asking = [
            threading.Thread(target=lambda: codes.append(server.chat("x", max_tokens=4000).status)) for _ in range(4)
        ]
        for thread in asking:
            thread.start()
        front = server.server.engine
        assert isinstance(front, EngineProcess)
        until(lambda: front.metrics().get("running", 0) == 4)
        killed = front.pid
        os.kill(killed, signal.SIGKILL)
        for thread in asking:
            thread.join(60)
        assert codes == [500] * 4
        until(lambda: server.ask("GET", "/health").status == 200)
        assert front.pid != killed and gone(killed)
        assert server.chat("x", max_tokens=2).json["choices"][0]["message"]["content"] == "x x "
    assert gone(front.pid)


@pytest.mark.parametrize(("word", "status"), [("die", 500), ("raise", 500), ("lie", 500)])
def test_whatever_it_dies_of_the_server_goes_on(stand: EngineProcess, word: str, status: int) -> None:
    """An exit, an exception that is not of one request, bytes that are no frame."""

    async def scenario() -> None:
        watching = asyncio.create_task(stand.watch(0.05))
        held = await stand.ask(Request(SAY, max_tokens=4000))
        with pytest.raises(ApiError) as caught:
            await whole(stand, Request([{"role": "user", "content": word}], max_tokens=50))
        assert caught.value.status == status and "secret" not in caught.value.message
        with pytest.raises(ApiError, match="died"):
            async for _ in held:
                pass
        if stand.state == "dead":
            with pytest.raises(ApiError, match="dead") as late:
                await stand.ask(Request(SAY))
            assert late.value.status == 503 and late.value.retry_after
        await soon(lambda: stand.state == "ok")
        ticket = await stand.ask(Request(SAY, max_tokens=2))
        assert [e["type"] async for e in ticket] == ["text", "text", "done"]
        watching.cancel()

    asyncio.run(scenario())


def test_one_that_dies_again_and_again_stays_dead(stand: EngineProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    stand._starts = type(stand._starts)(maxlen=1)
    monkeypatch.setattr(engine_process, "RESTARTS", 1)

    async def scenario() -> None:
        for _ in range(2):
            await soon(lambda: stand.state == "ok")
            with contextlib.suppress(ApiError):
                async for _ in await stand.ask(Request([{"role": "user", "content": "die"}])):
                    pass
        await asyncio.sleep(0.5)
        assert stand.check() == "dead" and gone(stand.pid)

    asyncio.run(scenario())


def test_stuck_is_told_and_taken_again(stand: EngineProcess) -> None:
    async def scenario() -> None:
        ticket = await stand.ask(Request(SAY, max_tokens=4000))
        os.kill(stand.pid, signal.SIGSTOP)
        try:
            await soon(lambda: stand.check() == "stuck")
            with pytest.raises(ApiError, match="stuck"):
                async for _ in ticket:
                    pass
            ticket.leave()
            with pytest.raises(ApiError, match="stuck"):
                await stand.ask(Request(SAY))
        finally:
            os.kill(stand.pid, signal.SIGCONT)
        await soon(lambda: stand.check() == "ok")
        await soon(lambda: stand.metrics()["cancelled"] == 1)
        async for _ in await stand.ask(Request([{"role": "user", "content": "sleep 0.5"}], max_tokens=1)):
            pass
        assert stand.check() == "ok"

    asyncio.run(scenario())


def test_who_leaves_is_let_go_of_before_the_next_step(stand: EngineProcess) -> None:
    async def scenario() -> None:
        ticket = await stand.ask(Request(SAY, max_tokens=4000))
        ticket.leave()
        await soon(lambda: stand.metrics()["cancelled"] == 1)
        with pytest.raises(ApiError) as refused:
            await stand.ask(Request([{"role": "user", "content": "refuse"}]))
        assert refused.value.status == 400 and stand.open_tickets() == 0
        assert not stand._tickets and not stand._keys
        many = [await stand.ask(Request(SAY, max_tokens=n + 1)) for n in range(20)]
        for number, ticket in enumerate(many):
            assert len([e async for e in ticket]) == number + 2

    asyncio.run(scenario())


def test_ctrl_c_and_sigterm_are_not_for_it(stand: EngineProcess) -> None:
    assert os.getpgid(stand.pid) != os.getpgrp()  # so the terminal does not send it there
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(stand.pid, number)

    async def scenario() -> None:
        assert [e["type"] async for e in await stand.ask(Request(SAY, max_tokens=1))] == ["text", "done"]

    asyncio.run(scenario())


@pytest.mark.parametrize("word", ["word", "sleep 60"])
def test_it_ends_with_the_server_however_that_ends(word: str) -> None:
    """Killed between steps or in the midst of one: no process is left behind."""
    code = (
        "import asyncio, sys; from m27.infer.request import Request\n"
        "from m27.serve.engine_process import EngineProcess; from m27.serve.launch import Launch\n"
        "engine = EngineProcess(Launch('', maker='tests.serve.stands:stand', warm_up=False), 60, object())\n"
        "engine.wait(); print(engine.pid, flush=True)\n"
        "async def ask():\n"
        "    ticket = await engine.ask(Request([{'role': 'user', 'content': sys.argv[1]}], max_tokens=10**6))\n"
        "    async for event in ticket: print(event, flush=True)\n"
        "asyncio.run(ask())\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, word], cwd=ROOT, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    if word == "word":
        parent.stdout.readline()
    else:
        time.sleep(0.2)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until(lambda: gone(child), 20)


@pytest.mark.parametrize(
    ("maker", "kind", "line"),
    [
        ("no_model", EngineStartError, "/nowhere: no model here"),
        ("no_file", FileNotFoundError, "/nowhere"),
        ("no_package", ModuleNotFoundError, "llguidance_of_which"),
        ("no_memory", EngineStartError, "SIGKILL"),
        ("no_such_maker", EngineStartError, "no_such_maker"),
    ],
)
def test_what_keeps_it_from_starting_is_said(maker: str, kind: type[Exception], line: str) -> None:
    engine = EngineProcess(launch(maker, "/nowhere"), 60.0, tiny.processor())
    with pytest.raises(kind, match=line):
        engine.wait()
    assert gone(engine.pid)


def test_media_that_nobody_takes_are_given_up_and_the_engine_is_told(stand: EngineProcess) -> None:
    async def scenario() -> None:
        ticket = await stand.ask(Request(SAY, max_tokens=10**6))
        key = stand._keys[ticket]
        big = {"type": "audio_delta", "audio": np.zeros(1 << 20, np.float32)}
        for _ in range(9):
            stand._tell(key, dict(big))
        assert ticket.over and key not in stand._tickets
        await soon(lambda: stand.metrics()["cancelled"] == 1)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "value",
    [
        7, None, [], {}, {"told": 3}, {"told": [3]}, {"told": [[[], "x"]]}, {"told": [[1, 7]]},
        {"taken": 7, "told": []},
        {"taken": [[]], "told": []}, {"told": [], "counts": 7}, {"refused": 1},
        {"refused": [1, [200, "x"]]},
        {"told": [[1, {"type": "done"}]]},
    ],
)  # fmt: skip
def test_words_that_make_no_sense_are_refused(stand: EngineProcess, value: Any) -> None:
    from m27.serve.wire import WireError

    async def scenario() -> None:
        await stand.ask(Request(SAY, max_tokens=10**6))
        with pytest.raises(WireError):
            stand._heard(json.loads(json.dumps(value)))

    asyncio.run(scenario())

