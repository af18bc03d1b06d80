"""The router's losses have their bounds, the bias evens the load, its state resumes, export is reported."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from m27.data.mixture import Corpus
from m27.model.checkpoint import load, save
from m27.model.config import SIZES
from m27.model.decoder import Decoder
from m27.model.moe import choose
from m27.train.loop import Trainer
from m27.train.optim import OptimConfig
from m27.train.routing import (
    Balancer,
    Load,
    RouterConfig,
    balancing_loss,
    export_change,
    picks,
    router_losses,
    strength,
    token_media,
    z_loss,
)
from m27.train.rows import FreeRows
from tests.train import fixtures

CONFIG = replace(
    SIZES["tiny"], family="qwen3_moe", vocab_size=97, dim=32, head_dim=8, n_experts=8, top_k=2,
    expert_dim=16,
)  # fmt: skip
IDS = torch.arange(60).view(2, 30) % 97


@pytest.fixture
def decoder() -> Decoder:
    torch.manual_seed(1)
    model = Decoder(CONFIG)
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.2)
    return model


def routed(decoder: Decoder, ids: torch.Tensor = IDS) -> list[torch.Tensor]:
    routing: list[torch.Tensor] = []
    decoder.hidden(decoder.embed(ids), routing=routing)
    return routing


def test_balancing_loss_is_one_when_even_and_worst_when_collapsed():
    even = torch.eye(8).repeat(4, 1) * 1e-3
    assert float(balancing_loss([even, even], 1)) == pytest.approx(1, abs=1e-3)
    collapsed = torch.zeros(32, 8)
    collapsed[:, :2] = 50
    assert balancing_loss([collapsed], 2) == pytest.approx(8 / 2, abs=1e-3)
    mixed = torch.cat((even, collapsed))
    keep = torch.arange(64) < 32
    assert balancing_loss([mixed], 1, keep) == pytest.approx(1, abs=1e-3)
    # Two layers that each let one pair of experts do all are not even because the pairs differ.
    assert balancing_loss([collapsed, collapsed.roll(4, 1)], 2) == pytest.approx(4, abs=1e-3)


def test_balancing_loss_counts_the_choice_that_was_made_under_the_bias():
    logits = torch.zeros(32, 8)
    logits[:, 0] = 5.0
    away = torch.zeros(1, 8)
    away[0, 0] = -50.0
    assert balancing_loss([logits], 1, bias_LE=away) < 0.1 < 5 < balancing_loss([logits], 1)


def test_picks_are_the_choices_of_each_layer():
    routing = [torch.randn(20, 8) for _ in range(3)]
    bias = torch.randn(3, 8)
    found = picks(routing, 2, bias)
    for layer, logits in enumerate(routing):
        chosen = choose(logits, 2, bias[layer])[1]
        assert torch.equal(found[layer], chosen)
    torch.testing.assert_close(
        balancing_loss(routing, 2, bias_LE=bias), balancing_loss(routing, 2, picked=found)
    )
    assert picks([], 2) == []


def test_z_loss_is_the_mean_square_of_the_log_sum_exp():
    a, b = torch.randn(6, 8), torch.randn(6, 8)
    keep = torch.tensor([1, 1, 0, 1, 0, 1], dtype=torch.bool)
    want = (a[keep].logsumexp(-1) ** 2).mean() / 2 + (b[keep].logsumexp(-1) ** 2).mean() / 2
    torch.testing.assert_close(z_loss([a, b], keep), want)
    a[2] = 1000  # padding
    torch.testing.assert_close(z_loss([a, b], keep), want)
    assert z_loss([a], torch.zeros(6, dtype=torch.bool)) == 0


def test_losses_reach_every_router_and_weigh_as_told(decoder):
    config = RouterConfig(balance=0.1, balance_decay=0.5, z=0.2)
    routing = routed(decoder)
    losses = router_losses(routing, config, 2)
    assert list(losses) == ["balance", "z"]
    torch.testing.assert_close(losses["balance"], 0.1 * balancing_loss(routing, 2))
    torch.testing.assert_close(
        router_losses(routing, config, 2, strength=0.25)["balance"],
        0.4 * balancing_loss(routing, 2),
    )
    sum(losses.values()).backward()
    assert all(block.mlp.gate.weight.grad.abs().sum() > 0 for block in decoder.model.layers)
    assert router_losses([], config, 0) == {}
    assert router_losses(routing, RouterConfig(balance=0, balance_decay=0, z=0), 2) == {}


def test_the_bias_evens_the_load_without_a_loss(decoder):
    balancer = Balancer(decoder, RouterConfig(bias_step=0.05))
    before = None
    for _ in range(100):
        balancer.observe(routed(decoder))
        balancer.update()
        last = balancer.load(clear=True)
        before = before or last.by_layer()
    assert max(before) > 1.6
    assert max(last.by_layer()) < 1.25
    assert decoder.model.layers[0].mlp.bias_E.any()


def test_choices_are_counted_by_layer_expert_and_medium_without_padding(decoder):
    balancer = Balancer(decoder, RouterConfig())
    routing = routed(decoder)
    media = torch.arange(60) % 4
    keep = torch.arange(60) < 40
    balancer.observe(routing, keep, media)
    balancer.update()
    counts = balancer.load().counts_LEC
    assert counts.shape == (2, 8, 4)
    for layer, logits in enumerate(routing):
        for medium in range(4):
            chosen = logits[keep & (media == medium)].topk(2).indices.flatten()
            assert counts[layer, :, medium].tolist() == torch.bincount(chosen, minlength=8).tolist()


def test_load_is_largest_over_mean():
    counts = torch.zeros(2, 4, 4, dtype=torch.int64)
    counts[0, :, 0] = torch.tensor([10, 10, 10, 10])
    counts[1, :, 0] = torch.tensor([40, 0, 0, 0])
    counts[1, :, 3] = torch.tensor([0, 20, 10, 10])
    load = Load(counts)
    assert load.by_layer() == [1.0, pytest.approx(2.0)]
    assert load.by_medium() == {"text": [1.0, 4.0], "audio": [1.0, 2.0]}
    assert load.idle() == 0
    assert load.record()["media"]["text"] == {"mean": 2.5, "worst": 4.0}


def test_several_ranks_move_their_bias_as_one(decoder):
    parts, whole = [IDS[:1], IDS[1:]], Balancer(decoder, RouterConfig())
    whole.observe(routed(decoder))
    whole.update()
    want = whole.bias_LE.clone()
    assert want.any()
    seen = []
    for part in parts:
        lone = Balancer(decoder, RouterConfig(), reduce=seen.append)
        lone.observe(routed(decoder, part))
        lone.update()
    total = seen[0] + seen[1]
    pair = Balancer(decoder, RouterConfig(), reduce=lambda tensor: tensor.copy_(total))
    pair.observe(routed(decoder, parts[0]))
    pair.update()
    assert not seen[0].any()  # taken over and cleared
    torch.testing.assert_close(pair.bias_LE, torch.zeros_like(want))


def test_state_resumes_exactly(decoder):
    def run(balancer: Balancer, steps: int) -> None:
        for _ in range(steps):
            balancer.observe(routed(decoder))
            balancer.update()

    straight = Balancer(decoder, RouterConfig())
    run(straight, 6)
    halfway = Balancer(decoder, RouterConfig())
    run(halfway, 3)
    halfway.observe(routed(decoder)[:1])  # killed within a step
    kept = {name: tensor.clone() for name, tensor in halfway.state().items()}
    again = Balancer(decoder, RouterConfig())
    again.load_state(kept)
    assert torch.equal(again.state()["router.fresh"], kept["router.fresh"])
    again.forget()
    run(again, 3)
    for name, tensor in straight.state().items():
        assert torch.equal(tensor, again.state()[name]), name
    with pytest.raises(ValueError, match=r"router\.bias: missing"):
        again.load_state({})
    with pytest.raises(ValueError, match=r"router\.bias: \[1\], this model asks for \[2, 8\]"):
        again.load_state({**kept, "router.bias": torch.zeros(1)})


def test_the_bias_is_gone_before_the_end_and_the_export_is_what_was_trained(decoder):
    config, optim = RouterConfig(bias_step=0.1), OptimConfig(decay=0.4)
    steps = [strength(config, optim, progress / 10) for progress in range(11)]
    assert steps[:7] == [1.0] * 7
    assert steps[7] == pytest.approx(0.5)
    assert steps[8:] == pytest.approx([0, 0, 0])
    assert strength(config, OptimConfig(decay=0.0), 0.89) == 1.0  # no decay: the last tenth
    assert strength(config, OptimConfig(decay=0.0), 0.95) == pytest.approx(0)
    balancer = Balancer(decoder, config)
    for _ in range(20):
        balancer.observe(routed(decoder))
        balancer.update()
    held = balancer.bias_LE.clone()
    full = export_change(decoder, IDS)
    assert max(full.rerouted) > 0.1
    assert full.divergence > 0
    assert full.logits > 0
    balancer.update(0.5)
    assert torch.equal(decoder.model.layers[1].mlp.bias_E, held[1] / 2)
    assert torch.equal(balancer.bias_LE, held)  # stands still while it fades
    balancer.update(0.0)
    gone = export_change(decoder, IDS)
    assert (gone.rerouted, gone.logits) == ([0.0, 0.0], 0.0)
    routing = routed(decoder)
    found = balancer.losses(routing)["balance"]
    torch.testing.assert_close(found, config.balance_decay * balancing_loss(routing, 2))


def test_export_change_leaves_padding_out(decoder):
    Balancer(decoder, RouterConfig())
    decoder.model.layers[0].mlp.bias_E[0] = 3.0
    documents = torch.zeros(2, 30, dtype=torch.int64)
    documents[:, 20:] = -1
    found = export_change(decoder, IDS, documents)
    alone = export_change(decoder, IDS[:, :20])
    torch.testing.assert_close(torch.tensor(found.rerouted), torch.tensor(alone.rerouted))
    assert found.logits == pytest.approx(alone.logits, rel=1e-4)


def test_a_dense_decoder_needs_nothing():
    balancer = Balancer(Decoder(SIZES["tiny"]), RouterConfig())
    balancer.observe([])
    balancer.update()
    assert balancer.losses([]) == {}
    assert balancer.load().by_layer() == []


def test_media_of_ids():
    vocabulary = {"text": 10, "turn_end": 2, "image": [14, 20], "audio": [20, 24]}
    ids = torch.tensor([[0, 2, 9], [10, 13, 14], [19, 20, 23]])
    assert token_media(ids, vocabulary).tolist() == [[0, 1, 0], [1, 1, 2], [2, 3, 3]]


def experts_run(folder: Path, shards: Corpus, steps: int = 6) -> Trainer:
    model = fixtures.decoder(
        fixtures.AUDIO[1], family="qwen3_moe", n_experts=4, top_k=2, expert_dim=32, shared_dim=16
    )
    settings = fixtures.config(
        body="full", rows="free", steps=steps, router=RouterConfig(bias_step=0.05, gone=0.5),
        optim=OptimConfig(decay=0.5), log=("none",),
    )  # fmt: skip
    return Trainer(settings, model, FreeRows(model, torch.float32), shards, folder, quiet=True)


def test_the_loop_balances_resumes_exactly_and_ends_without_a_bias(tmp_path):
    shards = fixtures.corpus(tmp_path / "shards")
    straight = experts_run(tmp_path / "straight", shards)
    whole = straight.run()
    assert not straight.decoder.model.layers[0].mlp.bias_E.any()
    assert straight.balancer.bias_LE.any()
    experts_run(tmp_path / "parts", shards).run(until=2)
    halfway = experts_run(tmp_path / "parts", shards)
    assert halfway.decoder.model.layers[0].mlp.bias_E.any()
    parts = halfway.run()
    for name, tensor in whole.trained.items():
        assert torch.equal(tensor, parts.trained[name]), name
    save(straight.decoder, tmp_path / "stock")
    assert load(tmp_path / "stock").config == straight.decoder.config.folded
    lines = [json.loads(x) for x in (tmp_path / "straight/log.jsonl").read_text().splitlines()]
    assert len(lines[-1]["load"]["layers"]) == 2
    assert "image" in lines[-1]["load"]["media"]


def test_router_losses_of_a_step_are_means_over_its_micro_batches(tmp_path):
    trainer = experts_run(tmp_path / "run", fixtures.corpus(tmp_path / "shards"))
    batches, _ = next(iter(trainer.loader))
    total = float(sum(batch.weights_M.sum() for batch in batches))
    gates = [block.mlp.gate.weight for block in trainer.decoder.model.layers]
    gradients = []
    for weight in (0.0, 1.0):
        trainer.balancer.config = RouterConfig(balance=weight, balance_decay=weight, z=0.0)
        for gate in gates:
            gate.grad = None
        for batch in batches:
            trainer.way.run(batch, trainer.scoring.plan(batch), total)
        gradients.append([gate.grad.clone() for gate in gates])
    routed_twice: list[torch.Tensor] = []
    expected = [torch.zeros_like(gate) for gate in gates]
    for batch in batches:
        routed_twice.clear()
        model = trainer.decoder
        model.hidden(
            model.embed(batch.ids_BT), batch.positions_BT, batch.documents_BT, routing=routed_twice
        )
        loss = balancing_loss(routed_twice, 2, batch.documents_BT.flatten() >= 0)
        share = float(batch.weights_M.sum()) / total
        for sum_, grad in zip(expected, torch.autograd.grad(loss * share, gates), strict=True):
            sum_ += grad
    for off, on, want in zip(*gradients, expected, strict=True):
        torch.testing.assert_close(on - off, want, rtol=1e-3, atol=1e-5)
