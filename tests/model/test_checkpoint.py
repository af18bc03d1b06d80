"""Weights in and out: whole, in shards, in each dtype; longer vocabularies; refusals."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from m27.model.checkpoint import CheckpointError, assemble, extend_vocabulary, load, save
from m27.model.config import ConfigError
from tests.model.conftest import FAMILIES, TINY, random_decoder


def same(a: torch.nn.Module, b: torch.nn.Module) -> None:
    assert a.state_dict().keys() == b.state_dict().keys()
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, b.state_dict()[name]), name


@pytest.mark.parametrize("shard_bytes", [10**9, 60_000])
def test_round_trip_is_exact(model, tmp_path, shard_bytes):
    save(model, tmp_path, shard_bytes=shard_bytes)
    loaded = load(tmp_path)
    assert loaded.config == model.config
    assert not loaded.training
    same(loaded, model)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_shards_respect_their_size_and_give_way_to_one_file(tiny, tmp_path):
    save(tiny, tmp_path, shard_bytes=60_000)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert all(sum(t.nbytes for t in load_file(path).values()) <= 60_000 for path in shards)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tiny.state_dict().values())
    other = random_decoder(TINY)
    save(other, tmp_path)
    same(load(tmp_path), other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_files(tiny, tmp_path, dtype):
    save(tiny, tmp_path, dtype=dtype)
    want = random_decoder(TINY)
    want.load_state_dict({k: v.to(dtype).float() for k, v in tiny.state_dict().items()})
    same(load(tmp_path), want)
    assert load(tmp_path, dtype=dtype).output_weight.dtype == dtype
    with pytest.raises(CheckpointError, match="int8"):
        save(tiny, tmp_path, dtype=torch.int8)


def test_tied_weights_are_written_once_and_a_copy_is_ignored(tiny, tmp_path):
    save(tiny, tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    assert "lm_head.weight" not in tensors
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, path)
    same(load(tmp_path), tiny)


def damage(directory: Path, how: str) -> None:
    path, config = directory / "model.safetensors", directory / "config.json"
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    elif how == "pickled":
        path.unlink()
        (directory / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    elif how == "no config":
        config.unlink()
    elif how == "config":
        config.write_text("{")
    elif how == "outside":
        path.unlink()
        index = {"weight_map": {"a": "../secret.safetensors"}}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        tensors = load_file(path)
        name = "model.layers.1.mlp.up_proj.weight"
        if how == "missing":
            del tensors[name]
        elif how == "surplus":
            tensors["model.layers.7.odd.weight"] = torch.zeros(1)
        else:
            tensors[name] = tensors[name][1:].clone()
        save_file(tensors, path)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("cut", r"model\.safetensors: not readable"),
        ("pickled", r"no model\.safetensors \(pickled weights are not read\)"),
        ("no config", r"config\.json: no such file"),
        ("config", r"config\.json: not readable as JSON"),
        ("outside", r"'\.\./secret\.safetensors' is not the name of a file beside it"),
        ("missing", r"layers\.1\.mlp\.up_proj\.weight is missing"),
        ("surplus", r"layers\.7\.odd\.weight has no place in a llama model"),
        ("shape", r"up_proj\.weight is \[95, 64\], config\.json asks for \[96, 64\]"),
    ],
)
def test_a_damaged_checkpoint_is_refused_by_name(tiny, tmp_path, how, message):
    save(tiny, tmp_path)
    damage(tmp_path, how)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def test_a_missing_folder_or_expert_is_refused_by_name(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere: no such folder"):
        load(tmp_path / "nowhere")
    save(random_decoder(FAMILIES["qwen3_moe"]), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.0.mlp.experts.3.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"experts\.3\.up_proj\.weight is missing"):
        load(tmp_path)


@torch.no_grad()
def test_a_longer_vocabulary_leaves_the_old_ids_alone(model):
    longer = extend_vocabulary(model, 130)
    ids = torch.randint(0, 97, (1, 9))
    assert longer.config == replace(model.config, vocab_size=130)
    old, new = model(ids), longer(ids)
    assert new.shape[-1] == 130
    torch.testing.assert_close(new[..., :97], old)
    # New ids stand out in no context: their scores lie within those of the old ones.
    assert (new[..., 97:] < old.max()).all()
    assert len({tuple(row.tolist()) for row in longer.output_weight[97:]}) == 33
    with pytest.raises(ConfigError, match="vocab_size: 96 is below the present 97"):
        extend_vocabulary(model, 96)


def test_assembled_weights_go_where_they_are_asked(tiny):
    model = assemble(TINY, tiny.state_dict(), dtype=torch.bfloat16, device="meta")
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in model.parameters())
