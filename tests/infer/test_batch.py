"""Batched answers equal the naive ones, row by row, whatever the lengths and the constraints."""

import pytest
import torch

from m27.infer.batch import Ranges, generate_batch, greedy, log_likelihoods
from m27.model.config import Config
from m27.model.decoder import Decoder
from m27.model.generate import generate

V = 97
CONFIG = Config(
    family="llama", vocab_size=V, dim=32, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=8,
    ffn_dim=64, rope_theta=10000.0, norm_eps=1e-5, tied=True, max_len=64,
)  # fmt: skip
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15, 16, 17, 18], [19, 20], [21, 22, 23, 24]]


class Countdown:
    """Allows one of two ranges in turn and is done after `n` ids: a stand-in for a grammar."""

    def __init__(self, n: int):
        self.left = n

    def allowed(self):
        return [(0, 40)] if self.left % 2 else [(40, 50), (60, V)]

    def advance(self, id):
        assert any(start <= id < end for start, end in self.allowed())
        self.left -= 1

    def done(self):
        return self.left == 0

    def medium(self):
        return "text"


@pytest.fixture
def model():
    model = Decoder(CONFIG).eval()
    with torch.no_grad():  # wide weights, so that the answers vary
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    return model


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_equals_generate_row_by_row(model, batch):
    naive = [list(generate(model, p, choose=greedy, max_tokens=12, stop_ids={3})) for p in PROMPTS]
    got = generate_batch(model, PROMPTS, stop_ids={3}, max_tokens=12, batch=batch)
    assert got == naive
    assert len({tuple(answer) for answer in naive}) > 1


def test_rows_that_end_early_do_not_disturb_the_others(model):
    free = [list(generate(model, p, choose=greedy, max_tokens=12)) for p in PROMPTS]
    stops = {free[0][1], free[3][4]}
    until = {"max_tokens": 12, "stop_ids": stops}
    naive = [list(generate(model, p, choose=greedy, **until)) for p in PROMPTS]
    assert len({len(answer) for answer in naive}) > 1
    assert generate_batch(model, PROMPTS, stop_ids=stops, max_tokens=12, batch=5) == naive


def test_constraints_and_samplers_are_each_rows_own(model):
    def draw(row):
        generator = torch.Generator().manual_seed(row)
        return lambda logits, ids: int(logits.softmax(-1).multinomial(1, generator=generator))

    lengths = [3, 8, 0, 5, 6]
    naive = [
        list(generate(model, p, choose=draw(i), constraint=Countdown(lengths[i]), max_tokens=7))
        for i, p in enumerate(PROMPTS)
    ]
    got = generate_batch(
        model, PROMPTS, stop_ids=(), max_tokens=7, batch=3, choose=[draw(i) for i in range(5)],
        constraints=[Countdown(n) for n in lengths],
    )  # fmt: skip
    assert got == naive
    assert [len(answer) for answer in got] == [3, 7, 0, 5, 6]


def test_ranges_confine_the_answer(model):
    rows = [Ranges([(30, 33)]) for _ in PROMPTS]
    got = generate_batch(model, PROMPTS, stop_ids={31}, max_tokens=5, constraints=rows)
    assert all(30 <= id < 33 for answer in got for id in answer)


def test_an_empty_prompt_is_named():
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        generate_batch(Decoder(CONFIG), [[1], []], stop_ids=(), max_tokens=1)


@pytest.mark.parametrize("size", [None, 50])
def test_log_likelihoods_equal_the_full_softmax(model, size):
    got = log_likelihoods(model, [*PROMPTS, [4]], batch=3, chunk=2, size=size)
    for ids, scores in zip([*PROMPTS, [4]], got, strict=True):
        with torch.no_grad():
            full = model(torch.tensor([ids]))[0, :, :size].log_softmax(-1)
        expected = [float(full[i, id]) for i, id in enumerate(ids[1:])]
        assert len(scores) == len(ids) - 1
        assert torch.allclose(scores, torch.tensor(expected), atol=1e-5)
