"""schema.py: whatever is drawn among the allowed ids is JSON that obeys the schema; bad schemas are
refused in one line and in little time."""

import json
import random
import time
from typing import Any

import numpy as np
import pytest

from m27.infer.request import Request, RequestError
from m27.infer.schema import JsonSchemas
from m27.language.processor import Processor
from tests import tiny

pytest.importorskip("llguidance")
END = tiny.VOCABULARY.turn_end
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 2},
        "zip": {"type": "string", "pattern": "^[0-9]{3}$"},
        "inner": {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
    },
    "required": ["name", "age", "tags", "zip", "inner"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def schemas() -> JsonSchemas:
    return JsonSchemas(tiny.processor())


def spelled(ids: list[int]) -> str:
    spelling = tiny.processor().spelling
    return b"".join(spelling[id] for id in ids).decode("utf-8")


def draw(rules: Any, rng: random.Random, most: int = 400) -> list[int]:
    """Random allowed ids, with a mind to closing, up to the end of the turn."""
    ids: list[int] = []
    closing = set(tiny.processor().encode_text('"}],')) | {END}
    while len(ids) < most:
        allowed = np.flatnonzero(rules.mask()).tolist()
        assert allowed
        assert (END in allowed) == rules.complete()
        near = [id for id in allowed if id in closing]
        id = rng.choice(near if near and rng.random() < 0.4 else allowed)
        if id == END:
            break
        assert tiny.VOCABULARY.kind(id) == "text"
        rules.advance(id)
        ids.append(id)
    return ids


def test_random_ids_spell_what_the_schema_asks_for(schemas: JsonSchemas) -> None:
    rng = random.Random(0)
    for _ in range(60):
        value = json.loads(spelled(draw(schemas(PERSON), rng)))
        assert list(value) == PERSON["required"]
        assert len(value["name"]) <= 5 and 0 <= value["age"] <= 150
        assert set(value["tags"]) <= {"red", "green"} and len(value["tags"]) <= 2
        assert len(value["zip"]) == 3 and value["zip"].isdigit()
        assert value["inner"] in (None, True, False)


def test_any_object(schemas: JsonSchemas) -> None:
    rng = random.Random(1)
    for _ in range(30):
        rules = schemas("json")
        ids = draw(rules, rng)
        if rules.complete():
            assert isinstance(json.loads(spelled(ids)), dict)


def test_the_usual_form_is_allowed_and_free_white_space_is_not(schemas: JsonSchemas) -> None:
    rules = schemas("json")
    for id in tiny.processor().encode_text('{"a": [1, {"b": "é \\n"}], "c": null}'):
        assert rules.mask()[id]
        rules.advance(id)
    assert rules.complete()
    assert np.flatnonzero(rules.mask()).tolist() == [END]
    (space,) = tiny.processor().encode_text(" ")
    assert not schemas("json").mask()[space]


def test_a_clone_goes_its_own_way(schemas: JsonSchemas) -> None:
    rules = schemas({"enum": ["aa", "ab"]})
    for id in tiny.processor().encode_text('"a'):
        rules.advance(id)
    other = rules.clone()
    (a, b) = tiny.processor().encode_text("ab")
    other.advance(a)
    assert rules.mask()[b] and not other.mask()[b]
    with pytest.raises(RequestError, match="not allowed"):
        other.advance(b)


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def text(pattern: str) -> dict[str, Any]:
    return {"type": "string", "pattern": pattern}


REFUSED: dict[str, tuple[Any, str]] = {
    "a list": ([1], "must be an object"),
    "nested": (nested(100), "deep"),
    "nested beyond Python": (nested(900), "deep"),
    "huge enum": ({"enum": [f"value {i}" for i in range(50_000)]}, "too large"),
    "many properties": ({"properties": {f"p{i}": True for i in range(9_000)}}, "too large"),
    "many ways": ({"anyOf": [{"properties": {f"k{i}": {}}} for i in range(129)]}, "too large"),
    "long": ({"description": "x" * 70_000}, "bytes long"),
    "long pattern": (text("a" * 2000), "characters long"),
    "look-around": (text("^(?=a)b$"), "look-around"),
    "back reference": (text(r"^(a)\1$"), "backreferences"),
    "not a regex": (text("(("), "regex"),
    "not a type": ({"type": "banana"}, "banana"),
    "not implemented": ({"not": {"type": "string"}}, "not"),
    "conditions": ({"if": {"type": "string"}}, "if"),
    "remote": ({"$ref": "http://example.org/a.json"}, "schema: "),
    "a file": ({"$ref": "file:///etc/passwd"}, "schema: "),
    "itself": ({"$ref": "#"}, "schema: "),
    "unmeetable": ({"properties": {"a": False}, "required": ["a"], "type": "object"}, "schema: "),
    "options": ({"x-guidance": {"lenient": True}, "type": "object"}, "x-guidance"),
    "no JSON": ({"const": object()}, "not JSON"),
    "no number": ({"const": float("nan")}, "not JSON"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line_and_soon(schemas: JsonSchemas, name: str) -> None:
    schema, words = REFUSED[name]
    started = time.perf_counter()
    with pytest.raises(RequestError, match=words) as caught:
        schemas(schema)
    assert time.perf_counter() - started < 2.0  # 0.1 s; the test machine may be busy
    message = str(caught.value)
    assert "\n" not in message and len(message) < 260


@pytest.mark.parametrize(
    ("schema", "written"),
    [
        (text("^(a+)+b$"), '"' + "a" * 400 + 'b"'),
        (text("^(a|b)*a(a|b){50}$"), '"' + "ab" * 100 + 'b"'),
        (nested(40), "[" * 40 + "1" + "]" * 40),
        ({"enum": [f"value {i}" for i in range(900)]}, '"value 77"'),
        ({"type": "string", "maxLength": 10_000_000}, '"abc"'),
        ({"$defs": {"n": {"type": "array", "items": {"$ref": "#/$defs/n"}}}, "$ref": "#/$defs/n"},
         "[" * 50 + "]" * 50),
    ],
)  # fmt: skip
def test_what_might_blow_up_does_not(schemas: JsonSchemas, schema: Any, written: str) -> None:
    started = time.perf_counter()
    rules = schemas(schema)
    for id in tiny.processor().encode_text(written):
        assert rules.mask()[id]
        rules.advance(id)
    assert rules.complete()
    assert time.perf_counter() - started < 2.0


def test_what_grows_too_large_on_the_way_is_told(schemas: JsonSchemas) -> None:
    rules = schemas(text("^((a{1,100}){1,100}){1,100}$"))
    ids = tiny.processor().encode_text('"' + "a" * 300)

    def write() -> None:
        for id in ids:
            rules.mask()
            rules.advance(id)

    with pytest.raises(RequestError, match="schema: "):
        write()


def test_compiled_once(schemas: JsonSchemas) -> None:
    schemas(PERSON)
    held = dict(schemas._kept)
    schemas(dict(PERSON))
    assert dict(schemas._kept) == held
    for number in range(70):
        schemas({"const": number})
    assert len(schemas._kept) == 64


def test_an_engine_keeps_to_it() -> None:
    from m27.infer.engine import Engine
    from m27.infer.torch_runner import TorchRunner

    processor: Processor = tiny.processor()
    engine = Engine(TorchRunner(tiny.decoder(), 200), processor, make_rules=JsonSchemas(processor))
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "y"]}, "b": {"type": "boolean"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    requests = [
        Request(
            [{"role": "user", "content": "?"}], modalities=("text",), schema=schema, n=3,
            temperature=1.0, seed=seed, speculate=bool(seed % 2), logprobs=1 if seed > 4 else None,
        )
        for seed in range(6)
    ]  # fmt: skip
    for response in engine.answer(requests):
        for one in (response, *response.others):
            assert one.usage.finish_reason == "stop"
            assert json.loads(one.text)["a"] in ("x", "y")
    short = Request(requests[0].messages, modalities=("text",), schema=schema, max_tokens=5, seed=1)
    assert engine.chat(short).usage.finish_reason == "length"
