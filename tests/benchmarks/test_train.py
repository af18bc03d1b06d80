"""The race of training steps: its arithmetic, its table, and that all sides train the same."""

import dataclasses

import pytest
import torch

from benchmarks import train, train_sides
from benchmarks.train_sides import Task

TINY = Task("full", "tiny", row=32, threads=1, compile=False)


class EnoughError(Exception):
    pass


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of the peers among themselves
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_both_sides_begin_with_the_same_losses(kind):
    task = dataclasses.replace(TINY, kind=kind)
    threads = torch.get_num_threads()
    steps = train_sides.ours(task)
    mine = [next(steps)[1] for _ in range(3)]
    steps.close()
    theirs: list[float] = []

    def turn(seconds: float, loss: float) -> None:
        theirs.append(loss)
        if len(theirs) == 3:
            raise EnoughError

    with pytest.raises(EnoughError):
        train_sides.trainer(task, {}, turn)
    torch.set_num_threads(threads)
    assert mine == pytest.approx(theirs, abs=2e-3)


def test_flops_of_nano():
    full = train.flops(Task("full"))
    assert full == pytest.approx(6 * 148.7e6 * 1024 + 3 * 30 * 2 * 1024 * 512 * 576, rel=1e-3)
    assert train.flops(Task("lora")) < full


def test_heats_hold_two_and_leave_out_who_cannot_win():
    names = ["m27", *train_sides.TRAINERS]
    slow, fast = {"bfloat16": 1.0, "float32": 2.0}, {"bfloat16": 2.0, "float32": 1.0}
    assert train.heats(names, slow, False) == [["m27", "Trainer"], ["m27", "Trainer compiled"]]
    both = [["m27", "Trainer"], ["m27", "Trainer compiled"], ["m27", "Trainer compiled bf16"]]
    assert train.heats(names, fast, False) == train.heats(names, slow, True) == both
    assert train.heats(["m27"], slow, True) == [["m27"]]
    assert train.heats(["m27", "Trainer bf16"], fast, False, "cuda") == [["m27"], ["Trainer bf16"]]


def test_on_a_gpu_the_share_of_the_stated_peak_is_a_bar():
    mine = {**row(400, 100, 1.0), "mfu": 0.47}
    contenders = {"m27": mine, "Trainer bf16": row(200, 120, 2.0)}
    share, fastest = train.bars({"full": {"contenders": contenders, "gflop_a_step": 1.0, "peaks": {"bfloat16": 2.0}}})
    assert (share["bar"], share["ratio"], share["least"], share["met"]) == ("full, MFU", 0.47, 0.5, False)
    assert (fastest["peer"], fastest["ratio"]) == ("Trainer bf16", 2.0)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["m27", "Trainer bf16"])
def test_a_side_trains_on_a_gpu(name):
    side = train.Side(name, dataclasses.replace(TINY, device="cuda"), patience=120)
    side.turn(2)
    side.end()
    assert not side.failed
    assert len(side.losses) == 4 and side.peak_mb > 0


def row(tokens, peak, over):
    return {
        "tokens_per_second": tokens, "peak_mb": peak, "gflop_per_second": 1.0, "of_bfloat16_peak": 0.5,
        "start_seconds": 1.0, "losses": [2.0, 1.0], "ours_over_it": over,
    }  # fmt: skip


def test_bars_compare_with_the_fastest_and_the_table_says_who_failed():
    contenders = {
        "m27": row(400, 100, 1.0), "Trainer": row(200, 120, 2.0),
        "Trainer compiled": row(300, 90, 1.33), "Trainer compiled bf16": {"failed": "it ended: no memory"},
    }  # fmt: skip
    kinds = {"full": {"contenders": contenders, "gflop_a_step": 1.0, "peaks": {"bfloat16": 2.0}}}
    default, fastest = train.bars(kinds)
    assert (default["peer"], default["ratio"], default["met"]) == ("Trainer", 2.0, True)
    assert (fastest["peer"], fastest["met"], fastest["no_more_memory"]) == ("Trainer compiled", False, False)
    about = {"processor": "P", "threads": 2}
    text = train.table({"date": "d", "machine": about, "kinds": kinds, "bars": [default, fastest]})
    assert "no memory" in text
    assert "| full, against Trainer's default | Trainer | 2.00 | 1.5 | yes | yes |" in text


def test_a_child_that_dies_is_told_of():
    side = train.Side("nobody", TINY, patience=60)
    side.turn(1)
    side.end()
    assert "nobody" in side.failed
