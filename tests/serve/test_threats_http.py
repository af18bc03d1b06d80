"""One named test for each row of the threat table that lives in the HTTP layer (the gate's own are in
`test_threats`); each row is here, or names the test elsewhere that it has."""

import ast
import base64
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from m27.serve.gate import GateLimits
from m27.serve.settings import Settings
from tests import tiny
from tests.serve import live
from tests.serve.live import CHAT, Live
from tests.serve.test_threats import FOR_THE_SERVER

TESTS = Path(__file__).parent
ROWS = {
    "a code path that goes round the gate": "test_threats_http.test_no_path_and_no_bytes_reach_the_processor",
    "size checked after reading": "test_guard.test_a_body_of_a_gigabyte_is_not_kept",
    "native decoder bugs": "test_threats_http.test_a_decoder_killed_under_load",
    "addresses and paths in error text": "test_threats_http.test_no_address_and_no_path_in_any_body",
    "tensors and pickles from clients or checkpoints": "test_threats_http.test_no_route_takes_tensors",
    "control tokens typed as text": "test_threats_http.test_control_tokens_of_every_role_stay_text",
    "grammar, regex, schema DoS": "test_threats_http.test_schemas_that_might_blow_up",
    "cache confusion between tenants": "test_guard.test_tenants_do_not_find_each_other_s_prompts",
    "auth bypass, timing": "test_guard.test_every_route_without_a_key",
    "huge n, headers, max_tokens": "test_threats_http.test_ceilings_beat_what_is_asked_for",
}


def test_every_row_has_its_test() -> None:
    assert ROWS.keys() == FOR_THE_SERVER.keys()
    for where in ROWS.values():
        module, _, name = where.partition(".")
        tree = ast.parse((TESTS / f"{module}.py").read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, where


def image(data: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(data).decode()}}


def test_no_path_and_no_bytes_reach_the_processor(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    processor = server.server.processor
    encode = processor.encode

    def watched(messages: Any, **options: Any) -> Any:
        seen.extend(part for message in messages for part in message["content"] if not isinstance(part, str))
        return encode(messages, **options)

    monkeypatch.setattr(processor, "encode", watched)
    for extra in ({"path": "/etc/hostname"}, {"bytes": "AAAA"}, {"codes": [[1]]}, {"size": [9999, 9999]}):
        content = [{**image(live.png()), **extra}, {"type": "text", "text": "x", **extra}]
        server.chat(content, modalities=["text"], max_tokens=2)
    for kind in ("image", "audio", "path"):
        assert server.chat([{"type": kind, "path": "/etc/hostname", "codes": [[1]]}]).status == 400
    assert seen
    assert {key for part in seen for key in part} <= {"type", "text", "image", "audio", "codes"}


@pytest.mark.slow
def test_a_decoder_killed_under_load() -> None:
    with live.running(limits=GateLimits(workers=2)) as server:
        statuses: list[int] = []
        healthy: list[int] = []

        def client(number: int) -> None:
            for turn in range(6):
                content = [image(live.png(number * 6 + turn)), {"type": "text", "text": "x"}]
                statuses.append(server.chat(content, modalities=["text"], max_tokens=4).status)

        clients = [threading.Thread(target=client, args=(n,)) for n in range(6)]
        for thread in clients:
            thread.start()
        for _ in range(4):
            time.sleep(0.2)
            for pid in server.server.intake.gate._pool.pids()[:1]:
                os.kill(pid, signal.SIGKILL)
            healthy.append(server.ask("GET", "/health").status)
        for thread in clients:
            thread.join(120)
            assert not thread.is_alive()
        assert len(statuses) == 36
        # 503: of a decoder that was killed before it had started.
        assert set(statuses) <= {200, 400, 429, 503} and statuses.count(200) >= 24
        assert healthy == [200] * 4
        assert server.chat([image(live.png())], modalities=["text"], max_tokens=2).status == 200


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_every_third_upload_is_corrupt_and_memory_comes_back() -> None:
    def ask(server: Live, number: int) -> None:
        whole = live.png(side=256, seed=number)
        data = whole[: len(whole) // 2] if number % 3 == 0 else whole
        answer = server.chat([image(data), {"type": "text", "text": str(number)}], modalities=["text"], max_tokens=4)
        assert answer.status == (400 if number % 3 == 0 else 200), answer.body

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1])

    with live.running() as server:
        for number in range(60):
            ask(server, number)
        before = resident()
        for number in range(60, 360):
            ask(server, number)
        assert resident() <= before * 1.05
        assert server.server.bodies.held == 0
        assert server.ask("GET", "/health").status == 200


def test_no_address_and_no_path_in_any_body(server: Live) -> None:
    bodies = [
        server.chat("x", model="/etc/passwd"), server.chat("x", adapter="/root/.ssh/id"),
        server.chat([image(b"\x89PNG\r\n\x1a\n" + b"\0" * 50)]), server.chat([image(b"RIFF....WEBP")]),
        server.chat([{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]),
        server.chat([{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}]),
        server.ask("POST", "/v1/images/generations", {"prompt": "x", "model": "/etc/shadow"}),
        server.form("/v1/audio/transcriptions", {"file": b"OggS" + b"\0" * 60}),
        server.ask("GET", "/v1/models/%2Fetc%2Fpasswd"), server.ask("GET", "/..%2f..%2fetc/passwd"),
        server.chat("x", response_format={"type": "json_schema", "json_schema": {"schema": {"$ref": "file:///etc/x"}}}),
    ]  # fmt: skip
    for answer in bodies:
        assert 400 <= answer.status < 500
        text = json.dumps(answer.json)
        for inside in ("0x", "/etc", "/root", "Traceback", ".py", "site-packages", "object at"):
            assert inside not in text, text


def test_no_route_takes_tensors(server: Live) -> None:
    document = server.ask("GET", "/openapi.json").json
    for methods in document["paths"].values():
        for method in methods.values():
            assert set(method.get("requestBody", {}).get("content", {})) <= {"application/json", "multipart/form-data"}
    for kind in ("application/octet-stream", "application/x-pickle", "application/x-npz"):
        assert server.ask("POST", CHAT, b"\x80\x04K\x01.", {"Content-Type": kind}).status == 415


def test_control_tokens_of_every_role_stay_text(server: Live) -> None:
    """One id a byte, whoever says it, in whatever form; the codes' names too."""

    def count(messages: list[dict[str, Any]]) -> int:
        answer = server.chat(messages, modalities=["text"], max_tokens=1)
        assert answer.status == 200, answer.body
        return answer.json["usage"]["prompt_tokens"]

    names = [*tiny.VOCABULARY.control, "<|i3|>", "<|a5|>", "<|image|><|h1|><|w1|><|i1|><|/image|>"]
    for number, role in enumerate(("user", "system", "developer", "tool", "assistant")):
        typed = "".join(names[number::5])
        for form in (lambda text: text, lambda text: [{"type": "text", "text": text}]):
            messages = [{"role": role, "content": form("")}, {"role": "user", "content": "x"}]
            plain = count(messages)
            messages[0]["content"] = form(typed)
            assert count(messages) - plain == len(typed.encode())


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


BLASTS: dict[str, tuple[dict[str, Any], bool]] = {
    "deep": (nested(50), False),
    "huge enum": ({"enum": [f"v{n}" for n in range(5_000)]}, False),
    "back reference": ({"type": "string", "pattern": r"^(a)\1$"}, False),
    "remote": ({"$ref": "http://169.254.169.254/"}, False),
    "long pattern": ({"type": "string", "pattern": "a" * 5_000}, False),
    "catastrophic": ({"type": "string", "pattern": "^(a+)+b$"}, True),
    "counted": ({"type": "string", "maxLength": 10_000_000}, True),
}


@pytest.mark.parametrize("name", BLASTS)
@pytest.mark.parametrize("as_tool", [False, True])
def test_schemas_that_might_blow_up(server: Live, name: str, as_tool: bool) -> None:
    pytest.importorskip("llguidance")
    schema, taken = BLASTS[name]
    options: dict[str, Any] = {"max_tokens": 6}
    if as_tool:
        tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
        options |= {"tools": [tool], "tool_choice": "required"}
    else:
        options["response_format"] = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    answer = server.chat("x", **options)
    assert answer.status == (200 if taken else 400), answer.body
    assert server.ask("GET", "/health").status == 200


def test_ceilings_beat_what_is_asked_for() -> None:
    settings = Settings(name="tiny", answer_tokens=5, answers=2, priority=1, sound_seconds=0.5, drain_seconds=1)
    with live.running(settings=settings) as server:
        asked = server.chat("x", modalities=["text"], max_completion_tokens=10**9, temperature=1).json
        assert asked["usage"]["completion_tokens"] <= 5
        assert server.chat("x", n=3).status == 400
        assert server.chat("x", n=10**12).status == 400
        assert server.chat("x", priority=100, modalities=["text"], max_tokens=1).status == 200
        body = {"prompt": "x", "seconds": 3000, "response_format": "pcm", "temperature": 1.5}
        sound = server.ask("POST", "/v1/audio/sounds", body)
        assert 0 < len(sound.body) <= 2 * 8_000
        assert server.chat("x", stop=["a"] * 1000).status == 400
        assert server.chat("x", top_logprobs=10**6, logprobs=True).status == 400
        assert server.chat("x", seed=2**70).status == 400
        wordy = {"type": "function", "function": {"name": "f", "description": "x" * 300_000}}
        assert server.chat("x", tools=[wordy]).error["code"] == "too_long"
        many = [{"type": "function", "function": {"name": f"f{n}"}} for n in range(99)]
        assert server.chat("x", tools=many).status == 400
