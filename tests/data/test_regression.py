"""regression.py: a shard in one file and back; another vocabulary or a broken file is told."""

import numpy as np
import pytest

from m27.data.build import ShardError, build
from m27.data.mixture import Corpus
from m27.data.regression import pack, unpack
from tests import tiny


def documents():
    for number in range(4):
        messages = [
            {"role": "user", "content": f"question {number}"},
            {"role": "assistant", "content": [{"type": "image", "codes": np.full((2, 2), number)}]},
        ]
        yield {"id": str(number), "task": f"kind {number % 2}", "source": "s", "messages": messages}


def test_it_comes_back_as_it_was(tmp_path):
    processor = tiny.processor()
    build(documents(), processor, tmp_path / "shard")
    pack(tmp_path / "shard", tmp_path / "set.safetensors")
    assert unpack(tmp_path / "set.safetensors", tmp_path / "again", processor)
    first, again = Corpus([tmp_path / "shard"]), Corpus([tmp_path / "again"])
    assert again.tasks == first.tasks == ["kind 0", "kind 1"]
    assert again.task_of.tolist() == [0, 1, 0, 1]
    for number in range(4):
        for a, b in zip(first.document(number), again.document(number), strict=True):
            assert a.tolist() == b.tolist()


def test_another_codec_is_noticed(tmp_path, monkeypatch):
    build(documents(), tiny.processor(), tmp_path / "shard")
    pack(tmp_path / "shard", tmp_path / "set.safetensors")
    monkeypatch.setattr(tiny.TinyImageCodec, "codes_revision", "another")
    assert not unpack(tmp_path / "set.safetensors", tmp_path / "again", tiny.processor())


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "set.safetensors").write_bytes(b"no")
    with pytest.raises(ShardError, match=r"set\.safetensors"):
        unpack(tmp_path / "set.safetensors", tmp_path / "again", tiny.processor())
