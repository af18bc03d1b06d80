"""A run in a process of its own, to be killed by SIGKILL at any moment, or by itself amid a snapshot."""

import dataclasses
import os
import shutil
import signal
from pathlib import Path

import torch

from m27.data.mixture import Corpus
from m27.train import checkpoint, seal
from tests.train import fixtures

WAYS = ("adapters", "free", "muon")


def settings(way: str, steps: int):
    """A run of `steps` steps with a snapshot after each: adapters the fused way, or every weight, or by Muon."""
    config = fixtures.config(steps=steps, save_minutes=0.0)
    data = dataclasses.replace(config.data, row=128, rows=1, accumulate=2)
    config = dataclasses.replace(config, data=data)
    if way == "adapters":
        return dataclasses.replace(config, path="fused")
    config = dataclasses.replace(config, body="full", rows="free")
    if way == "muon":
        optim = dataclasses.replace(config.optim, kind="muon", average=0.9)
        config = dataclasses.replace(config, optim=optim, z_loss=1e-3)
    return config


def train(run: Path, shards: Path, way: str, steps: int, die_at: int = 0) -> None:
    """Begin the run or go on with it; `die_at` counts the moments of the snapshots from 1, 0 lives."""
    torch.set_num_threads(1)
    os.fsync = lambda handle: None  # what a process has written outlives it; only power cuts need this
    if die_at:
        _arm(die_at)
    corpus = Corpus([shards / "shard0", shards / "shard1"])
    fixtures.trainer(run, corpus, settings(way, steps)).run()


def _arm(die_at: int) -> None:
    """Die at one of the moments of a snapshot: each file half written or written, each rename, each removal."""
    moments = 0

    def passes() -> bool:
        nonlocal moments
        moments += 1
        return moments == die_at

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    save_file, write, replace, rmtree = checkpoint.save_file, seal.write, os.replace, shutil.rmtree

    def halved(path: Path) -> None:
        if passes():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            die()
        if passes():
            die()

    def saved(tensors, path, metadata=None):
        save_file(tensors, path, metadata)
        halved(Path(path))

    def written(path, content):
        write(path, content)
        halved(Path(path))

    def replaced(source, target):
        ours = "step-" in Path(source).name
        if ours and passes():
            die()
        replace(source, target)
        if ours and passes():
            die()

    def removed(path, ignore_errors=False):
        if passes():
            die()
        rmtree(path, ignore_errors)

    checkpoint.save_file, seal.write, os.replace, shutil.rmtree = saved, written, replaced, removed
