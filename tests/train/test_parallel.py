"""Two ranks (gloo) train as one process does, in every layout, precision and optimiser.

All jobs are done by the same two processes: most of the time goes into starting them.
"""

import json

import pytest
import torch
from safetensors.torch import load_file

from m27.model import checkpoint as weights
from m27.model.decoder import Decoder
from m27.train import checkpoint
from m27.train.parallel import Parallel
from m27.train.settings import ParallelConfig, SettingError
from tests.train import fixtures
from tests.train import parallel_ranks as ranks

MOE = {"shape": ranks.MOE}
ONE = {  # of one process; several do the same in the layouts below
    "dense": {"steps": 20},
    "moe": {"steps": 20, **MOE},
    "muon": {**MOE, "optim": {"kind": "muon", "average": 0.9}},
    "words": {**MOE, "only": "words"},
    "nothing": {**MOE, "only": "nothing"},
    "bfloat16": {"dtype": "bfloat16", "recompute": True},
    "lora": {"body": "adapters", "rows": "maps"},
}
TWO = {
    "dense": {"cut": {}},
    "moe": {"dealt": {"expert": 2, "shard": 1, "replicate": 2}, "cut-and-dealt": {"expert": 2}},
    "muon": {"cut": {}, "dealt": {"expert": 2, "recompute": True}},
    "words": {"cut-and-dealt": {"expert": 2}},
    "nothing": {"cut-and-dealt": {"expert": 2}},
    "bfloat16": {"cut": {}},
    "lora": {"repeated": {}},
}
LAYOUTS = [(of, f"{of}-{name}") for of, named in TWO.items() for name in named]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All runs, done: NAME by one process, NAME-LAYOUT by two."""
    folder = tmp_path_factory.mktemp("runs")
    fixtures.corpus(folder / "shards")
    jobs = [(f"{of}-{name}", {**ONE[of], **job}) for of, named in TWO.items() for name, job in named.items()]
    ranks.start(2, folder, [("experts", {"do": "experts"}), *jobs])
    for name, job in ONE.items():
        ranks.train(folder / name, **job)
    return folder


def log(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def same(folder, one, other, loss=1e-5, weight=1e-4):
    """Assert that two runs had the same rows, losses and weights; logs round losses to five places."""
    records = list(zip(log(folder / one), log(folder / other), strict=True))
    for left, right in records:
        for key in ("step", "tokens", "targets", "rate"):
            assert left[key] == right[key]
        assert left["media"].keys() == right["media"].keys()
        assert abs(left["loss"] - right["loss"]) < loss + 1e-6
        assert left["gradient_norm"] == pytest.approx(right["gradient_norm"], rel=1e-3 + loss, abs=2e-4)
    left, right = (load_file(folder / f"{name}.safetensors") for name in (one, other))
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        torch.testing.assert_close(tensor, right[name], rtol=weight, atol=weight)
    assert len(records) < 20 or records[-1][0]["loss"] < records[0][0]["loss"]


@pytest.mark.parametrize(("one", "other"), LAYOUTS)
def test_two_ranks_train_as_one(folder, one, other):
    loose = one == "bfloat16"  # masters are rounded before they are gathered, not in each product
    same(folder, one, other, *((2e-2, 1e-2) if loose else ()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "job"),
    [("cut", {}), ("again", {"recompute": True}), ("dealt", {**MOE, "expert": 2}), ("bfloat16", {"dtype": "bfloat16"})],
)
def test_compiled_blocks_train_cut_as_they_do_whole(tmp_path, monkeypatch, name, job):
    monkeypatch.setenv("M27_TEST_SECONDS", "600")  # the compiler takes most of a minute, more beside others
    fixtures.corpus(tmp_path / "shards")
    ranks.start(2, tmp_path, [(name, {**job, "blocks": True})])
    ranks.train(tmp_path / "one", **{**job, "expert": 1})
    loose = name == "bfloat16"
    same(tmp_path, "one", name, *((2e-2, 1e-2) if loose else ()))


@pytest.mark.parametrize("name", ["moe", "moe-dealt", "moe-cut-and-dealt"])
def test_a_snapshot_of_any_ranks_becomes_a_stock_checkpoint(folder, tmp_path, name):
    assert checkpoint.export(folder / name, tmp_path, torch.float32) == 20
    loaded = weights.load(tmp_path)
    trained = load_file(folder / f"{name}.safetensors")
    assert isinstance(loaded, Decoder)
    for key, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, trained[key])
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["Qwen3MoeForCausalLM"]


@pytest.mark.parametrize(
    ("world", "layout", "word"),
    [(4, {"shard": 3}, "shard 3 x replicate 1"), (6, {"shard": 3, "replicate": 2, "expert": 2}, "expert: 2"),
     (2, {"shard": 1, "replicate": 2, "expert": 4}, "expert: 4"), (2, {"replicate": 0}, "positive")],
)  # fmt: skip
def test_a_layout_that_does_not_go_up_is_one_line(monkeypatch, world, layout, word):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", str(world))
    with pytest.raises(SettingError, match=word):
        Parallel(ParallelConfig(**layout), torch.device("cpu"), whole=True)


def test_adapters_are_not_cut(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingError, match="rows=free"):
        Parallel(ParallelConfig(shard=2), torch.device("cpu"), whole=False)


@pytest.mark.parametrize("length", [0.5, 3.0])
def test_a_gradient_is_shortened_where_it_is_too_long_and_not_gone_through_otherwise(length):
    one, other = (torch.nn.Parameter(torch.zeros(6)) for _ in range(2))
    one.grad = torch.arange(6.0) * length / torch.arange(6.0).norm()
    before, version = one.grad.clone(), one.grad._version
    found = Parallel(ParallelConfig(), torch.device("cpu"), True).clip({"one": one, "no gradient": other}, 1.0)
    assert float(found) == pytest.approx(length)
    torch.testing.assert_close(one.grad, before / max(length, 1.0))
    assert (one.grad._version == version) == (length <= 1)
    assert other.grad is None
