"""The C++ step against the naive decoder, and against itself: in chunks, in company, by two threads."""

import os
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from m27.infer.cpu import CpuRunner
from m27.infer.cpu.binding import CACHES
from m27.infer.runner import Adapter, Batch, RunnerError, Wanted
from m27.model.config import SIZES
from tests.infer.cpu.steps import (
    CONFIGS,
    PRECISIONS,
    ids,
    model,
    naive,
    step,
    whole,
)

pytestmark = pytest.mark.usefixtures("library")


def load(name, precision="float32", cache="auto", threads=2, blocks=40):
    return CpuRunner.load(model(name), precision=precision, cache=cache, blocks=blocks, threads=threads)


@pytest.mark.parametrize("name", CONFIGS)
def test_float32_equals_the_naive_decoder(name):
    runner, row = load(name), ids(CONFIGS[name], 300)
    got, want = whole(runner, row), naive(model(name), row)
    assert np.abs(got - want).max() < 1e-4 * np.abs(want).max()
    assert (got.argmax(-1) == want.argmax(-1)).all()


@pytest.mark.parametrize(
    ("precision", "cache", "off"),
    [("float32", "float16", 0.005), ("float32", "bfloat16", 0.03), ("float32", "int8", 0.05),
     ("bfloat16", "float16", 0.03), ("int8", "float16", 0.1), ("int4", "float16", 0.6)],
)  # fmt: skip
def test_narrow_weights_and_caches_stay_near(precision, cache, off):
    row = ids(CONFIGS["llama"], 150)
    got, want = whole(load("llama", precision, cache), row), naive(model("llama"), row)
    assert np.abs(got - want).max() < off * np.abs(want).max()


@pytest.mark.parametrize("cache", CACHES)
def test_what_a_block_held_before_does_not_matter(cache):
    """A broken adapter leaves numbers that are none; whoever has the block next never meets them."""
    row, runner = ids(CONFIGS["llama"], 16), load("llama", "float32", cache)
    broken = adapter("llama", 1, float("nan"))
    number = runner.add_adapter(broken)
    runner.run(step([row], [0], [[3]], 200, [number]))
    for length in (1, 5, 8, 13):
        batch = step([row[:length]], [0], [[3]], 200)
        assert np.array_equal(runner.run(batch)[0], load("llama", "float32", cache).run(batch)[0])
        runner.run(step([row], [0], [[3]], 200, [number]))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("precision", "cache"), PRECISIONS)
def test_prompt_chunks_and_single_tokens_are_equal_to_the_last_bit(name, precision, cache):
    runner, row = load(name, precision, cache), ids(CONFIGS[name], 150)
    once = whole(runner, row)
    assert np.array_equal(whole(runner, row, [1] * 150), once)
    assert np.array_equal(whole(runner, row, [7, 1, 64, 2, 76], shuffle=5), once)


@pytest.mark.parametrize(("precision", "cache"), PRECISIONS)
def test_company_and_threads_change_nothing(precision, cache):
    rows = [ids(CONFIGS["qwen3"], n, n) for n in (5, 140, 1, 33)]
    tables = [[30], list(range(9)), [20], [17, 12, 14]]
    batch = step(rows, [0, 0, 0, 0], tables, 197)
    two, one = load("qwen3", precision, cache), load("qwen3", precision, cache, threads=1)
    together = two.run(batch)[0]
    assert np.array_equal(one.run(batch)[0], together)
    assert np.array_equal(whole(one, rows[1]), together[5:145])
    following = [ids(CONFIGS["qwen3"], 1, 50 + i) for i in range(4)]
    batch = step(following, [5, 140, 1, 33], tables, 197)
    assert np.array_equal(one.run(batch)[0], two.run(batch)[0])


def test_logits_come_for_the_ids_and_tokens_asked_for():
    runner, row = load("llama"), ids(CONFIGS["llama"], 20)
    full = whole(runner, row)
    wanted = [
        Wanted(((3, 4), (15, 49), (199, 200)), [19, 2, 19]),
        Wanted(((0, 16),), []),
        Wanted(((16, 32),), [0]),
    ]
    a, b, c = runner.run(step([row], [0], [[0, 1]], 200, wanted=wanted))
    chosen = [3, *range(15, 49), 199]
    assert np.array_equal(a, full[[19, 2, 19]][:, chosen])
    assert b.shape == (0, 16)
    assert np.array_equal(c, full[[0], 16:32])
    assert runner.run(step([row], [0], [[0, 1]], 200, wanted=[])) == []


def adapter(name, seed, scale=0.3):
    draw = np.random.default_rng(seed)
    matrices = {}
    for key, weight in model(name).state_dict().items():
        if key.endswith("_proj.weight"):
            rows, cols = weight.shape
            a, b = draw.standard_normal((3, cols)), draw.standard_normal((rows, 3)) * scale
            matrices[key.removesuffix(".weight")] = (a.astype(np.float32), b.astype(np.float32))
    return Adapter(f"a{seed}", matrices)


def merged(name, given):
    decoder = model(name)
    state = decoder.state_dict()
    for key, (a, b) in given.matrices.items():
        state[f"{key}.weight"] += torch.from_numpy(b @ a)
    return decoder


@pytest.mark.parametrize("name", CONFIGS)
def test_adapters_equal_merged_weights_several_in_a_batch(name):
    runner = load(name)
    first, second = adapter(name, 1, 0.05), adapter(name, 2, 0.05)
    numbers = [runner.add_adapter(first), runner.add_adapter(second)]
    rows = [ids(CONFIGS[name], n, n) for n in (20, 30, 10)]
    vocab = CONFIGS[name].vocab_size
    got = runner.run(step(rows, [0] * 3, [[0, 1], [2, 3], [4]], vocab, [numbers[1], -1, numbers[0]]))[0]
    wants = [merged(name, second), model(name), merged(name, first)]
    for row, want, part in zip(rows, wants, np.split(got, [20, 50]), strict=True):
        expected = naive(want, row)
        assert np.abs(part - expected).max() < 2e-4 * np.abs(expected).max()
    runner.remove_adapter(numbers[0])
    with pytest.raises(RunnerError, match=r"adapters\[0\]"):
        runner.run(step(rows[:1], [0], [[0, 1]], vocab, [numbers[0]]))
    assert runner.add_adapter(first) == numbers[0]
    for wrong in (-1, 7):
        with pytest.raises(RunnerError):
            runner.remove_adapter(wrong)


def test_adapters_that_do_not_fit_are_refused():
    runner = load("llama")
    good = adapter("llama", 1).matrices["model.layers.0.self_attn.q_proj"]
    for name, pair in (
        ("model.layers.9.self_attn.q_proj", good),
        ("model.layers.0.mlp.down_proj", good),
        ("model.embed_tokens", good),
        ("model.layers.0.self_attn.q_proj", (good[0], good[1][:, :2])),
    ):
        with pytest.raises(RunnerError, match="a7"):
            runner.add_adapter(Adapter("a7", {name: pair}))


@pytest.mark.parametrize(
    ("field", "value"),
    [("ids", [200, 0]), ("ids", [-1, 0]), ("positions", [0, 400]), ("positions", [0, -1]),
     ("slots", [0, 640]), ("slots", [-1, 0]), ("positions", [0, 32]), ("tables", [[40, 1]]),
     ("tables", [[-1, 1]]), ("starts", [0, 3]), ("starts", [1, 2]), ("starts", [0, 9]),
     ("adapters", [0]), ("adapters", [-2]),
     ("starts", [0, 1, 2]), ("ids", [1, 2, 3])],
)  # fmt: skip
def test_a_batch_out_of_order_is_refused_and_the_runner_goes_on(field, value):
    runner = load("llama")
    row = ids(CONFIGS["llama"], 2)
    good = step([row], [0], [[0, 1]], 200)
    want = runner.run(good)[0]
    with pytest.raises(RunnerError):
        runner.run(replace(good, **{field: np.array(value, np.int32)}))
    with pytest.raises(RunnerError):
        runner.run(replace(good, ids=good.ids.astype(np.int64)))
    for wanted in (Wanted(((0, 201),), [0]), Wanted(((5, 5),), [0]), Wanted(((0, 5),), [2]),
                   Wanted(((0, 5),), [-1]), Wanted(((-1, 5),), [0])):  # fmt: skip
        with pytest.raises(RunnerError):
            runner.run(replace(good, wanted=[wanted]))
    assert np.array_equal(runner.run(good)[0], want)


def test_an_empty_batch_answers_nothing():
    none = np.zeros(0, np.int32)
    empty = Batch(none, none, none, np.zeros(1, np.int32), np.zeros((0, 1), np.int32), none)
    assert load("llama").run(empty) == []


def test_what_it_does_not_serve_is_refused():
    moe = replace(
        SIZES["moe"], dim=32, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=16, n_experts=2, top_k=1,
        expert_dim=16, vocab_size=32,
    )  # fmt: skip
    with pytest.raises(RunnerError, match="experts"):
        CpuRunner.load({}, moe)
    for changes in ({"precision": "int3"}, {"cache": "int4"}, {"blocks": 0}):
        with pytest.raises(RunnerError):
            CpuRunner.load(model("llama"), **changes)
    with pytest.raises(RunnerError, match="head_dim"):
        CpuRunner.load({}, replace(CONFIGS["llama"], head_dim=20))
    state = model("llama").state_dict()
    with pytest.raises(RunnerError, match=r"model\.norm\.weight is missing"):
        CpuRunner.load({k: v for k, v in state.items() if k != "model.norm.weight"}, CONFIGS["llama"])
    with pytest.raises(RunnerError, match=r"\[63\], not \[64\]"):
        CpuRunner.load(state | {"model.norm.weight": torch.ones(63)}, CONFIGS["llama"])


def test_idle_threads_burn_nothing_and_facts_tell():
    runner = load("llama")
    whole(runner, ids(CONFIGS["llama"], 5))
    time.sleep(0.3)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.1
    facts = runner.facts()
    assert facts["threads"] == 2 and facts["precision"] == "float32" and facts["cache"] == "float32"
    assert facts["weight_bytes"] > 100_000 and facts["cache_bytes"] >= 2 * 40 * 16 * 2 * 2 * 16 * 4
    runner.close()
    assert load("llama", threads=0).facts()["threads"] == len(os.sched_getaffinity(0))
