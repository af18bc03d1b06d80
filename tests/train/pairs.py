"""Tiny shards of pairs, for the tests of preferences: two answers that differ in words and in codes."""

import dataclasses
import json
from pathlib import Path

import numpy as np

from m27.data.branches import join
from m27.data.mixture import Corpus
from m27.train.pairs import PreferenceConfig
from m27.train.settings import DataConfig, TrainConfig
from tests.train import fixtures


def answer(rng, liked, codes):
    """Ids of an answer; what is liked holds low ids of text (and of pictures), the rest high ones."""
    low = slice(0, 8) if liked else slice(8, 16)
    words = np.arange(16, 32)[low]
    ids = rng.choice(words, int(rng.integers(4, 12)))
    if codes:
        pictures = np.arange(*fixtures.IMAGE)[:32][slice(0, 16) if liked else slice(16, 32)]
        sound = rng.integers(*fixtures.AUDIO, 2)
        ids = np.concatenate([ids, rng.choice(pictures, 4), rng.choice(words, 2), sound])
    return np.append(ids, 2)


def write(folder: Path, count: int, seed: int, codes: bool = True, task: str = "preference") -> Corpus:
    """A corpus of `count` pairs, in one shard."""
    rng = np.random.default_rng(seed)
    tokens, loss, branches, index = [], [], [], [0]
    for _ in range(count):
        prompt = rng.integers(32, fixtures.TEXT, int(rng.integers(5, 20)))
        given = []
        for liked in (True, False):
            ids = answer(rng, liked, codes)
            flags = np.repeat([0, 1], [len(prompt) + 1, len(ids)]).astype(np.uint8)
            given.append((np.concatenate([prompt, [1], ids]).astype(np.uint32), flags))
        ids, flags, parts = join(given)
        tokens.append(ids)
        loss.append(flags)
        branches.append(parts)
        index.append(index[-1] + len(ids))
    fixtures.write_shard(folder, 1, 0)
    np.concatenate(tokens).astype(np.uint32).tofile(folder / "tokens.bin")
    np.concatenate(loss).tofile(folder / "loss.bin")
    np.concatenate(branches).tofile(folder / "branches.bin")
    np.save(folder / "index.npy", np.array(index, np.int64))
    np.save(folder / "tasks.npy", np.zeros(count, np.uint16))
    meta = json.loads((folder / "meta.json").read_text())
    meta |= {"tasks": [task], "documents": count, "tokens": index[-1]}
    (folder / "meta.json").write_text(json.dumps(meta))
    return Corpus([folder])


def config(preference: PreferenceConfig | None = None, **changes) -> TrainConfig:
    """Four steps over pairs."""
    data = DataConfig(row=128, rows=2, accumulate=2, pool=16)
    given = fixtures.config(
        data=data, objective="preference", preference=preference or PreferenceConfig()
    )
    return dataclasses.replace(given, **changes)
