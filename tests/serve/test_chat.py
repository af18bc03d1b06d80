"""/v1/chat/completions over HTTP: every parameter, whole and streamed, in OpenAI's form and ours."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from m27.codec import media
from tests import tiny
from tests.serve import live
from tests.serve.live import Live, deltas

PERSON = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 99}, "ok": {"type": "boolean"}},
    "required": ["age", "ok"],
    "additionalProperties": False,
}  # fmt: skip
TOOL = {"type": "function", "function": {"name": "set_age", "parameters": PERSON}}
OTHER = {"type": "function", "function": {"name": "stop_all"}}


def image_part(data: bytes) -> dict:
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def audio_part(data: bytes) -> dict:
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": "wav"}}


def pixels(url: str) -> np.ndarray:
    head, _, data = url.partition(",")
    assert head in ("data:image/png;base64", "data:image/jpeg;base64")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_text_alone_is_a_string(server: Live) -> None:
    answer = server.chat("hello", modalities=["text"], max_completion_tokens=12)
    assert answer.status == 200
    body = answer.json
    assert body["object"] == "chat.completion" and body["model"] == "tiny"
    (choice,) = body["choices"]
    assert isinstance(choice["message"]["content"], str)
    assert choice["finish_reason"] in ("stop", "length")
    usage = body["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["seed"] == 1


def test_parts_come_in_order_and_are_accepted_back(server: Live) -> None:
    plan = ["text", "image", "audio", "text"]
    answer = server.chat("x", plan=plan, max_tokens=200, temperature=1).json
    message = answer["choices"][0]["message"]
    kinds = [part["type"] for part in message["content"]]
    assert [k for k in kinds if k != "text"] == ["image_url", "input_audio"]
    details = answer["usage"]["completion_tokens_details"]
    assert details["image_codes"] == 64 and details["audio_codes"] >= 1
    image = next(p for p in message["content"] if p["type"] == "image_url")
    assert pixels(image["image_url"]["url"]).shape == (128, 128, 3)
    sound = next(p for p in message["content"] if p["type"] == "input_audio")
    samples = media.read_audio(base64.b64decode(sound["input_audio"]["data"]))
    assert len(samples) == tiny.HOP * details["audio_codes"]
    history = [
        {"role": "user", "content": "x"}, message, {"role": "user", "content": "and now?"},
    ]  # fmt: skip
    again = server.chat(history, modalities=["text"], max_tokens=4)
    assert again.status == 200, again.body


def test_what_the_model_made_comes_back_as_its_own_codes(server: Live) -> None:
    """So the cache finds the whole exchange: all full blocks of it."""
    content = "draw " + "something " * 3
    first = server.chat(content, plan=["image"], max_tokens=90, temperature=1).json
    message = first["choices"][0]["message"]
    history = [{"role": "user", "content": content}, message, {"role": "user", "content": "more"}]
    second = server.chat(history, modalities=["text"], max_tokens=4).json
    shared = first["usage"]["prompt_tokens"] + first["usage"]["completion_tokens"]
    found = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    size = server.server.engine.engine.blocks.size
    assert found >= shared // size * size - size


def test_a_stream_says_the_same_as_the_whole(server: Live) -> None:
    options = {"plan": ["text", "image", "text", "audio"], "max_tokens": 250, "temperature": 1, "max_sounds": 1}
    whole = server.chat("y", **options).json["choices"][0]
    chunks = server.stream("y", stream_options={"include_usage": True}, **options)
    assert all(c["object"] == "chat.completion.chunk" for c in chunks)
    found = deltas(chunks)
    assert found[0] == {"role": "assistant", "content": ""}
    content: list[dict] = []
    packets: dict[int, bytes] = {}
    opened = -1
    for delta in found[1:]:
        if text := delta.get("content"):
            if not content or content[-1]["type"] != "text":
                content.append({"type": "text", "text": ""})
            content[-1]["text"] += text
        elif part := delta.get("part"):
            if part["event"] == "begun":
                opened = part["index"]
                assert opened == len(content)
            assert part["index"] == opened
            if part["type"] == "image" and part["event"] == "begun":
                assert (part["width"], part["height"]) == (128, 128)
            elif part["event"] == "progress":
                assert 0 < part["codes"] < part["of"] == 64
                assert pixels(part["image_url"]["url"]).shape == (128, 128, 3)
            elif part["event"] == "packet":
                assert (part["audio"]["format"], part["audio"]["sample_rate"]) == ("pcm16", 16_000)
                data = base64.b64decode(part["audio"]["data"])
                packets[opened] = packets.get(opened, b"") + data
            elif part["event"] == "done":
                key = "image_url" if part["type"] == "image" else "input_audio"
                content.append({"type": key, key: part[key]})
                if key == "input_audio":
                    assert base64.b64decode(part[key]["data"])[44:] == packets[opened]
                    assert part["seconds"] == len(packets[opened]) / 32_000
    assert content == whole["message"]["content"]
    ends = [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]]
    assert ends[-1] == whole["finish_reason"] and not any(ends[:-1])
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] > 0
    assert all(c["usage"] is None for c in chunks[:-1])


def test_pictures_and_sounds_are_read(server: Live) -> None:
    parts = [image_part(live.png()), audio_part(live.wav()), {"type": "text", "text": "?"}]
    answer = server.chat(parts, modalities=["text"], max_tokens=4)
    assert answer.status == 200, answer.body
    plain = server.chat("?", modalities=["text"], max_tokens=4).json["usage"]["prompt_tokens"]
    assert answer.json["usage"]["prompt_tokens"] == plain + 68 + 2 + 20


def test_several_answers(server: Live) -> None:
    answer = server.chat("n", n=3, modalities=["text"], max_tokens=8, temperature=1).json
    assert [c["index"] for c in answer["choices"]] == [0, 1, 2]
    texts = [c["message"]["content"] for c in answer["choices"]]
    assert len(set(texts)) > 1
    chunks = server.stream("n", n=3, modalities=["text"], max_tokens=8, temperature=1)
    streamed = ["", "", ""]
    for chunk in chunks:
        choice = chunk["choices"][0]
        streamed[choice["index"]] += choice["delta"].get("content", "")
    assert streamed == texts
    assert server.chat("n", n=9).error["param"] == "n"


def test_the_same_seed_gives_the_same_answer(server: Live) -> None:
    def said(seed: int) -> str:
        body = server.chat("s", seed=seed, modalities=["text"], max_tokens=12, temperature=1).json
        return body["choices"][0]["message"]["content"]

    assert said(5) == said(5) != said(6)
    assert said(-1) == said(-1)


def test_the_likeliest_answer_is_that_without_a_penalty(server: Live) -> None:
    """As other servers have it, so that other people's evaluation programs get what `m27 eval` gets."""
    def said(text: str, **options: object) -> str:
        body = server.chat(text, modalities=["text"], max_tokens=40, temperature=0, **options).json
        return body["choices"][0]["message"]["content"]

    texts = [f"say {number}" for number in range(6)]
    plain = [said(text) for text in texts]
    assert plain == [said(text, repetition_penalty=1.0) for text in texts]
    assert plain != [said(text, repetition_penalty=1.3) for text in texts]


def test_an_answer_goes_on_where_its_end_is_ignored(server: Live) -> None:
    """As load clients ask, so that every answer is as long as they say."""
    def written(**options: object) -> list[int]:
        asks = ({"seed": seed, "max_tokens": 60, "temperature": 2, **options} for seed in range(8))
        return [server.chat("i", **ask).json["usage"]["completion_tokens"] for ask in asks]

    assert min(written(modalities=["text"])) < 60
    assert written(modalities=["text"], ignore_eos=True) == [60] * 8
    answer = server.chat("i", plan=["text"], ignore_eos=True)
    assert answer.status == 400 and answer.error["param"] == "ignore_eos"


def test_stop_strings_end_the_text(server: Live) -> None:
    whole = server.chat("t", modalities=["text"], max_tokens=30, temperature=1).json
    text = whole["choices"][0]["message"]["content"]
    stop = text[3:5]
    cut = server.chat("t", modalities=["text"], max_tokens=30, temperature=1, stop=stop).json
    assert cut["choices"][0]["message"]["content"] == text[: text.index(stop)]
    assert server.chat("t", stop=["a"] * 17).status == 400


def test_log_probabilities_spell_the_text(server: Live) -> None:
    options = {"modalities": ["text"], "max_tokens": 9, "logprobs": True, "top_logprobs": 2}
    whole = server.chat("l", **options).json["choices"][0]
    entries = whole["logprobs"]["content"]
    assert b"".join(bytes(e["bytes"]) for e in entries).decode("utf-8", "replace") == whole["message"]["content"]
    assert all(e["logprob"] <= 0 and len(e["top_logprobs"]) <= 2 for e in entries)
    chunks = server.stream("l", **options)
    streamed = [e for c in chunks if (p := c["choices"][0]["logprobs"]) for e in p["content"]]
    assert [e["token"] for e in streamed] == [e["token"] for e in entries]
    assert server.chat("l", top_logprobs=2).error["param"] == "top_logprobs"


@pytest.mark.parametrize(
    "form", [{"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON}}]
)
def test_answers_obey_a_schema(server: Live, form: dict) -> None:
    pytest.importorskip("llguidance")
    answer = server.chat("j", response_format=form, max_tokens=400, temperature=1).json["choices"][0]
    if answer["finish_reason"] == "stop":
        value = json.loads(answer["message"]["content"])
        assert isinstance(value, dict)
        if "json_schema" in form:
            assert 0 <= value["age"] <= 99 and value["ok"] in (True, False)
    assert server.chat("j", response_format=form, modalities=["image"]).error["param"] == "modalities"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "set_age"}}])
def test_a_forced_call_is_its_arguments(server: Live, choice) -> None:
    pytest.importorskip("llguidance")
    tools = [TOOL] if choice == "required" else [TOOL, OTHER]
    options = {"tools": tools, "tool_choice": choice, "max_tokens": 200}
    answer = server.chat("c", **options).json["choices"][0]
    assert answer["finish_reason"] == "tool_calls" and answer["message"]["content"] is None
    (call,) = answer["message"]["tool_calls"]
    assert call["function"]["name"] == "set_age" and call["id"].startswith("call_")
    assert set(json.loads(call["function"]["arguments"])) == {"age", "ok"}
    chunks = server.stream("c", **options)
    pieces = [c for d in deltas(chunks) for c in d.get("tool_calls", ())]
    assert pieces[0]["id"] and pieces[0]["function"]["name"] == "set_age"
    assert "".join(p["function"]["arguments"] for p in pieces) == call["function"]["arguments"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_one_of_several_functions(server: Live) -> None:
    pytest.importorskip("llguidance")
    options = {"tools": [TOOL, OTHER], "tool_choice": "required", "max_tokens": 300}
    answer = server.chat("c", **options).json["choices"][0]
    (call,) = answer["message"]["tool_calls"]
    assert call["function"]["name"] in ("set_age", "stop_all")
    (streamed,) = [c for d in deltas(server.stream("c", **options)) for c in d.get("tool_calls", ())]
    assert streamed["function"] == call["function"]


def test_a_call_and_its_outcome_are_taken_as_history(server: Live) -> None:
    history = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": "age?"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "set_age", "arguments": '{"age": 3}'}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "done"},
    ]  # fmt: skip
    assert server.chat(history, tools=[TOOL], modalities=["text"], max_tokens=5).status == 200
    assert server.chat(history, tools=[TOOL], tool_choice="none", max_tokens=5, modalities=["text"]).status == 200


def test_openai_s_own_way_of_asking_for_sound(server: Live) -> None:
    options = {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "wav"}, "max_tokens": 60}
    message = server.chat("say", **options).json["choices"][0]["message"]
    assert message["content"][-1]["type"] == "input_audio"
    assert message["audio"]["data"] == message["content"][-1]["input_audio"]["data"]
    assert message["audio"]["transcript"] == "".join(p.get("text", "") for p in message["content"])
    options["audio"]["format"] = "pcm16"
    data = b"".join(
        base64.b64decode(d["audio"]["data"]) for d in deltas(server.stream("say", **options)) if "audio" in d
    )
    assert data == base64.b64decode(message["audio"]["data"])[44:]


REFUSED = [
    ({"presence_penalty": 0.5}, "presence_penalty", "unsupported_parameter"),
    ({"logit_bias": {"1": 5}}, "logit_bias", "unsupported_parameter"),
    ({"functions": [{"name": "f"}]}, "functions", "unsupported_parameter"),
    ({"tempreature": 1}, "tempreature", "unknown_parameter"),
    ({"temperature": 3}, "temperature", "invalid_value"),
    ({"temperature": "hot"}, "temperature", "invalid_value"),
    ({"modalities": ["smell"]}, "modalities[0]", "invalid_value"),
    ({"modalities": []}, "modalities", "invalid_value"),
    ({"plan": ["image"], "modalities": ["text"]}, None, "invalid_value"),
    ({"adapter": "nobody"}, "adapter", "invalid_value"),
    ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
    ({"audio": {"format": "mp3"}}, "audio.format", "invalid_value"),
    ({"messages": []}, "messages", "invalid_value"),
    ({"messages": [{"role": "user"}]}, "messages", "invalid_message"),
    ({"messages": [{"role": "user", "content": [{"type": "path", "path": "/etc/passwd"}]}]},
     "messages[0].content[0]", "invalid_value"),
    ({"response_format": {"type": "json_schema"}}, "response_format", "invalid_value"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "param", "code"), REFUSED, ids=lambda v: str(v)[:40])
def test_refused_by_name(server: Live, options: dict, param: str, code: str) -> None:
    answer = server.chat("x", **options)
    assert answer.status == 400, answer.body
    assert (answer.error["param"], answer.error["code"]) == (param, code)
    assert answer.error["type"] == "invalid_request_error"
    assert "\n" not in answer.error["message"] and "/etc" not in answer.error["message"]


def test_what_changes_nothing_is_passed_over(server: Live) -> None:
    options = {
        "user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto",
        "parallel_tool_calls": True, "frequency_penalty": 0, "logit_bias": {}, "prompt_cache_key": "k",
        "reasoning_effort": "low", "stream": False,
    }  # fmt: skip
    assert server.chat("x", modalities=["text"], max_tokens=3, **options).status == 200


def test_an_unknown_model_is_a_404(server: Live) -> None:
    answer = server.chat("x", model="gpt-9")
    assert answer.status == 404 and answer.error["code"] == "model_not_found"


@pytest.mark.parametrize("name", sorted(tiny.VOCABULARY.control))
def test_a_control_token_typed_as_text_stays_text(server: Live, name: str) -> None:
    """Its letters are counted, one id a byte: the tiny tokenizer has no merges."""
    plain = server.chat("", modalities=["text"], max_tokens=1).json["usage"]["prompt_tokens"]
    typed = server.chat(name, modalities=["text"], max_tokens=1).json["usage"]["prompt_tokens"]
    assert typed - plain == len(name.encode())
