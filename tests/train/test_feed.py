"""feed.py: a step's rows shared out among ranks, so that no rank count changes what a step trains on."""

import dataclasses

import pytest
import torch

from m27.train import feed
from m27.train.settings import SettingError
from tests.train import fixtures


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return fixtures.corpus(tmp_path_factory.mktemp("shards"))


def settings(**changes):
    given = fixtures.config()
    return dataclasses.replace(given, data=dataclasses.replace(given.data, **changes))


def rows_of(shards, config, rank, world, state=None, steps=2):
    """(ids of each step's rows on that rank, the state after them)."""
    packer = feed.packer(shards, config, state)
    loader, out = iter(feed.loader(packer, config, rank, world)), []
    for _ in range(steps):
        batches, state = next(loader)
        out.append(torch.cat([batch.ids_BT for batch in batches]))
    return out, state


def test_shares_are_even_in_order_and_all():
    step = list(range(12))
    for world in (1, 2, 3, 4, 6, 12):
        parts = [feed.share_of(step, rank, world) for rank in range(world)]
        assert [row for part in parts for row in part] == step
        assert {len(part) for part in parts} == {12 // world}
    with pytest.raises(SettingError, match="12 rows cannot be shared out among 5 ranks"):
        feed.share_of(step, 0, 5)


@pytest.mark.parametrize("world", [2, 4])
def test_the_rows_of_a_step_are_the_same_whatever_the_world(shards, world):
    config = settings(step_rows=8, rows=3, accumulate=7)
    whole, after = rows_of(shards, config, 0, 1)
    assert [len(step) for step in whole] == [8, 8]
    parts = [rows_of(shards, config, rank, world) for rank in range(world)]
    for number, step in enumerate(whole):
        assert torch.equal(torch.cat([rows[number] for rows, _ in parts]), step)
    assert all(state == after for _, state in parts)


def test_a_run_goes_on_in_another_world_with_the_rows_that_follow(shards):
    config = settings(step_rows=8, rows=2)
    whole, _ = rows_of(shards, config, 0, 1, steps=3)
    _, state = rows_of(shards, config, 0, 2, steps=1)
    later = [rows_of(shards, config, rank, 4, state)[0] for rank in range(4)]
    for number in (0, 1):
        assert torch.equal(torch.cat([rows[number] for rows in later]), whole[number + 1])


def test_without_it_a_step_is_rows_times_accumulate(shards):
    steps, _ = rows_of(shards, settings(rows=2, accumulate=3), 0, 1)
    assert [len(step) for step in steps] == [6, 6]


def test_what_a_target_is_scored_among_does_not_hang_on_the_micro_batch(shards):
    shares = []
    for rows in (1, 4):
        config = settings(step_rows=4, rows=rows, full_share=0.3)
        scores, full = feed.scoring(shards, config), []
        batches, _ = next(iter(feed.loader(feed.packer(shards, config, None), config)))
        for batch in batches:
            mask = torch.zeros(len(batch.targets_M), dtype=torch.bool)
            for group in scores.plan(batch).groups:
                if group.spans is None:
                    mask[group.index_m] = True
            full.append(mask)
        shares.append(torch.cat(full))
    assert torch.equal(*shares)
    assert 0.2 < shares[0].float().mean() < 0.4
