"""Continuations scored many at once against the oracle, one row at a time, whatever is shared and cut."""

import random

import numpy as np
import pytest
import torch

from m27.infer.cache import Blocks
from m27.infer.continuations import continuations
from m27.infer.likelihood import log_likelihoods
from m27.infer.torch_runner import TorchRunner
from tests import tiny


@pytest.fixture(scope="module")
def runner():
    torch.set_num_threads(1)
    return TorchRunner(tiny.decoder(), 300)


def rows(seed):
    """Some alone, some with a long beginning in common, some that differ in the last id alone."""
    rng = random.Random(seed)

    def ids(n):
        return [rng.randrange(3, 200) for _ in range(n)]

    out = [(ids(rng.randint(2, 90)), 1) for _ in range(6)]
    for _ in range(3):
        beginning = ids(rng.randint(1, 70))
        out += [(beginning + ids(n), n) for n in (1, 1, 1, 5, 20)]
    out += [(row, len(row) - 1) for row in (ids(80), ids(2))]
    rng.shuffle(out)
    return out


@pytest.mark.parametrize("tokens", [512, 40, 3])
@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_one_row_at_a_time(runner, seed, tokens):
    asked = rows(seed)
    blocks = Blocks(runner.blocks, runner.block_size)
    found = {one.place: one for one in continuations(runner, asked, blocks, tokens)}
    assert sorted(found) == list(range(len(asked)))
    assert blocks.used == 0
    blocks.check()
    want = log_likelihoods(runner, [ids for ids, _ in asked])
    for place, ((_, count), want_T) in enumerate(zip(asked, want, strict=True)):
        assert found[place].logprob == pytest.approx(want_T[len(want_T) - count :].sum(), abs=1e-4)


def test_greedy_is_what_the_model_would_have_said(runner):
    ids = [5, 9, 77]
    model = tiny.decoder()
    for _ in range(4):
        with torch.inference_mode():
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    other = [*ids[:-1], (ids[-1] + 1) % 200]
    answers = {one.place: one.greedy for one in continuations(runner, [(ids, 4), (other, 4), (ids, 1)])}
    assert answers == {0: True, 1: False, 2: True}


def test_a_beginning_in_common_is_computed_once(runner):
    class Counting:
        def __init__(self):
            self.config, self.block_size, self.blocks, self.tokens = runner.config, runner.block_size, runner.blocks, 0

        def run(self, batch):
            self.tokens += len(batch.ids)
            return runner.run(batch)

    beginning = list(np.random.default_rng(0).integers(3, 200, 160))
    beginning = [int(id) for id in beginning]
    counting = Counting()
    asked = [([*beginning, 10 + n, 20 + n], 2) for n in range(8)]
    assert len(list(continuations(counting, asked))) == 8
    assert counting.tokens <= 161 + 7 * (runner.block_size + 1)


def test_blocks_are_let_go_and_what_cannot_be_scored_is_said(runner):
    blocks = Blocks(4, runner.block_size)
    with pytest.raises(IndexError):
        list(continuations(runner, [(list(range(3, 200)), 1)], blocks))
    assert blocks.used == 0
    with pytest.raises(ValueError, match="row 1: 2 of 2 ids"):
        list(continuations(runner, [([3, 4], 1), ([3, 4], 2)]))
    few = Blocks(12, runner.block_size)  # as many rows at once as fit
    assert len(list(continuations(runner, rows(7), few))) == len(rows(7))
