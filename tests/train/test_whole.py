"""whole.py and the rows that are not maps: every weight trained as a plain language model's, or no row at all."""

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F

from m27.train.rows import FreeRows
from m27.train.scoring import Plan
from m27.train.settings import SettingError
from m27.train.whole import WholePass
from tests.train import fixtures


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return fixtures.corpus(tmp_path_factory.mktemp("shards"))


def free(**changes):
    return fixtures.config(body="full", rows="free", **changes)


def batch_of(trainer) -> tuple:
    batches, _ = next(iter(trainer.loader))
    return batches[0], trainer.scoring.plan(batches[0])


@pytest.mark.parametrize(
    "changes", [{}, {"tied": False}, {"family": "qwen3"},
                {"family": "qwen3_moe", "n_experts": 4, "top_k": 2, "expert_dim": 32}]
)  # fmt: skip
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_loss_and_every_gradient_equal_those_of_full_logits(shards, tmp_path, changes, share):
    settings = free()
    settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, full_share=share))
    trainer = fixtures.trainer(tmp_path, shards, settings)
    batch, plan = batch_of(trainer)
    model = fixtures.decoder(fixtures.AUDIO[1], **changes).requires_grad_(True)
    way = WholePass(model, FreeRows(model, torch.float32))
    losses = way.run(batch, plan, 7.0).targets_M
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    logits = model(batch.ids_BT, batch.positions_BT, batch.documents_BT).flatten(0, 1)[batch.places_M]
    masked = torch.full_like(logits, float("-inf"))
    for group in plan.groups:
        for begin, end in group.spans or ((0, logits.shape[1]),):
            masked[group.index_m, begin:end] = 0
    expected = F.cross_entropy(logits + masked, batch.targets_M, reduction="none")
    (expected * batch.weights_M / 7.0).sum().backward()
    torch.testing.assert_close(losses, expected.detach(), rtol=1e-5, atol=1e-5)
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-4, atol=1e-5)


def test_z_loss_reaches_every_pass(shards, tmp_path):
    """Its gradients equal those of full logits in the whole pass, and the others agree with one another."""
    trainer = fixtures.trainer(tmp_path / "whole", shards, free(z_loss=0.05))
    batch, plan = batch_of(trainer)
    model = fixtures.decoder(fixtures.AUDIO[1]).requires_grad_(True)
    WholePass(model, FreeRows(model, torch.float32)).run(batch, plan, 7.0)
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    logits = model(batch.ids_BT, batch.positions_BT, batch.documents_BT).flatten(0, 1)[batch.places_M]
    losses = F.cross_entropy(logits, batch.targets_M, reduction="none") + 0.05 * logits.logsumexp(1) ** 2
    (losses * batch.weights_M / 7.0).sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-4, atol=1e-5)
    grads = {}
    for path in ("fused", "plain", "merged"):
        for z_loss in (0.0, 0.05):
            config = fixtures.config(path=path, z_loss=z_loss)
            other = fixtures.trainer(tmp_path / f"{path}{z_loss}", shards, config)
            batch, plan = batch_of(other)
            other.way.refresh()
            other.way.run(batch, plan, 7.0)
            grads[path, z_loss] = other.rows.grad_VD.clone()
    for path in ("fused", "plain", "merged"):
        assert (grads[path, 0.05] - grads["fused", 0.05]).norm() < 1e-4 * grads["fused", 0.05].norm()
        assert (grads[path, 0.05] - grads[path, 0.0]).norm() > 0.05 * grads[path, 0.0].norm()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # the compiler has its own
def test_compiled_equals_eager(shards, tmp_path):
    found = {}
    for compiled in (False, True):
        trainer = fixtures.trainer(tmp_path / str(compiled), shards, free(path="whole", compile=compiled))
        batch, plan = batch_of(trainer)
        for parameter in trainer.parameters.values():
            parameter.requires_grad_(True)
        losses = trainer.way.run(batch, plan, 7.0).targets_M
        layer = trainer.decoder.model.layers[0]
        assert (layer.mlp._compiled_call_impl is not None) == compiled
        found[compiled] = {"losses": losses} | {n: p.grad for n, p in trainer.parameters.items()}
    assert found[True].keys() == found[False].keys()
    for name, tensor in found[True].items():
        torch.testing.assert_close(tensor, found[False][name], rtol=1e-4, atol=1e-5)


def test_bfloat16_products_leave_masters_in_float32_and_learn_alike(shards, tmp_path):
    wide = fixtures.trainer(tmp_path / "wide", shards, free(steps=6))
    narrow = fixtures.trainer(tmp_path / "narrow", shards, free(steps=6))
    narrow.rows = FreeRows(narrow.decoder, torch.bfloat16)
    kept = [trainer.run() for trainer in (wide, narrow)]
    assert all(p.dtype == torch.float32 for p in narrow.parameters.values())
    state = narrow.optimiser.state()
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / run / "log.jsonl").read_text().splitlines()]
        for run in ("wide", "narrow")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
    assert losses[1] != losses[0]
    name = "model.layers.0.mlp.down_proj.weight"
    moved = [result.trained[name] - fixtures.decoder(fixtures.AUDIO[1]).state_dict()[name] for result in kept]
    # A step of the masters below bfloat16's spacing is kept: nothing has been rounded to it.
    assert not torch.equal(kept[1].trained[name], kept[1].trained[name].bfloat16().float())
    assert float(F.cosine_similarity(moved[0].flatten(), moved[1].flatten(), dim=0)) > 0.8


def test_a_free_run_learns_and_resumes_bit_for_bit(shards, tmp_path):
    whole = fixtures.trainer(tmp_path / "whole", shards, free()).run()
    fixtures.trainer(tmp_path / "parts", shards, free()).run(until=2)
    again = fixtures.trainer(tmp_path / "parts", shards, free()).run()
    begun = fixtures.decoder(fixtures.AUDIO[1]).state_dict()
    assert again.trained.keys() == whole.trained.keys() == begun.keys()
    for name, tensor in whole.trained.items():
        assert torch.equal(tensor, again.trained[name])
        assert not torch.equal(tensor, begun[name])


def test_frozen_rows_stay_and_every_way_gives_adapters_the_same_gradients(shards, tmp_path):
    found = {}
    for path in ("fused", "plain", "merged"):
        trainer = fixtures.trainer(tmp_path / path, shards, fixtures.config(rows="frozen", path=path))
        for number, (name, parameter) in enumerate(trainer.parameters.items()):
            assert ".lora_" in name
            torch.manual_seed(number)
            parameter.data.normal_(std=0.1)
        batch, plan = batch_of(trainer)
        way = trainer.way
        way.refresh()
        way.run(batch, plan, 7.0)
        way.collect()
        found[path] = {name: p.grad.clone() for name, p in trainer.parameters.items()}
    for path in ("plain", "merged"):
        for name, gradient in found[path].items():
            other = found["fused"][name]
            assert (gradient - other).norm() < 1e-4 * other.norm()


def test_a_run_with_frozen_rows_trains_adapters_alone(shards, tmp_path):
    trainer = fixtures.trainer(tmp_path, shards, fixtures.config(rows="frozen"))
    begun = trainer.rows.table_VD.clone()
    result = trainer.run()
    assert all(".lora_" in name for name in result.trained)
    assert any(tensor.any() for name, tensor in result.trained.items() if "lora_B" in name)
    assert torch.equal(trainer.rows.table_VD, begun)


@pytest.mark.parametrize(
    ("changes", "word"),
    [({"rows": "free"}, "body=full"), ({"rows": "free", "body": "full", "kl": True}, "kl_tasks")],
)
def test_what_cannot_be_is_one_line(shards, tmp_path, changes, word):
    kl = changes.pop("kl", False)
    settings = fixtures.config(**changes)
    if kl:
        data = dataclasses.replace(settings.data, kl_tasks={"text": 1.0})
        settings = dataclasses.replace(settings, data=data)
    with pytest.raises(SettingError, match=word):
        fixtures.trainer(tmp_path, shards, settings)


def test_branches_are_refused(shards, tmp_path):
    trainer = fixtures.trainer(tmp_path, shards, free(path="whole"))
    batch, _ = batch_of(trainer)
    forked = dataclasses.replace(batch, branches_BT=torch.ones_like(batch.ids_BT))
    with pytest.raises(ValueError, match="branches"):
        trainer.way.run(forked, Plan(()), 1.0)
