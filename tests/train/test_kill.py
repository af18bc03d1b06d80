"""A run killed by SIGKILL at any moment and started again ends as the uninterrupted one, to the last bit."""

import json
import multiprocessing
import random
import time

import pytest
import torch

from m27.train import checkpoint
from tests.train import fixtures, victim

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.train.victim"])  # so that a start costs a fork, not an import of torch


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    fixtures.corpus(folder)
    return folder


def start(*arguments):
    process = CONTEXT.Process(target=victim.train, args=arguments)
    process.start()
    return process


def log(run):
    """The whole lines of a run's log; the last may be torn."""
    out = []
    if (run / "log.jsonl").is_file():
        for line in (run / "log.jsonl").read_text().splitlines():
            try:
                out.append(json.loads(line))
            except ValueError:
                break
    return out


def finish(run, shards, way, steps):
    process = start(run, shards, way, steps)
    process.join(300)
    assert process.exitcode == 0


def outcome(run):
    """All that two equal runs agree in: every step's figures, weights, optimiser, place in the data."""
    records = [
        {k: v for k, v in record.items() if k not in ("seconds", "tokens_per_second", "mfu")}
        for record in log(run)
    ]
    found = checkpoint.latest(run)
    return records, found, (found.step, found.state["tokens"], found.state["loader"])


def equal(left, right):
    assert left[0] == right[0]
    assert left[2] == right[2]
    for one, other in ((left[1].trained, right[1].trained), (left[1].optimiser, right[1].optimiser)):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def killed(run, shards, way, steps, after, rng):
    """Start the run and kill it at a random moment once its log tells of step `after`; whether amid a snapshot."""
    process = start(run, shards, way, steps)
    deadline = time.monotonic() + 300
    while not any(record["step"] >= after for record in log(run)):
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.06))
    process.kill()
    process.join(60)
    assert process.exitcode == -9
    return any(run.glob(".step-*"))


@pytest.mark.parametrize("way", victim.WAYS)
def test_three_kills_change_nothing(shards, tmp_path, way):
    rng = random.Random(way)
    finish(tmp_path / "whole", shards, way, 10)
    for after in (1, 3, 6):
        killed(tmp_path / "parts", shards, way, 10, after, rng)
    finish(tmp_path / "parts", shards, way, 10)
    equal(outcome(tmp_path / "whole"), outcome(tmp_path / "parts"))


@pytest.mark.slow
@pytest.mark.parametrize("way", victim.WAYS)
def test_twenty_kills_change_nothing(shards, tmp_path, way):
    rng, steps = random.Random(f"{way} 20"), 64
    finish(tmp_path / "whole", shards, way, steps)
    amid = 0
    for after in sorted(rng.sample(range(1, steps - 8), 20)):
        amid += killed(tmp_path / "parts", shards, way, steps, after, rng)
    finish(tmp_path / "parts", shards, way, steps)
    equal(outcome(tmp_path / "whole"), outcome(tmp_path / "parts"))
    print(f"{way}: {amid} of 20 amid a snapshot")


def test_a_kill_at_each_moment_of_a_snapshot_loses_at_most_that_one(shards, tmp_path):
    """Each of three files half written and written, before and after each rename, before the removal."""
    finish(tmp_path / "whole", shards, "muon", 16)
    run, gained = tmp_path / "parts", []
    killed(run, shards, "muon", 16, 3, random.Random(0))  # so that there are snapshots to remove
    for moment in range(1, 13):
        before = checkpoint.latest(run).step
        process = start(run, shards, "muon", 16, moment)
        process.join(300)
        assert process.exitcode == -9
        gained.append(checkpoint.latest(run).step - before)
    assert gained[0] == 0 and gained[-1] == 1  # cut off before the rename it is lost, after it it counts
    assert set(gained) == {0, 1}
    finish(run, shards, "muon", 16)
    equal(outcome(tmp_path / "whole"), outcome(run))
    assert not list(run.glob(".step-*"))
