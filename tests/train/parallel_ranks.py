"""What the tests of parallel training run in each rank: `python -m tests.train.parallel_ranks FOLDER JOBS`.

Started by torchrun, or by `start` below, which gives the ranks a port and ends them all when they hang. A rank
does several jobs one after the other, since to start it takes longer than most of them.
"""

import dataclasses
import faulthandler
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from m27.data.mixture import Corpus
from m27.model.config import SIZES
from m27.model.moe import Experts
from m27.train import parallel, whole
from m27.train.expert_parallel import SpreadExperts
from m27.train.loop import Trainer
from m27.train.rows import FreeRows
from m27.train.settings import ParallelConfig, TrainConfig
from tests.train import fixtures

ROOT = Path(__file__).parents[2]
MOE = {"family": "qwen3_moe", "n_experts": 4, "top_k": 2, "expert_dim": 32}
STEP = 4  # rows
SECONDS = float(os.environ.get("M27_TEST_SECONDS", "120"))  # after which ranks hang; busy machines set more


def config(steps: int = 4, **changes: Any) -> TrainConfig:
    """A run that trains every weight, with `changes` by name; those of its layout too."""
    layout = {k: changes.pop(k) for k in ("shard", "replicate", "expert") if k in changes}
    optim = changes.pop("optim", {})
    changes = {"body": "full", "rows": "free", "dtype": "float32", "save_minutes": 60.0, **changes}
    given = fixtures.config(steps=steps, parallel=ParallelConfig(timeout=SECONDS / 60, **layout), **changes)
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

    `only` is what the second of two ranks has in its rows, "words" or no target at all ("nothing"); rank 1
    dies before step `kill` of the first try. `blocks`: they are compiled whole, as on a GPU.
    """
    if changes.pop("blocks", False):
        whole.compiles_whole = lambda decoder: True  # type: ignore[assignment]
        changes["compile"] = True
    until, kill, only = changes.pop("until", None), changes.pop("kill", None), changes.pop("only", "")
    made = trainer(run, config(**changes), shape or {})
    if only:
        restrict(made, only)
    if kill is not None and os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0":
        step = made._train_step

        def until_killed(batches: Any) -> dict[str, object]:
            if made.step == kill and made.parallel.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(batches)

        made._train_step = until_killed  # type: ignore[method-assign]
    result = made.run(until=until)
    assert result.step == (until or made.config.steps), f"step {result.step}; a signal: {made._stop.is_set()}"
    if made.parallel.leads:
        save_file(result.trained, run.with_suffix(".safetensors"))


def restrict(made: Trainer, only: str) -> None:
    """Leave in the rows that the second of two ranks would have, whoever has them, only this."""
    collate, each, seen = made.loader.collate, STEP // 2, itertools.count()
    alone = made.parallel.world == 1

    def without(rows: Any) -> Any:
        batch = collate(rows)
        if (next(seen) % STEP < each) if alone else made.parallel.leads:
            return batch
        if only == "words":
            ids, targets = batch.ids_BT % fixtures.TEXT, batch.targets_M % fixtures.TEXT
            media = torch.zeros_like(batch.media_M)
            return dataclasses.replace(batch, ids_BT=ids, targets_M=targets, media_M=media)
        none = {name: t[:0] for name, t in vars(batch).items() if name.endswith("_M")}
        return dataclasses.replace(batch, **none)

    made.loader.collate = without  # type: ignore[method-assign]


def experts(run: Path) -> None:
    """Experts on two ranks against all of them on one; the second rank has no token, then no token for its own."""
    parallel.join(torch.device("cpu"))
    group = torch.distributed.group.WORLD
    rank = torch.distributed.get_rank()
    torch.manual_seed(0)
    together = Experts(dataclasses.replace(SIZES["tiny"], **MOE))
    for parameter in together.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x_MD, weights_Mk = torch.randn(10, SIZES["tiny"].dim), torch.rand(10, 2)
    mixed_Mk = torch.stack([torch.randperm(4)[:2] for _ in range(10)])
    own = [slice(0, 10), slice(10, 10)][rank]
    for chosen_Mk in (mixed_Mk, torch.tensor([[0, 1]]).expand(10, 2)):
        spread = SpreadExperts(together, group)
        together.zero_grad()
        x_all, x_own = x_MD.clone().requires_grad_(), x_MD[own].clone().requires_grad_()
        expected = together(x_all, chosen_Mk, weights_Mk)
        expected.square().sum().backward()
        found = spread(x_own, chosen_Mk[own], weights_Mk[own])
        found.square().sum().backward()
        torch.testing.assert_close(found, expected[own])
        torch.testing.assert_close(x_own.grad, x_all.grad[own])
        for name, part in spread.named_parameters():
            gradient = dict(together.named_parameters())[name].grad.chunk(2)[rank]
            torch.testing.assert_close(part.grad, gradient)


Jobs = Sequence[tuple[str, dict[str, Any]]]  # the run's name, and arguments of `train`


def start(world: int, folder: Path, jobs: Jobs) -> None:
    """Do the jobs, each in the folder of its name, in `world` ranks; AssertionError where one fails or hangs."""
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
    said = [rank.communicate()[0] for rank in ranks]
    assert not any(rank.returncode for rank in ranks), "\n".join(said)


if __name__ == "__main__":
    faulthandler.dump_traceback_later(SECONDS, exit=True)  # it says where it hangs
    torch.set_num_threads(1)
    for name, job in json.loads(sys.argv[2]):
        {"train": train, "experts": experts}[job.pop("do", "train")](Path(sys.argv[1]) / name, **job)
    parallel.leave()
