"""Dense to experts and back: what must begin equal is equal, what must differ differs, refusals say why."""

from dataclasses import replace

import pytest
import torch

from m27.model.checkpoint import CheckpointError, load, save
from m27.model.config import Config, ConfigError, size_row
from m27.model.decoder import Decoder
from m27.model.upcycle import Upcycling, fold, merge, unfold, upcycle
from tests.model.conftest import FAMILIES, TINY, random_decoder
from tests.model.test_checkpoint import same

IDS = torch.arange(18).view(2, 9) * 5
PLANS = {
    "copies": Upcycling(4, 2),
    "finer": Upcycling(8, 2, split=2),
    "finer, two copies a token": Upcycling(8, 4, split=2),
    "shared": Upcycling(4, 2, shared_dim=32),
    "shared and finer": Upcycling(8, 4, split=4, shared_dim=16),
    "all chosen": Upcycling(3, 3, split=3),
}


@pytest.fixture
def dense() -> Decoder:
    return random_decoder(FAMILIES["qwen3"])


@pytest.fixture(params=PLANS)
def plan(request: pytest.FixtureRequest) -> Upcycling:
    return PLANS[request.param]


@torch.no_grad()
def test_first_forward_equals_the_dense_one(dense, plan):
    moe = upcycle(dense, plan)
    assert (moe.config.n_experts, moe.config.shared_dim) == (plan.n_experts, plan.shared_dim)
    torch.testing.assert_close(moe(IDS), dense(IDS), rtol=0, atol=1e-4)
    assert all(block.mlp.gate.weight.std() > 0.01 for block in moe.model.layers)
    # The same active inner units, where as many pieces are chosen as a copy has.
    if plan.top_k == plan.split and not plan.shared_dim:
        routers = plan.n_experts * dense.config.dim * dense.config.n_layers
        active = size_row("", moe.config).active_parameters
        assert active == size_row("", dense.config).active_parameters + routers


@torch.no_grad()
def test_what_was_not_trained_merges_back_exactly(dense, plan):
    load_LE = torch.randint(0, 1000, (2, plan.n_experts))
    load_LE[0] = 0  # a layer of which nothing was counted
    back = merge(upcycle(dense, plan), plan.split, load_LE)
    assert back.config == dense.config
    if plan.split == 3:  # thirds are rounded
        torch.testing.assert_close(back(IDS), dense(IDS))
    else:
        same(back, dense)


@torch.no_grad()
def test_merging_weighs_experts_by_their_load(dense):
    moe = upcycle(dense, Upcycling(4, 2))
    down = moe.model.layers[1].mlp.experts.down_proj
    down += torch.arange(4)[:, None, None]
    load_LE = torch.tensor([[1, 1, 1, 1], [0, 1, 0, 3]])
    found = merge(moe, 1, load_LE).model.layers[1].mlp.down_proj.weight
    torch.testing.assert_close(found, dense.model.layers[1].mlp.down_proj.weight + 2.5)


@torch.no_grad()
def test_drop_draws_a_share_of_each_experts_units_anew(dense):
    kept, dropped = (upcycle(dense, Upcycling(4, 2, drop=d)) for d in (0.0, 0.25))
    a, b = (m.model.layers[0].mlp.experts for m in (kept, dropped))
    units = [
        torch.cat((e.gate_up_proj.unflatten(1, (2, -1)).transpose(1, 2).flatten(2),
                   e.down_proj.transpose(1, 2)), 2) for e in (a, b)
    ]  # [E, F, 3D]  # fmt: skip
    new = (units[0] != units[1]).any(-1)
    assert new.sum(-1).tolist() == [24] * 4  # a quarter of 96, in every expert
    assert (units[0] != units[1]).all(-1).sum() == new.sum()  # all three vectors of a unit
    assert len({tuple(row.tolist()) for row in new}) == 4  # others in every expert
    assert units[1][new].std() == pytest.approx(float(units[0].std()), rel=0.1)
    again = upcycle(dense, Upcycling(4, 2, drop=0.25))
    same(again, dropped)
    assert not torch.allclose(dropped(IDS), dense(IDS), atol=1e-2)


@torch.no_grad()
def test_a_shared_expert_folds_into_the_stock_form(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = replace(FAMILIES["qwen3_moe"], shared_dim=24)
    model = random_decoder(config)
    assert not model.config.to_hf().keys() - FAMILIES["qwen3_moe"].to_hf().keys()
    folded = fold(model)
    assert folded.config == replace(config, shared_dim=0, expert_dim=48 + 24)
    torch.testing.assert_close(folded(IDS), model(IDS), rtol=0, atol=1e-4)
    save(model, tmp_path)
    same(load(tmp_path), folded)
    stock, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert type(stock).__name__ == "Qwen3MoeForCausalLM"
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    torch.testing.assert_close(stock.eval()(IDS).logits, model(IDS), rtol=0, atol=1e-4)
    # And back, to be trained on.
    unfolded = unfold(folded, 24)
    assert unfolded.config == config
    same(unfolded, model)
    with pytest.raises(ConfigError, match="layer 0 has no 25 units in common"):
        unfold(folded, 25)
    assert fold(folded) is folded


def test_a_selection_bias_is_not_lost_in_silence(tmp_path):
    model = random_decoder(FAMILIES["qwen3_moe"])
    model.model.layers[1].mlp.bias_E = torch.zeros(8)
    save(model, tmp_path)
    model.model.layers[1].mlp.bias_E[3] = -0.25
    with pytest.raises(CheckpointError, match=r"layer 1: a selection bias of up to 0\.25"):
        save(model, tmp_path)
    save(model, tmp_path, drop_bias=True)
    same(load(tmp_path), model)


@pytest.mark.parametrize(
    ("family", "plan", "message"),
    [
        ("llama", Upcycling(), "normalises queries and keys per head and a llama does not"),
        ("qwen3_moe", Upcycling(), "qwen3_moe has experts already"),
        ("qwen3", Upcycling(8, 2, split=3), "split: 3 does not divide n_experts 8"),
        ("qwen3", Upcycling(10, 5, split=5), "96 are left, which are not 5 equal pieces"),
        ("qwen3", Upcycling(shared_dim=96), "shared_dim: of 96 inner units, 0 are left"),
        ("qwen3", Upcycling(drop=1.5), r"drop: 1\.5 is no share"),
        ("qwen3", Upcycling(4, 5), "top_k: 5 of 4 experts"),
    ],
)
def test_what_cannot_be_upcycled_is_refused(family, plan, message):
    with pytest.raises(ConfigError, match=message):
        upcycle(random_decoder(FAMILIES[family]), plan)


def test_what_cannot_be_merged_is_refused(dense):
    moe = upcycle(dense, Upcycling(4, 2))
    for model, split, load_LE, message in (
        (dense, 1, None, "no experts"),
        (moe, 3, None, "split: 3"),
        (moe, 1, torch.ones(4), r"load: \[4\], not \[2, 4\]"),
        (moe, 1, -torch.ones(2, 4), "below zero"),
        (random_decoder(replace(moe.config, norm_topk=False)), 1, None, "norm_topk"),
    ):
        with pytest.raises(ConfigError, match=message):
            merge(model, split, load_LE)


@pytest.mark.parametrize("wrong", [{"norm_topk": False}, {"shared_dim": -1}])
def test_a_shared_expert_needs_weights_that_sum_to_one(wrong):
    with pytest.raises(ConfigError, match="shared_dim"):
        replace(FAMILIES["qwen3_moe"], **{"shared_dim": 8, **wrong})
    with pytest.raises(ConfigError, match="shared_dim"):
        replace(TINY, shared_dim=8)


def test_sizes_count_a_shared_expert():
    config: Config = replace(FAMILIES["qwen3_moe"], shared_dim=24)
    row = size_row("", config)
    assert row.parameters == sum(p.numel() for p in Decoder(config).parameters())
    plain = size_row("", FAMILIES["qwen3_moe"])
    assert row.active_parameters - plain.active_parameters == row.parameters - plain.parameters
