"""A rank is killed under torchrun: all begin again at the last whole snapshot, and end as if nothing had been."""

import os
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from m27.train import checkpoint
from tests.train import fixtures
from tests.train import parallel_ranks as ranks
from tests.train.test_parallel import log, same

JOB = {"shape": ranks.MOE, "expert": 2, "steps": 5, "save_minutes": 0.0}


def torchrun(folder, jobs, restarts):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "--max-restarts", str(restarts), "--monitor-interval", "0.1",
        "-m", "tests.train.parallel_ranks", str(folder), ranks.json.dumps(jobs),
    ]  # fmt: skip
    return subprocess.run(
        command, cwd=ranks.ROOT, text=True, capture_output=True, timeout=2 * ranks.SECONDS,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.slow
def test_a_killed_rank_is_made_up_for(tmp_path):
    fixtures.corpus(tmp_path / "shards")
    ranks.train(tmp_path / "one", **{**JOB, "expert": 1})
    done = torchrun(tmp_path, [("killed", {**JOB, "kill": 3})], restarts=1)
    assert done.returncode == 0, done.stderr
    assert "SIGKILL" in done.stderr or "exitcode: -9" in done.stderr.lower(), done.stderr
    same(tmp_path, "one", "killed")
    assert [record["step"] for record in log(tmp_path / "killed")] == [1, 2, 3, 4, 5]
    assert [step for step, _ in checkpoint.steps(tmp_path / "killed")] == [4, 5]
    assert not list((tmp_path / "killed").glob(".step-*"))


@pytest.mark.slow
def test_without_restarts_what_was_saved_is_whole_and_goes_on_in_one_process(tmp_path):
    fixtures.corpus(tmp_path / "shards")
    ranks.train(tmp_path / "one", **{**JOB, "expert": 1})
    done = torchrun(tmp_path, [("killed", {**JOB, "kill": 3})], restarts=0)
    assert done.returncode != 0
    assert checkpoint.steps(tmp_path / "killed")[-1][0] in (2, 3)
    ranks.train(tmp_path / "killed", **{**JOB, "expert": 1})
    same(tmp_path, "one", "killed")
    assert load_file(tmp_path / "killed.safetensors")
