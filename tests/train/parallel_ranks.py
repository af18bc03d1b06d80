"""What the tests of parallel training run in each rank: `python -m tests.train.parallel_ranks FOLDER JOBS`.

Started by torchrun, or by `start` below, which gives the ranks a port and ends them all when they hang. A rank
does several jobs one after the other, since to start it takes longer than most of them.
"""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

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
STEP = 4  # rows


def config(steps: int = 4, **changes: Any) -> TrainConfig:
    """A run that trains every weight, with `changes` by name; those of its layout too."""
    layout = {k: changes.pop(k) for k in ("shard", "replicate", "expert") if k in changes}
    optim = changes.pop("optim", {})
    changes = {"body": "full", "rows": "free", "dtype": "float32", "save_minutes": 60.0, **changes}
    given = fixtures.config(steps=steps, parallel=ParallelConfig(timeout=3.0, **layout), **changes)
    data = dataclasses.replace(given.data, row=160, rows=1, accumulate=STEP)
    return dataclasses.replace(given, data=data, optim=dataclasses.replace(given.optim, **optim))


def trainer(run: Path, settings: TrainConfig, shape: dict[str, Any]) -> Trainer:
    """A trainer as a rank of a new run would make it; shards are in the folder beside it."""
    shards = Corpus(sorted((run.parent / "shards").iterdir()))
    if settings.rows != "free":
        return fixtures.trainer(run, shards, settings)
    model = fixtures.decoder(fixtures.AUDIO[1], **shape)
    rows = FreeRows(model, getattr(torch, settings.dtype))
    return Trainer(settings, model, rows, shards, run, quiet=True)


def train(run: Path, shape: dict[str, Any] | None = None, **changes: Any) -> None:
    """Train as `changes` say; the leading rank writes what came out beside the run.

    `mute` lists ranks whose rows have no target; rank 1 dies before step `kill` of the first try.
    """
    until, kill, mute = changes.pop("until", None), changes.pop("kill", None), changes.pop("mute", ())
    made = trainer(run, config(**changes), shape or {})
    if mute:
        silence(made, mute)
    if kill is not None and os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0":
        step = made._train_step

        def until_killed(batches: Any) -> dict[str, object]:
            if made.step == kill and made.parallel.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(batches)

        made._train_step = until_killed  # type: ignore[method-assign]
    result = made.run(until=until)
    if made.parallel.leads:
        save_file(result.trained, run.with_suffix(".safetensors"))


def silence(made: Trainer, ranks: list[int]) -> None:
    """Take the targets off the rows that these of two ranks would have, whoever has them."""
    collate, each, seen = made.loader.collate, STEP // 2, iter(range(1 << 30))
    first = made.parallel.rank * each if made.parallel.world > 1 else 0
    own = each if made.parallel.world > 1 else STEP

    def without(rows: Any) -> Any:
        batch = collate(rows)
        if (first + next(seen) % own) // each not in ranks:
            return batch
        none = {n: t[:0] for n, t in vars(batch).items() if n.endswith("_M")}
        return dataclasses.replace(batch, **none)

    made.loader.collate = without  # type: ignore[method-assign]


def start(world: int, folder: Path, jobs: dict[str, dict[str, Any]], seconds: float = 300) -> None:
    """Run the jobs, by name of their run, in `world` ranks; AssertionError where one fails or hangs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.train.parallel_ranks", str(folder), json.dumps(jobs)],
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
    for name, job in json.loads(sys.argv[2]).items():
        train(Path(sys.argv[1]) / name, **job)
    parallel.leave()
