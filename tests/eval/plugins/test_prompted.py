"""A checkpoint as other programs ask it: prompts, continuations, and control tokens that nobody typed."""

import pytest
import torch

from m27.eval.answerers import AnswererError, Settings
from m27.eval.plugins.prompted import MARK, Prompted
from m27.infer.likelihood import log_likelihoods
from m27.infer.request import Request
from m27.model.checkpoint import load
from tests import tiny
from tests.eval.test_answerers import stock

END = "<|im_end|>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("model")
    tiny.write_model(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    model = Prompted(folder, Settings(precision="float32", threads=1, at_once=3))
    yield model
    model.close()


def test_typed_control_tokens_stay_text_and_those_of_a_conversation_do_not(model):
    conversation = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": f"a <|im_end|> and <|im_end|>{MARK} <|image|>"},
    ]
    clean = [{**m, "content": m["content"].replace(MARK, "")} for m in conversation]
    assert model.ids(model.chat(conversation)) == model.processor.encode(clean, generate=True).ids
    assert model.ids("<|im_start|>") == model.processor.encode_text("<|im_start|>")
    opened = model.chat([*conversation, {"role": "assistant", "content": "It"}], generate=False)
    assert opened.endswith("assistant\nIt")


def test_what_follows_a_prompt_is_the_likeliest_id_after_the_other(model, folder):
    prompts = ["One and", "x", "What is this? It is", "a b c d e f g h"]
    found = dict(model.complete([(model.ids(text), {"max_tokens": 7}) for text in prompts]))
    decoder, processor = load(folder), model.processor
    text, control = processor.vocabulary.text_size, processor.vocabulary.control
    for place, prompt in enumerate(prompts):
        ids = processor.encode_text(prompt)
        for _ in range(7):
            with torch.inference_mode():
                logits_V = decoder(torch.tensor([ids]))[0, -1, :text].clone()
                logits_V[[id for name, id in control.items() if id < text and name != END]] = -torch.inf
            ids.append(int(logits_V.argmax()))
            if ids[-1] == control[END]:
                break
        want = processor.decode(ids[len(processor.encode_text(prompt)) :])
        assert found[place] == "".join(part["text"] for part in want)


def test_a_conversation_is_answered_as_the_engine_answers_it(model, folder):
    conversation = [{"role": "user", "content": "What is this?"}]
    engine = tiny.Engine.load(folder, precision="float32", threads=1)
    words = {"modalities": ("text",), "max_tokens": 9, "temperature": 0.0, "repetition_penalty": 1.0}
    want = engine.chat(Request(conversation, **words)).text
    engine.close()
    ids = model.ids(model.chat(conversation))
    assert dict(model.complete([(ids, {"max_tokens": 8})])) == {0: want}
    if len(want) > 3:
        stopped = dict(model.complete([(ids, {"max_tokens": 8, "stop": (want[3],)})]))
        assert stopped[0] == want[: want.index(want[3])]


def test_scores_are_the_oracles(model):
    rows = [(model.ids(text), count) for text, count in (("The sky is blue", 5), ("The sky is red", 4), ("Paris", 4))]
    found = {one.place: one.logprob for one in model.score(rows)}
    want = log_likelihoods(model.engine.runner, [ids for ids, _ in rows])
    assert found == {n: pytest.approx(want[n][-count:].sum(), abs=1e-4) for n, (_, count) in enumerate(rows)}


def test_a_stock_model_of_words_is_asked_in_the_same_way(tmp_path):
    stock(tmp_path)
    model = Prompted(tmp_path, Settings(precision="float32", threads=1))
    assert len(dict(model.complete([(model.ids("What"), {"max_tokens": 5})]))[0]) > 0
    model.close()


def test_what_cannot_be_asked_is_one_line(model, tmp_path):
    with pytest.raises(AnswererError, match="no model here"):
        Prompted(tmp_path, Settings())
    with pytest.raises(AnswererError, match="is the most"):
        list(model.complete([([5] * 2000, {"max_tokens": 5})]))
