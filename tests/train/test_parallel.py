"""Two and four ranks (gloo) train as one does: every layout, precision and optimiser, and runs that move between them.

All jobs of so many ranks are done by the same processes, started once: most of the time goes into starting them.
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
MUON = {"optim": {"kind": "muon", "average": 0.9}}
ONE = {
    "dense": {"steps": 20},
    "moe": {"steps": 20, **MOE},
    "muon": {**MOE, **MUON},
    "words": {**MOE, "only": "words"},
    "nothing": {**MOE, "only": "nothing"},
    "bfloat16": {"dtype": "bfloat16"},
    "lora": {"body": "adapters", "rows": "maps"},
    "few": {"shape": {**ranks.MOE, "n_experts": 2}},
}
TWO = {
    "dense": {"cut": {}, "repeated": {"replicate": 2}},
    "moe": {"cut": {"recompute": True}, "dealt": {"expert": 2, "shard": 1, "replicate": 2},
            "both": {"expert": 2}},
    "muon": {"cut": {"expert": 1}, "dealt": {"expert": 2}},
    "words": {"both": {"expert": 2}},
    "nothing": {"both": {"expert": 2}},
    "bfloat16": {"cut": {"recompute": True}},
    "lora": {"repeated": {}},
}  # fmt: skip
FOUR = {
    "dense": {"cut": {}, "hybrid": {"replicate": 2}},
    "moe": {"both": {"expert": 2}, "hybrid": {"expert": 2, "replicate": 2}, "dealt": {"expert": 4}},
    "few": {"experts-cut": {"expert": 2}},
}
LAYOUTS = [
    (of, f"{of}-{world}-{name}")
    for world, layouts in ((2, TWO), (4, FOUR))
    for of, named in layouts.items()
    for name in named
]
LONG = {"steps": 6, **MOE, **MUON}  # begun by some ranks, gone on with by others
MOVES = {"1-4": (1, 4), "4-2": (4, 2), "4-1": (4, 1)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All runs, done: NAME for one process, NAME-WORLD-LAYOUT for several, and `moved-…`."""
    folder = tmp_path_factory.mktemp("runs")
    fixtures.corpus(folder / "shards")
    for name, job in ONE.items():
        ranks.train(folder / name, **job)
    ranks.train(folder / "long", **LONG)
    ranks.train(folder / "moved-1-4", **LONG, until=3)
    jobs = {
        world: [(f"{of}-{world}-{n}", {**ONE[of], **job}) for of, named in layouts.items() for n, job in named.items()]
        for world, layouts in ((2, TWO), (4, FOUR))
    }
    begun = [(f"moved-4-{n}", {**LONG, "expert": 2, "until": 3}) for n in (2, 1)]
    ranks.start(4, folder, [*jobs[4], *begun, ("moved-1-4", {**LONG, "expert": 2})])
    gone_on = ("moved-4-2", {**LONG, "replicate": 2})
    ranks.start(2, folder, [("experts", {"do": "experts"}), *jobs[2], gone_on])
    ranks.train(folder / "moved-4-1", **LONG)
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
    assert records[-1][0]["loss"] < records[0][0]["loss"]


@pytest.mark.parametrize(("one", "other"), LAYOUTS)
def test_several_ranks_train_as_one(folder, one, other):
    loose = one == "bfloat16"  # masters are rounded before they are gathered, not in each product
    same(folder, one, other, *((2e-2, 1e-2) if loose else ()))


@pytest.mark.parametrize("name", MOVES)
def test_a_run_moves_between_numbers_of_ranks(folder, name):
    same(folder, "long", f"moved-{name}")


@pytest.mark.parametrize("name", ["moe", "moe-4-hybrid", "moe-2-both"])
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
