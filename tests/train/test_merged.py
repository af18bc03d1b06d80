"""The pass for a GPU, here in float32 on the CPU, against autograd and against the hand-written pass."""

import dataclasses

import pytest
import torch

from m27.data.loader import Batch
from m27.train import feed, ragged
from m27.train.lora import Adapters, LoraConfig
from m27.train.passes import FusedPass, MergedPass, PlainPass, choose
from m27.train.rows import Rows
from tests.train import fixtures


def random_adapters(decoder):
    adapters = Adapters(decoder, LoraConfig(rank=4, alpha=8))
    torch.manual_seed(1)
    for name, parameter in adapters.parameters().items():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(parameter, std=0.1)
    return adapters


def gradients(kind, batch, plan, shards, refreshed=1):
    """Losses and gradients of one batch by a pass: of the adapters, and of the rows' buffer."""
    decoder = fixtures.decoder()
    adapters = random_adapters(decoder)
    rows = Rows(
        decoder.model.embed_tokens.weight, fixtures.CONTROLS, (4, 4, 4), (4, 4, 2), torch.float32
    )
    way = choose(kind, decoder, adapters, rows, torch.float32, False)
    for _ in range(refreshed):
        way.refresh()
    losses = way.run(batch, plan, float(batch.weights_M.sum()), way.prepare(batch))
    way.collect()
    named = {name: p.grad for name, p in adapters.parameters().items()}
    return type(way), losses, named, rows.grad_VD


@pytest.fixture
def shards(tmp_path):
    return fixtures.corpus(tmp_path / "shards")


def a_batch(shards, **data):
    config = fixtures.config()
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, **data))
    batches = feed.loader(feed.packer(shards, config, None), config)
    (batch, *_), _ = next(iter(batches))
    return batch, feed.scoring(shards, config).plan(batch)


def alike(one, other):
    torch.testing.assert_close(one[1].targets_M, other[1].targets_M, rtol=1e-4, atol=1e-4)
    for name, gradient in one[2].items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(other[2][name], gradient, rtol=1e-3, atol=2e-5 * scale)
    torch.testing.assert_close(one[3], other[3], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kl", [{}, {"text": 0.7}])
def test_merged_equals_plain(shards, kl):
    batch, plan = a_batch(shards, kl_tasks=kl, full_share=0.3)
    plain = gradients("plain", batch, plan, shards)
    merged = gradients("merged", batch, plan, shards)
    assert (plain[0], merged[0]) == (PlainPass, MergedPass)
    alike(plain, merged)
    if kl and plan.teacher is not None:
        torch.testing.assert_close(plain[1].apart_m, merged[1].apart_m, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["merged", "fused", "plain"])
def test_adapters_are_taken_in_once_however_often_they_are_refreshed(shards, kind):
    batch, plan = a_batch(shards)
    alike(gradients(kind, batch, plan, shards), gradients(kind, batch, plan, shards, refreshed=5))


def branched(batch):
    """The batch with its longest documents split into a beginning and two branches."""
    branches = torch.zeros_like(batch.ids_BT)
    positions = batch.positions_BT.clone()
    for row, documents in enumerate(batch.documents_BT):
        for number in documents.unique():
            where = (documents == number).nonzero().flatten()
            if number >= 0 and len(where) > 40:
                first, second = where[20:30], where[30:]
                branches[row, first], branches[row, second] = 1, 2
                positions[row, second] = 20 + torch.arange(len(second))
    # A branch may not begin with a target, which the token before it would predict.
    flat = branches.flatten()
    keep = flat[batch.places_M] == flat[(batch.places_M + 1).clamp_max(len(flat) - 1)]
    held = {name: getattr(batch, name)[keep] for name in ("places_M", "targets_M", "weights_M",
                                                            "media_M", "tasks_M")}  # fmt: skip
    return Batch(batch.ids_BT, batch.documents_BT, positions, **held, branches_BT=branches)


def test_branches_equal_the_hand_written_pass(shards):
    batch, _ = a_batch(shards)
    batch = branched(batch)
    assert int(batch.branches_BT.max()) == 2
    plan = feed.scoring(shards, fixtures.config()).plan(batch)
    fused = gradients("fused", batch, plan, shards)
    merged = gradients("merged", batch, plan, shards)
    assert (fused[0], merged[0]) == (FusedPass, MergedPass)
    alike(fused, merged)


def test_the_runs_of_branches():
    documents = torch.tensor([[0, 0, 0, 0, 0, 1, 1], [1, 1, 1, 2, 2, -1, -1]])
    branches = torch.tensor([[0, 0, 1, 1, 2, 0, 0], [0, 1, 1, 1, 1, 0, 0]])
    found = ragged.plan(documents, branches)
    assert found.query_edges.tolist() == [0, 2, 4, 5, 7, 8, 10, 12, 14]
    assert found.key_edges.tolist() == [0, 2, 6, 9, 11, 12, 15, 17, 19]
    keys = [0, 1, 0, 1, 2, 3, 0, 1, 4, 5, 6, 7, 7, 8, 9, 10, 11, 12, 13]
    assert found.keys_S.tolist() == keys
    assert (found.longest_query, found.longest_key) == (2, 4)


def test_no_branches_need_no_copies_of_keys():
    found = ragged.plan(torch.tensor([[0, 0, 1], [1, 1, -1]]))
    assert found.query_edges.tolist() == [0, 2, 3, 5, 6]
    assert found.keys_S is None and found.key_edges is found.query_edges


def test_a_process_makes_the_same_batches(shards):
    config = fixtures.config()
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, kl_tasks={"text": 0.5}, full_share=0.2)
    )
    mine = feed.loader(feed.packer(shards, config, None), config)
    theirs = feed.ahead(feed.Source(shards.folders, config, None), runs=True)
    for (step, state), (planned, their_state) in zip(mine, theirs, strict=False):
        assert state == their_state
        for batch, (same, plan, where) in zip(step, planned, strict=True):
            for name, tensor in vars(batch).items():
                other = getattr(same, name)
                assert tensor is other is None or torch.equal(tensor, other), name
            own = feed.scoring(shards, config).plan(batch)
            assert [group.spans for group in plan.groups] == [group.spans for group in own.groups]
            for group, other in zip(own.groups, plan.groups, strict=True):
                assert torch.equal(group.index_m, other.index_m)
            assert (own.teacher is None) == (plan.teacher is None)
            if own.teacher is not None:
                assert torch.equal(own.teacher.ids_n, plan.teacher.ids_n)
            assert torch.equal(where.query_edges, ragged.plan(batch.documents_BT).query_edges)
        if state["rows"] >= 12:
            break
    theirs.close()


def test_an_error_of_the_process_arrives(shards):
    config = dataclasses.replace(
        fixtures.config(), data=dataclasses.replace(fixtures.config().data, tasks={"drow": 1})
    )
    with pytest.raises(RuntimeError, match="drow"):
        next(feed.ahead(feed.Source(shards.folders, config, None), runs=False))
