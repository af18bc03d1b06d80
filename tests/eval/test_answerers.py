"""Who answers: the engine, a server, saved answers and transformers, all through one interface."""

import base64
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from m27.eval.answerers import AnswererError, Asked, Settings, open_model
from m27.eval.answerers.server import Server
from m27.infer.request import Request
from m27.language.bytelevel import byte_characters
from m27.language.vocabulary import BASE_CONTROL
from m27.model.checkpoint import save
from m27.model.decoder import Decoder
from tests import tiny
from tests.eval.fake_openai import serving

SHORT = Settings(max_tokens=6, at_once=3, precision="float32", threads=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("model")
    tiny.write_model(folder)
    return folder


@pytest.fixture(autouse=True)
def codecs(monkeypatch):
    monkeypatch.setattr("m27.codec.image.ImageCodec", tiny.TinyImageCodec)
    monkeypatch.setattr("m27.codec.audio.AudioCodec", tiny.TinyAudioCodec)


def picture(value=255):
    return {"type": "image", "image": np.full((32, 32, 3), value, np.uint8)}


def questions(n):
    """Of words, and each third with a picture."""
    return [
        Asked(f"q{i}", [{"role": "user", "content": [
            *([picture(i)] if i % 3 == 0 else []), {"type": "text", "text": f"What is {i}?"}]}])
        for i in range(n)
    ]  # fmt: skip


def asked(name, questions, settings=SHORT):
    model = open_model(name, settings)
    try:
        return {answer.key: answer for answer in model.answer(questions)}, model.facts()
    finally:
        model.close()


def test_a_checkpoint_answers_as_the_engine_alone_does_and_says_what_it_refuses(folder):
    long = Asked("long", [{"role": "user", "content": "x" * 2000}])
    broken = Asked("broken", [{"role": "user", "content": [{"type": "image", "bytes": b"no"}]}])
    found, facts = asked(str(folder), [*questions(7), long, broken])
    assert set(found) == {*(f"q{i}" for i in range(7)), "long", "broken"}
    engine = tiny.Engine.load(folder, precision="float32", threads=1)
    for one in questions(7):
        words = {"modalities": ("text",), "max_tokens": 6}
        want = engine.chat(Request(one.messages, **words, temperature=0.0, repetition_penalty=1.0, seed=0))
        answer = found[one.key]
        assert (answer.text, answer.error) == (want.text.strip(), "")
        assert answer.completion_tokens == want.usage.completion_tokens
        assert 0 < answer.first <= answer.seconds
    engine.close()
    assert "tokens long" in found["long"].error
    assert found["broken"].error
    assert (facts.kind, facts.precision, len(facts.revision)) == ("checkpoint", "float32", 12)


def stock(folder):
    """A stock model of words: no token of ours, ChatML's turns at the front."""
    names = [*BASE_CONTROL, *byte_characters()]
    tokenizer = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in BASE_CONTROL])
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    model = Decoder(replace(tiny.CONFIG, vocab_size=len(names))).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    with torch.no_grad():  # ours never says a control token in the midst; here theirs does not want to
        rows = dict(model.named_parameters())["model.embed_tokens.weight"]
        rows[[i for i in range(len(BASE_CONTROL)) if i not in (1, 2)]] = 0.0
    save(model, folder)


def test_a_stock_text_model_answers_through_the_same_engine_as_transformers_does(tmp_path):
    pytest.importorskip("transformers")
    stock(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "chat_template":
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{{ '<|im_start|>assistant\n' }}"}))  # fmt: skip
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    texts = [Asked(f"{i}", [{"role": "user", "content": f"What is {i}?"}]) for i in range(5)]
    ours, facts = asked(str(tmp_path), texts)
    assert facts.kind == "checkpoint"
    assert all(answer.completion_tokens for answer in ours.values())
    theirs, facts = asked(f"hf:{tmp_path}", texts)
    assert facts.kind == "hf"
    # One token more counts towards ours where it ends the turn; what is said is what is compared.
    assert {k: a.text for k, a in theirs.items()} == {k: a.text for k, a in ours.items()}
    assert all(0 < a.first <= a.seconds and a.completion_tokens for a in theirs.values())
    (refused,) = asked(f"hf:{tmp_path}", questions(1))[0].values()
    assert refused.error == "the model takes no image"


def test_a_model_without_chatml_is_sent_to_transformers(tmp_path):
    stock(tmp_path)
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] != "<|im_start|>"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(AnswererError, match=r"ask hf:"):
        open_model(str(tmp_path), SHORT)


def rule(body):
    return f"says {body['messages'][-1]['content']}"


def test_a_server_that_fails_every_third_request_gives_the_same_answers(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    content = [[{"type": "text", "text": f"{i}"}] for i in range(12)]
    texts = [Asked(f"{i}", [{"role": "user", "content": parts}], seed=i) for i, parts in enumerate(content)]

    def fault(number):
        return (0, 0, 500, 0, 0, 429, 0, 0, -1)[number % 9]

    with serving(rule, fault) as server:
        pauses = []
        model = Server("fake", server.base, replace(SHORT, tries=12), sleep=pauses.append)
        found = {answer.key: answer for answer in model.answer(texts)}
        assert {k: a.text for k, a in found.items()} == {str(i): f"says {i}" for i in range(12)}
        assert all(a.prompt_tokens == 7 and a.completion_tokens == 3 and a.first <= a.seconds for a in found.values())
        facts = model.facts()
        assert server.keys == {"Bearer sk-secret"}
        assert {body["seed"] for body in server.bodies} == set(range(12))
    assert pauses and min(pauses) >= 0.5
    assert facts.more == {"retries": len(pauses), "answered_as": "fake-1"}
    assert "secret" not in repr(facts)


def test_a_server_gets_pictures_as_data_urls_and_a_refusal_is_that_questions_alone():
    def fault(number):
        return 422 if number == 2 else 0

    with serving(lambda body: "fine", fault) as server:
        model = Server("fake", server.base, replace(SHORT, at_once=1))
        found = list(model.answer(questions(3)))
        assert sorted(bool(answer.error) for answer in found) == [False, False, True]
        (with_picture,) = [b for b in server.bodies if not isinstance(b["messages"][0]["content"], str)]
    url = with_picture["messages"][0]["content"][0]["image_url"]["url"]
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(data).startswith(b"\x89PNG")


@pytest.mark.parametrize(("status", "says"), [(500, "failed 3 times in a row: 500"), (401, "401")])
def test_a_server_that_is_down_or_wants_another_key_ends_the_run(status, says):
    with serving(rule, lambda number: status) as server:
        model = Server("fake", server.base, replace(SHORT, tries=3), sleep=lambda seconds: None)
        with pytest.raises(AnswererError, match=says):
            list(model.answer(questions(2)))


def test_a_key_does_not_leave_in_the_clear(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with pytest.raises(AnswererError, match="in the clear"):
        Server("m", "http://example.com/v1", SHORT)
    assert Server("m", "https://example.com/v1", SHORT).facts().data_goes == "to example.com"


def test_saved_answers_are_read_in_their_forms(tmp_path):
    lines, table = tmp_path / "a.jsonl", tmp_path / "b.json"
    lines.write_text('{"id": "q0", "answer": "zero"}\n{"key": "q1", "prediction": "one"}\n')
    table.write_text('{"q0": "zero", "q1": "one"}')
    for path in (lines, table):
        found, _ = asked(f"stored:{path}", questions(3))
        assert [found[f"q{i}"].text for i in range(3)] == ["zero", "one", ""]
        assert found["q2"].error == "no answer was stored"
    lines.write_text('{"id": "q0", "answer": "zero"}\n{"id": "q1"}\n')
    with pytest.raises(AnswererError, match=r"a\.jsonl:2: needs an id and an answer"):
        open_model(f"stored:{lines}", SHORT)


@pytest.mark.parametrize("name", ["openai:x", "openai:@http://h/v1", "openai:x@http://", "nowhere", "stored:nowhere"])
def test_a_name_that_means_no_model_is_one_line(name):
    with pytest.raises(AnswererError):
        open_model(name, SHORT)
