"""What the tests of parallel training run in each rank: `python -m tests.train.parallel_ranks JOB FOLDER …`.

Started by torchrun, or by `start` below, which gives the ranks a port and ends them all when they hang.
"""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from m27.data.mixture import Corpus
from m27.train import parallel
from m27.train.loop import Trainer
from m27.train.rows import FreeRows
from m27.train.settings import ParallelConfig, TrainConfig
from tests.train import fixtures

ROOT = Path(__file__).parents[2]
MOE = {"family": "qwen3_moe", "n_experts": 4, "top_k": 2, "expert_dim": 32}


def config(steps: int = 20, dtype: str = "float32", **changes) -> TrainConfig:
    """A free run; `shard`, `replicate`, `expert` and whatever TrainConfig has are changed."""
    layout = {k: changes.pop(k) for k in ("shard", "replicate", "expert") if k in changes}
    given = fixtures.config(
        steps=steps, body="full", rows="free", dtype=dtype, save_minutes=60.0,
        parallel=ParallelConfig(timeout=3.0, **layout), **changes,
    )  # fmt: skip
    data = dataclasses.replace(given.data, row=160, rows=1, accumulate=4)
    return dataclasses.replace(given, data=data)


def trainer(run: Path, settings: TrainConfig, shape: dict) -> Trainer:
    """A trainer as a rank of a new run would make it; shards are in the folder beside it."""
    shards = Corpus(sorted((run.parent / "shards").iterdir()))
    model = fixtures.decoder(fixtures.AUDIO[1], **shape)
    rows = FreeRows(model, getattr(torch, settings.dtype))
    return Trainer(settings, model, rows, shards, run, quiet=True)


def train(run: Path, changes: dict) -> None:
    """Train, as `changes` say; the leading rank writes what came out beside the run."""
    shape, until = changes.pop("shape", {}), changes.pop("until", None)
    kill = changes.pop("kill", None)
    made = trainer(run, config(**changes), shape)
    if kill is not None and os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0":
        step = made._train_step

        def until_killed(batches):
            if made.step == kill and made.parallel.rank == 1:
                os.kill(os.getpid(), 9)
            return step(batches)

        made._train_step = until_killed
    result = made.run(until=until)
    if made.parallel.leads:
        save_file(result.trained, run.with_suffix(".safetensors"))
    parallel.leave()


def start(world: int, job: str, run: Path, changes: dict, seconds: float = 240) -> None:
    """Run a job in `world` ranks and wait; AssertionError with what they said where one fails or hangs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.train.parallel_ranks", job, str(run), json.dumps(changes)],
            cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**told, "RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)},
        )
        for rank in range(world)
    ]  # fmt: skip
    try:
        said = [rank.communicate(timeout=seconds)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert not any(rank.returncode for rank in ranks), "\n".join(said)


if __name__ == "__main__":
    torch.set_num_threads(1)
    globals()[sys.argv[1]](Path(sys.argv[2]), json.loads(sys.argv[3]))
