"""m27/infer/cuda: the fused step is the runner's step, whoever computes its parts."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from m27.infer.cuda.graphs import FusedGraphs
from m27.infer.cuda.ops import Norm, PlainOps
from m27.infer.cuda.step import suits
from m27.infer.engine import Engine
from m27.infer.runner import Batch, Wanted
from m27.infer.torch_runner import TorchRunner
from m27.model.config import SIZES, Config
from m27.model.decoder import Decoder
from tests import tiny
from tests.infer import mixed

LLAMA = replace(SIZES["tiny"], vocab_size=90)
FAMILIES = {
    "llama": LLAMA,
    "untied": replace(LLAMA, tied=False),
    "equal heads": replace(LLAMA, n_kv_heads=4),
    "qwen3": replace(LLAMA, family="qwen3"),
}


def model(config: Config, device: str = "cpu") -> Decoder:
    torch.manual_seed(0)
    made = Decoder(config).eval()
    for parameter in made.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return made.to(device)


def batch(rows: list[tuple[list[int], int, list[int]]], wanted: list[Wanted], size: int) -> Batch:
    """A step of rows (ids, tokens before them, blocks)."""
    longest = max(len(table) for _, _, table in rows)
    places = [np.arange(held, held + len(ids)) for ids, held, _ in rows]
    slots = [
        np.array(table)[at // size] * size + at % size
        for at, (_, _, table) in zip(places, rows, strict=True)
    ]
    arrays = (
        [id for ids, _, _ in rows for id in ids], np.concatenate(places), np.concatenate(slots),
        np.cumsum([0, *(len(ids) for ids, _, _ in rows)]),
        [table + [-1] * (longest - len(table)) for _, _, table in rows], [-1] * len(rows),
    )  # fmt: skip
    return Batch(*(np.array(array, dtype=np.int32) for array in arrays), wanted)


def filled(config: Config, rows: int, device: str = "cpu") -> tuple[TorchRunner, list[list[int]]]:
    """A runner whose cache holds `rows` sequences of 7, 8, … ids, and their blocks of four."""
    runner = TorchRunner(model(config, device), blocks=40, block_size=4)
    tables = [[5 * row + (3 * place + row) % 5 for place in range(5)] for row in range(rows)]
    prompts = [(list(range(1 + n, 8 + 2 * n)), 0, table) for n, table in enumerate(tables)]
    runner.run(batch(prompts, [], 4))
    return runner, tables


def next_step(tables: list[list[int]], best: bool = False) -> Batch:
    """One id of each of those sequences."""
    rows = [([50 + n], 7 + n, table) for n, table in enumerate(tables)]
    return batch(rows, [Wanted(((0, 40), (50, 90)), range(len(rows)), best)], 4)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_a_fused_step_is_the_step(config: Config, rows: int) -> None:
    runner, tables = filled(config, rows)
    plain = runner.run(next_step(tables))[0]
    keys = runner.keys.clone()
    runner.fused = FusedGraphs(runner, PlainOps(), capture=False)
    for _ in range(2):
        assert np.allclose(runner.run(next_step(tables))[0], plain, atol=1e-4)
    assert torch.allclose(runner.keys[:, :-1], keys[:, :-1], atol=1e-5)
    assert list(runner.fused.differences) == [(1 if rows == 1 else 4, 64)]
    best = runner.run(next_step(tables, best=True))[0]
    assert best.tolist() == [int(np.r_[0:40, 50:90][row.argmax()]) for row in plain]


def test_steps_that_feed_themselves_are_those_of_the_runner() -> None:
    runner, tables = filled(LLAMA, 2)
    fused = FusedGraphs(runner, PlainOps(), capture=False)
    found = fused.chain(next_step(tables), 6)
    assert found is not None
    ids = [50, 51]
    for number in range(6):
        rows = [([ids[n]], 7 + n + number, table) for n, table in enumerate(tables)]
        ids = runner.run(batch(rows, [Wanted(((0, 90),), range(2), True)], 4))[0].tolist()
        assert found[number].tolist() == ids
    with pytest.raises(ValueError, match="3 rows"):
        fused.chain(next_step([*tables, tables[0]]), 1)


class Wrong(PlainOps):
    """Parts of which one is off by a little."""

    def norm(self, x: torch.Tensor, norm: Norm) -> torch.Tensor:
        return norm(x) * 1.01


class Missing(PlainOps):
    """Parts of which one cannot be had."""

    def norm(self, x: torch.Tensor, norm: Norm) -> torch.Tensor:
        raise RuntimeError("no compiler\nhere")


@pytest.mark.parametrize(("ops", "why"), [(Wrong(), "differ by 0.01"), (Missing(), "no compiler here")])  # fmt: skip
def test_what_cannot_be_trusted_is_told_once_and_left_alone(
    ops: PlainOps, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    runner, tables = filled(LLAMA, 3)
    plain = runner.run(next_step(tables))[0]
    runner.fused = FusedGraphs(runner, ops, capture=False)
    for _ in range(2):
        assert np.allclose(runner.run(next_step(tables))[0], plain, atol=1e-5)
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "no fused steps of 4 rows" in told and why in told


def test_joint_matrices_are_the_decoders_own() -> None:
    made = model(LLAMA)
    state = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    runner = TorchRunner(made, blocks=4)
    first, second = (FusedGraphs(runner, PlainOps(), capture=False)._step for _ in range(2))
    for name, tensor in made.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    qkv = made.get_parameter("model.layers.1.self_attn.v_proj.weight").untyped_storage().data_ptr()
    assert first._layers[1].qkv.data_ptr() == second._layers[1].qkv.data_ptr() == qkv


def test_only_whole_dense_decoders_of_usual_heads_are_fused() -> None:
    assert suits(model(LLAMA))
    assert not suits(model(replace(LLAMA, head_dim=24)))
    moe = replace(LLAMA, family="qwen3_moe", n_experts=4, top_k=2, expert_dim=32, ffn_dim=0)
    assert not suits(model(moe))


def test_answers_over_fused_steps_equal_the_oracles() -> None:
    asked = mixed.greedy(mixed.requests(6))
    asked += [replace(request, repetition_penalty=1.0) for request in asked]
    naive, engine = tiny.naive(), tiny.engine(100, chunk=64)
    assert isinstance(engine, Engine) and isinstance(engine.runner, TorchRunner)
    engine.runner.fused = FusedGraphs(engine.runner, PlainOps(), capture=False)
    for request, answer in zip(asked, engine.answer(asked), strict=True):
        assert mixed.differences(naive.chat(request), answer) == []
    assert engine.runner.fused.differences


INTERPRETED = """
import torch
from m27.infer.cuda.graphs import FusedGraphs
from m27.infer.cuda.kernels import TritonOps
from tests.infer.cuda import test_step as t
import numpy as np
torch.set_num_threads(1)
for config in t.FAMILIES.values():
    for rows in (1, 3):
        for splits in (1, 3):
            runner, tables = t.filled(config, rows)
            plain = runner.run(t.next_step(tables))[0]
            runner.fused = FusedGraphs(runner, TritonOps(tile=256, splits=splits), capture=False)
            assert np.allclose(runner.run(t.next_step(tables))[0], plain, atol=1e-4)
            assert max(runner.fused.differences.values()) < 1e-5
runner, tables = t.filled(t.LLAMA, 2)
chains = [FusedGraphs(runner, ops, capture=False).chain(t.next_step(tables), 5)
          for ops in (t.PlainOps(), TritonOps(tile=256))]
assert torch.equal(*chains)
print("equal")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")
def test_kernels_equal_the_plain_parts_where_triton_can_interpret_them() -> None:
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "equal" in done.stdout


@pytest.mark.gpu
@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_kernels_on_the_device(config: Config, rows: int, dtype: torch.dtype, early: bool) -> None:
    from m27.infer.cuda.kernels import TritonOps

    runner = TorchRunner(model(config, "cuda").to(dtype), blocks=40, block_size=4)
    tables = [[5 * row + place for place in range(5)] for row in range(rows)]
    runner.fused = runner._graphs = None
    plain = runner.run(next_step(tables))[0]
    runner.fused = FusedGraphs(runner, TritonOps(early=early))
    close = 1e-3 if dtype == torch.float32 else 0.2
    for _ in range(3):
        assert np.allclose(runner.run(next_step(tables))[0], plain, atol=close)
    assert runner.fused.differences
