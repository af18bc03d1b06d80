"""What a run of given settings is expected to take here: the pass that will be taken, memory, time, words."""

import dataclasses

import pytest
import torch

from m27.model.config import SIZES
from m27.train.plan_cost import Machine
from m27.train.plan_memory import local
from m27.train.plan_run import expected, here, way_of
from m27.train.plan_shape import Arithmetic, Micro
from m27.train.settings import TrainConfig, change

MACHINE = Machine(memory=8e9, reserve=0.0, peak=1e11)
FULL = TrainConfig("a", steps=10, device="cpu", dtype="float32", body="full", rows="free")


@pytest.mark.parametrize(
    ("size", "settings", "device", "path"),
    [
        ("nano", {}, "cpu", "fused"),
        ("nano", {}, "cuda", "merged"),
        ("7b", {}, "cpu", "plain"),
        ("nano", {"base_bits": 4}, "cpu", "plain"),
        ("nano", {"body": "full", "rows": "free"}, "cpu", "fused"),
        ("nano", {"body": "full", "rows": "free", "recompute": True}, "cpu", "whole"),
        ("nano", {"body": "full", "rows": "free"}, "cuda", "whole"),
        ("nano", {"body": "full", "rows": "maps"}, "cpu", "fused"),
        ("nano", {"body": "full", "rows": "maps"}, "cuda", "plain"),
        ("nano", {"body": "full", "objective": "preference"}, "cpu", "plain"),
        ("7b", {"body": "full", "rows": "free"}, "cpu", "whole"),
        ("nano", {"path": "plain"}, "cuda", "plain"),
    ],
)
def test_the_pass_is_the_one_that_the_settings_take(size, settings, device, path):
    assert way_of(change(TrainConfig("a"), settings), SIZES[size], device, True).path == path


def test_memory_and_time_of_a_run():
    found = expected(FULL, SIZES["tiny"], MACHINE)
    a = Arithmetic("fused", narrow=False, device="cpu", compile=True, rank=32, targets=())
    assert found.memory == local(SIZES["tiny"], a, Micro(FULL.data.rows, FULL.data.row))
    assert found.fits and found.step_tokens == 4 * 2048
    assert found.seconds == pytest.approx(10 * found.step_seconds)
    assert found.lines()[-1].startswith("the run: 10 steps, 81,920 tokens, ")
    large = expected(change(FULL, {"data.rows": "512"}), SIZES["nano"], MACHINE)
    assert not large.fits and "it does not fit" in large.lines()[0]


def test_the_clock_ends_a_run_that_steps_do_not():
    found = expected(dataclasses.replace(FULL, steps=10**9, minutes=2.0), SIZES["tiny"], MACHINE)
    assert found.seconds == 120 and found.steps == int(120 / found.step_seconds)


def test_settings_that_take_memory_or_spare_it():
    lora = TrainConfig("a", steps=10, device="cpu", dtype="float32", rows="frozen", path="plain")
    nano = SIZES["nano"]
    held = {bits: expected(change(lora, {"base_bits": bits}), nano, MACHINE).memory for bits in (None, 8, 4)}
    assert held[4].weights < held[8].weights < held[None].weights / 2
    assert held[4].activations == held[None].activations
    again = expected(change(FULL, {"recompute": "true"}), nano, MACHINE)
    once = expected(FULL, nano, MACHINE)
    assert again.memory.total < once.memory.total and again.step_seconds > once.step_seconds
    averaged = expected(change(FULL, {"optim.average": "0.9"}), nano, MACHINE).memory
    assert averaged.optimiser == pytest.approx(1.5 * once.memory.optimiser)


def test_this_machine_is_looked_at():
    found = here(torch.device("cpu"), narrow=False)
    assert found.memory > 1e8 and found.peak > 1e8


@pytest.mark.gpu
def test_memory_on_a_gpu_is_that_of_the_allocator():
    """Full training and adapters of a small decoder in bfloat16, against the peak that CUDA's allocator counts."""
    from benchmarks.plan import DENSE, Case, Run, planned_on

    for case in (
        Case("full", DENSE, "whole", dtype="bfloat16", batch=8),
        Case("full", DENSE, "whole", dtype="bfloat16", batch=8, recompute=True),
        Case("LoRA", DENSE, "plain", "adapters", "frozen", dtype="bfloat16", batch=8),
    ):
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        run = Run(case, torch.device("cuda"))
        run.step()
        torch.cuda.reset_peak_memory_stats()
        run.step()
        peak = torch.cuda.max_memory_allocated() - before
        assert planned_on(case, "cuda").total == pytest.approx(peak, rel=0.2)
        del run
