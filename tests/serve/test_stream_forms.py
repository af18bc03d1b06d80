"""stream.py, tools.py, logs.py and trace.py: what each makes of what it is given, without a server."""

import io
import json
import logging
from contextlib import contextmanager
from typing import Any

import pytest

from m27.infer.encode import Encoder
from m27.infer.request import Usage
from m27.serve import logs, tools, trace
from m27.serve.answer import Asked
from m27.serve.body import check_shape, checked, parse
from m27.serve.errors import ApiError, from_engine
from m27.serve.metrics import Metrics
from m27.serve.schema import ChatRequest
from m27.serve.settings import Settings, SettingsError
from m27.serve.stream import Choice, Frame
from tests import tiny

USAGE = Usage(1, 1, 0, 0, 0, "stop")
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def body(**options: Any) -> ChatRequest:
    return ChatRequest.model_validate({"messages": [{"role": "user", "content": "x"}], **options})


def deltas(texts: list[str], **options: Any) -> list[dict[str, Any]]:
    """What a stream says of texts, tools being at hand."""
    processor = tiny.processor()
    encoder = Encoder(processor)
    asked = Asked(
        "tiny", processor, encoder, Metrics(), 0.0, {}, calling=tools.calling(body(**options))
    )
    choice = Choice(0, asked)
    events = [*({"type": "text", "text": t} for t in texts), {"type": "done", "usage": USAGE}]
    found = [delta for event in events for delta in choice.deltas(event)]
    encoder.close()
    return found


def test_an_answer_that_is_a_call_is_one() -> None:
    found = deltas(['{"name": "wea', 'ther", "arguments": {"city": "Rome"}}'], tools=[WEATHER])
    (call,) = found[0]["delta"]["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": '{"city": "Rome"}'}
    assert found[-1]["finish_reason"] == "tool_calls" and len(found) == 2


@pytest.mark.parametrize("text", ['{"name": "other"}', "{no json", '{"name": "weather", "x": 1}', "[1]", '"a"'])
def test_an_answer_that_looks_like_a_call_is_text(text: str) -> None:
    found = deltas(list(text), tools=[WEATHER])
    assert "".join(d["delta"].get("content", "") for d in found) == text
    assert found[-1]["finish_reason"] == "stop"


def test_plain_words_are_not_held_up() -> None:
    found = deltas(["  ", "Hi", " you"], tools=[WEATHER])
    assert [d["delta"].get("content") for d in found] == ["  Hi", " you", None]


@pytest.mark.parametrize("usage", [False, True])
def test_a_message_encoded_in_part_is_the_message(usage: bool) -> None:
    """Its names and order are those of `json.dumps`, whatever stands in the text."""
    asked = Asked('a"" model', None, None, Metrics(), 0.0, {}, usage=usage)  # type: ignore[arg-type]
    frame = Frame(asked, 3)
    for text in ('""', "", 'a "quoted"\n\tline\\', "día 日 \U0001f600 \x00 \u2028", "}}]"):
        choice = {"index": 3, "logprobs": None, "finish_reason": None, "delta": {"content": text}}
        whole = {
            "id": asked.id, "object": "chat.completion.chunk", "created": asked.created,
            "model": 'a"" model', "choices": [choice], **({"usage": None} if usage else {}),
        }  # fmt: skip
        said = frame({"delta": {"content": text}})
        assert said == b"data: " + json.dumps(whole, ensure_ascii=False).encode() + b"\n\n"
    ended = json.loads(frame({"delta": {"content": "x"}, "finish_reason": "stop"})[6:])
    assert ended["choices"][0]["finish_reason"] == "stop"


def test_what_tools_are_refused() -> None:
    for options, words in (
        ({"tools": [WEATHER, WEATHER]}, "same name"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "no"}}}, "names no tool"),
        ({"tool_choice": "required"}, "needs tools"),
        ({"tools": [WEATHER], "tool_choice": "required", "response_format": {"type": "json_object"}}, "cannot both"),
    ):
        with pytest.raises(ApiError, match=words):
            tools.calling(body(**options))
    assert tools.calling(body(tools=[WEATHER], tool_choice="none")) == tools.Calling()
    several = tools.calling(body(tools=[WEATHER, {**WEATHER, "function": {"name": "b"}}], tool_choice="required"))
    assert several.forced is None and len(several.schema["anyOf"]) == 2


def test_depth_counts_brackets_outside_strings() -> None:
    check_shape(b'{"a": "[[[[[\\"[[[", "b": [[1], [2]]}', 3, 9)
    with pytest.raises(ApiError, match="nested"):
        check_shape(b'{"b": [[1], [2]]}', 2, 9)
    check_shape(b"[]" * 100, 1, 9)
    check_shape(b'"' + b"[" * 1000, 5, 9)  # a string that never ends: the parser will say so


def test_values_are_counted_before_they_are_parsed() -> None:
    check_shape(b'["a,b,c,d", 1, 2]', 3, 2)
    with pytest.raises(ApiError, match="more than 2 values"):
        check_shape(b"[0, 0, 0, 0]", 3, 2)


def test_errors_name_the_field_and_not_what_was_in_it() -> None:
    for value, where in (
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "messages[0].content[0]"),
        ({"messages": "secret-value"}, "messages"),
        ({"messages": [{"role": "user", "content": "x"}], "sed": 1}, "sed"),
        (["secret-value"], None),
    ):
        with pytest.raises(ApiError) as caught:
            checked(value, ChatRequest)
        assert caught.value.param == where and "secret" not in caught.value.message
    with pytest.raises(ApiError, match="not valid JSON"):
        parse(b'{"seed": Infinity}', ChatRequest, 9, 9)


def test_what_is_not_ours_is_one_sentence() -> None:
    error = from_engine(RuntimeError("/home/x 0x7f00aa11"))
    assert (error.status, error.code) == (500, "internal_error") and "/home" not in error.message
    assert ApiError(429, "m", retry_after=0.2).headers() == {"retry-after": "1"}


def test_settings_that_make_no_sense() -> None:
    for options in ({"port": 70_000}, {"answers": 0}, {"seconds": 0.0}, {"stuck_seconds": float("nan")}):
        with pytest.raises(SettingsError):
            Settings(**options)
    assert Settings(allowed_hosts=("*",)).hosts == ()
    assert Settings(host="0.0.0.0", allowed_hosts=("a",)).hosts == ("a",)
    assert "a" in Settings(allowed_hosts=("a",)).hosts


def test_logs_are_one_json_object_a_line() -> None:
    out = io.StringIO()
    loggers = [logging.getLogger(name) for name in ("m27.serve", "uvicorn")]
    kept = [(logger, logger.handlers, logger.propagate) for logger in loggers]
    try:
        logs.set_up(stream=out)
        logging.getLogger("m27.serve").info("request", extra={"facts": {"status": 200, "path": "a\nb"}})
        try:
            raise ValueError("oh\nno")
        except ValueError:
            logging.getLogger("m27.serve").exception("it failed")
    finally:
        for logger, handlers, propagate in kept:
            logger.handlers, logger.propagate = handlers, propagate
    first, second = (json.loads(line) for line in out.getvalue().splitlines())
    assert (first["message"], first["status"], first["path"], first["level"]) == ("request", 200, "a\nb", "info")
    assert "ValueError: oh\nno" in second["error"]


def test_traces_are_off_unless_asked_for() -> None:
    assert trace.traced(None) is trace.plain
    try:
        import opentelemetry.sdk  # noqa: F401
    except ImportError:
        with pytest.raises(SettingsError, match="opentelemetry-sdk"):
            trace.traced("http://127.0.0.1:4318")


async def application(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})




def test_a_request_is_a_span() -> None:
    import asyncio

    seen: dict[str, Any] = {}

    class Span:
        def set_attribute(self, name: str, value: Any) -> None:
            seen[name] = value

        def add_event(self, name: str, attributes: Any) -> None:
            seen[name] = attributes

    class Tracer:
        @contextmanager
        def start_as_current_span(self, name: str) -> Any:
            seen["name"] = name
            yield Span()

    async def ask() -> None:
        async def nothing(message: Any = None) -> None:
            pass

        await trace.spans(Tracer())(application)({"type": "http", "method": "GET", "path": "/x"}, nothing, nothing)

    asyncio.run(ask())
    assert seen["name"] == "GET /x" and seen["http.response.status_code"] == 204
