"""Two ranks (gloo) hold what the planner says, cut in two by FSDP2 and whole on each."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from m27.train.plan import cut
from m27.train.plan_cost import Layout
from m27.train.plan_shape import Arithmetic, Micro, counts
from tests.train.plan_ranks import CASE, MODEL

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.train.plan_ranks", str(folder)],
            cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**told, "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [rank.communicate()[0] for rank in ranks]
    assert not any(rank.returncode for rank in ranks), "\n".join(said)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("shard", [2, 1])
def test_parts_and_peak_are_those_planned(found, shard):
    a = Arithmetic(narrow=False, recompute=True, device="cpu", sharded=True)
    micro = Micro(CASE.batch, CASE.length, CASE.length // CASE.documents, 1 - CASE.documents / CASE.length)
    planned = cut(MODEL, a, micro, Layout(shard, 2 // shard))
    ours = [rank[str(shard)] for rank in found]
    for part in ("weights", "gradients"):
        assert {rank[part] for rank in ours} == {getattr(planned, part)} == {4 * counts(MODEL).total / shard}
    steps = sum(1 for _ in range(3 + 9 * MODEL.n_layers)) * 4  # AdamW counts its steps by tensor
    assert {rank["optimiser"] for rank in ours} == {planned.optimiser + steps}
    for rank in ours:
        assert rank["peak"] == pytest.approx(planned.total, rel=0.15)
