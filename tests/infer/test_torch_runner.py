"""torch_runner.py and graphs.py: steps give the decoder's own logits, however cut."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from m27.infer.graphs import decodes, pad, shape_of
from m27.infer.likelihood import log_likelihoods
from m27.infer.runner import Batch, Floats, RunnerError, Wanted
from m27.infer.torch_runner import TorchRunner, attend
from m27.model.config import SIZES, Config
from m27.model.decoder import Decoder
from tests.infer import mixed

LLAMA = replace(SIZES["tiny"], vocab_size=90)
FAMILIES = {
    "llama": LLAMA,
    "untied": replace(LLAMA, tied=False),
    "qwen3": replace(LLAMA, family="qwen3"),
    "moe": replace(
        LLAMA, family="qwen3_moe", n_experts=4, top_k=2, expert_dim=32, ffn_dim=0, norm_topk=True
    ),
}


def model(config: Config) -> Decoder:
    torch.manual_seed(0)
    made = Decoder(config).eval()
    for parameter in made.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return made


def batch(
    rows: list[tuple[list[int], int, list[int]]],
    wanted: list[Wanted],
    size: int,
    adapters: list[int] | None = None,
) -> Batch:
    """A step of rows (ids, tokens before them, blocks)."""
    ids, positions, slots, starts = [], [], [], [0]
    longest = max(len(table) for _, _, table in rows)
    for new, held, table in rows:
        for place, id in enumerate(new, held):
            ids.append(id)
            positions.append(place)
            slots.append(table[place // size] * size + place % size)
        starts.append(len(ids))
    tables = [table + [-1] * (longest - len(table)) for _, _, table in rows]
    arrays = (ids, positions, slots, starts, tables, adapters or [-1] * len(rows))
    return Batch(*(np.array(array, dtype=np.int32) for array in arrays), wanted)


def expected(made: Decoder, ids: list[int]) -> Floats:
    with torch.inference_mode():
        return made(torch.tensor([ids]))[0].numpy()


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_a_mixed_step_gives_the_decoders_logits(config: Config) -> None:
    made = model(config)
    runner = TorchRunner(made, blocks=12, block_size=4)
    one, two, three = list(range(1, 12)), list(range(20, 27)), list(range(40, 46))
    tables = ([3, 1, 8], [0, 2], [11, 5])
    runner.run(batch([(one[:6], 0, tables[0]), (two[:6], 0, tables[1])], [], 4))
    everything, some = ((0, 90),), ((2, 5), (80, 90))
    got = runner.run(
        batch(
            [(one[6:], 6, tables[0]), (two[6:], 6, tables[1]), (three, 0, tables[2])],
            [Wanted(everything, [4, 5]), Wanted(some, [11, 6])], 4,
        )
    )  # fmt: skip
    keep = [*range(2, 5), *range(80, 90)]
    assert np.allclose(got[0][0], expected(made, one)[-1], atol=1e-4)
    assert np.allclose(got[0][1], expected(made, two)[-1], atol=1e-4)
    assert np.allclose(got[1][0], expected(made, three)[-1, keep], atol=1e-4)
    assert np.allclose(got[1][1], expected(made, three)[0, keep], atol=1e-4)
    # And on with one token each, of unequal length.
    step = batch(
        [([7], 11, tables[0]), ([8], 7, tables[1])], [Wanted(everything, [0, 1])], 4
    )  # fmt: skip
    assert np.allclose(runner.run(step)[0][0], expected(made, [*one, 7])[-1], atol=1e-4)
    assert np.allclose(runner.run(step)[0][1], expected(made, [*two, 8])[-1], atol=1e-4)


def test_what_cannot_be_run_is_told_and_the_runner_stays_usable() -> None:
    runner = TorchRunner(model(LLAMA), blocks=4)
    for wrong in (
        batch([([90], 0, [0])], [], 16),
        batch([([1], 0, [0])], [], 16, adapters=[3]),
        batch([([1], 0, [0])], [Wanted(((0, 91),), [0])], 16),
    ):
        with pytest.raises(RunnerError):
            runner.run(wrong)
    assert runner.run(batch([([1], 0, [0])], [Wanted(((0, 90),), [0])], 16))[0].shape == (1, 90)


def test_numbers_of_adapters_are_given_again() -> None:
    runner = TorchRunner(model(LLAMA), blocks=4)
    some = mixed.adapter(LLAMA, "x", 1)
    assert [runner.add_adapter(some) for _ in range(3)] == [0, 1, 2]
    runner.remove_adapter(1)
    assert runner.add_adapter(some) == 1


def test_a_narrow_cache_is_close() -> None:
    made = model(LLAMA)
    runner = TorchRunner(made, blocks=4, cache_dtype=torch.float16)
    got = runner.run(batch([([1, 2, 3], 0, [2])], [Wanted(((0, 90),), [2])], 16))[0][0]
    assert np.allclose(got, expected(made, [1, 2, 3])[-1], atol=0.05)
    assert runner.facts()["cache"] == "float16"
    assert runner.facts()["cache_bytes"] == 2 * 2 * (4 * 16 + 1) * 2 * 16 * 2


@pytest.mark.parametrize("size", [None, 50])
def test_log_likelihoods_equal_the_full_softmax(size: int | None) -> None:
    made = model(LLAMA)
    rows = [[4, 8, 15, 16, 23, 42], [4], list(range(40))]
    found = log_likelihoods(TorchRunner(made, blocks=3), rows, chunk=7, size=size)
    for ids, scores in zip(rows, found, strict=True):
        full = torch.from_numpy(expected(made, ids)[:, :size]).log_softmax(-1)
        wanted = [float(full[place, id]) for place, id in enumerate(ids[1:])]
        assert np.allclose(scores, wanted, atol=1e-5)


@pytest.mark.parametrize("ahead", [0, 3])
def test_a_padded_decoding_step_is_the_same_step(ahead: int) -> None:
    """The graphs' arithmetic, run without a graph; the second sequence tries ids ahead."""
    made = model(LLAMA)
    runner = TorchRunner(made, blocks=12, block_size=4)
    tables = ([3, 1, 8], [0, 2, 5], [7, 6, 9])
    runner.run(batch([(list(range(1, 8 + n)), 0, table) for n, table in enumerate(tables)], [], 4))
    step = batch(
        [([50 + n, *range(ahead * (n == 1))], 7 + n, table) for n, table in enumerate(tables)],
        [Wanted(((0, 90),), range(3 + ahead))], 4,
    )  # fmt: skip
    assert decodes(step)
    rows = 8 if ahead else 4
    assert shape_of(step) == (rows, 256)
    assert shape_of(batch([([1], 256, [0] * 65)], [], 4)) == (1, 512)
    plain = runner.run(step)[0]
    padded = pad(step, rows, 256, 4, spare=12 * 4)
    with torch.inference_mode():
        h_SD = runner.hidden(runner.step_of(padded))
        got = made.logits(h_SD)[: 3 + ahead].numpy()
    assert np.allclose(plain, got, atol=1e-5)
    assert not decodes(batch([(list(range(17)), 0, list(range(5)))], [], 4))
    assert not decodes(batch([([1], 0, [0])], [], 4, adapters=[0]))


@pytest.mark.gpu
def test_graphs_equal_plain_steps_on_the_device() -> None:
    made = model(LLAMA).to("cuda")
    runner = TorchRunner(made, blocks=12)
    plain = TorchRunner(made, blocks=12)
    plain._graphs = None
    step = batch([([1], 0, [4]), ([2], 0, [5])], [Wanted(((0, 90),), [0, 1])], 16)
    for _ in range(3):
        assert np.allclose(runner.run(step)[0], plain.run(step)[0], atol=1e-4)
    assert torch.equal(runner.keys[:, :-1], plain.keys[:, :-1])


def test_attention_of_several_rows_is_that_of_each() -> None:
    generator = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(20, 2, 8, generator=generator) for _ in range(2))
    q_TNH = torch.randn(2, 4, 8, generator=generator)
    from m27.infer.torch_runner import Reading

    slots = torch.tensor([[1, 5, 9], [4, 2, 0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])[:, None, None]
    both = attend(q_TNH, keys, values, Reading(torch.arange(2), slots, mask))
    second = attend(q_TNH[1:], keys, values, Reading(torch.arange(1), slots[1:, :2], None))
    assert torch.allclose(both[1:], second, atol=1e-6)
