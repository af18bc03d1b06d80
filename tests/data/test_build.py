"""Documents → shards, with the real tokenizer logic on a toy vocabulary and codes instead of codecs."""

import json

import numpy as np
import pytest
from tokenizers import pre_tokenizers

from m27.data import build as shards
from m27.data.mixture import Corpus
from m27.language.processor import Processor
from m27.language.vocabulary import BASE_CONTROL, build_tokenizer


@pytest.fixture(scope="module")
def processor():
    names = [*BASE_CONTROL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    return Processor(*build_tokenizer(names, [], image_size=64, audio_size=32))


def document(number, task="draw", **parts):
    picture = {"type": "image", "codes": np.full((2, 2), number % 64)}
    return {
        "id": f"d{number}", "task": task, "source": "toy",
        "messages": [
            {"role": "user", "content": f"draw {number}"},
            {"role": "assistant", "content": [parts or picture]},
        ],
    }  # fmt: skip


def test_what_is_built_is_what_the_processor_says(processor, tmp_path):
    documents = [document(i, "draw" if i % 2 else "story") for i in range(7)]
    meta = shards.build(iter(documents), processor, tmp_path / "toy")
    corpus = Corpus([tmp_path / "toy"])
    assert len(corpus) == meta["documents"] == 7
    for number, given in enumerate(documents):
        want = processor.encode(given["messages"])
        ids, loss = corpus.document(number)
        assert ids.tolist() == want.ids
        assert loss.tolist() == want.loss
        assert corpus.tasks[corpus.task_of[number]] == given["task"]
    assert corpus.tokens_by_task() == meta["tokens_by_task"]
    assert meta["vocabulary"]["size"] == processor.vocabulary.size
    assert shards.is_current(tmp_path / "toy", processor)
    assert [p.name for p in tmp_path.iterdir()] == ["toy"]


def test_what_cannot_be_used_is_counted_with_its_reason(processor, tmp_path):
    documents = [
        document(0),
        document(1, type="image", path=str(tmp_path / "missing.png")),
        document(2, type="text", text="long " * 500),
        {**document(3), "messages": [{"role": "user", "content": "nothing to learn"}]},
    ]
    meta = shards.build(documents, processor, tmp_path / "toy", max_tokens=200)
    assert [meta[key] for key in ("documents", "broken", "long", "empty")] == [1, 1, 1, 1]
    assert meta["reasons"][0].startswith("d1: ")


def test_limits_bound_documents_and_tasks(processor, tmp_path):
    many = (document(i, "draw" if i % 2 else "story") for i in range(1000))
    meta = shards.build(many, processor, tmp_path / "a", limit=10, task_limits={"draw": 2})
    assert meta["documents"] == 10
    tasks = np.load(tmp_path / "a" / "tasks.npy")
    assert (tasks == meta["tasks"].index("draw")).sum() == 2


def test_no_usable_document_is_an_error_and_leaves_nothing(processor, tmp_path):
    with pytest.raises(shards.ShardError, match="d1"):
        shards.build([document(1, type="image", path="/none.png")], processor, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_broken_and_unlike_shards_are_named(processor, tmp_path):
    for name in ("a", "b"):
        shards.build([document(1)], processor, tmp_path / name)
    meta = tmp_path / "b" / "meta.json"
    changed = json.loads(meta.read_text()) | {"image_codec": "another"}
    meta.write_text(json.dumps(changed))
    assert not shards.is_current(tmp_path / "b", processor)
    with pytest.raises(shards.ShardError, match="image_codec"):
        Corpus([tmp_path / "a", tmp_path / "b"])
    (tmp_path / "a" / "tokens.bin").write_bytes(b"1234")
    with pytest.raises(shards.ShardError, match="not a whole shard"):
        Corpus([tmp_path / "a"])
    with pytest.raises(shards.ShardError, match="nowhere"):
        Corpus([tmp_path / "nowhere"])
