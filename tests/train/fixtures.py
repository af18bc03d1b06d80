"""A tiny decoder, tiny shards and a tiny run, for the tests of training."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import torch

from m27.data.mixture import Corpus
from m27.model.config import SIZES
from m27.model.decoder import Decoder
from m27.train.loop import Trainer
from m27.train.lora import LoraConfig
from m27.train.rows import FreeRows, FrozenRows, Rows
from m27.train.settings import DataConfig, TrainConfig

TEXT, CONTROLS = 64, 32
IMAGE, AUDIO = (96, 160), (160, 192)
TASKS = ["draw", "text", "speak"]


def write_shard(folder: Path, documents: int, seed: int) -> Path:
    """A shard of random documents: a prompt, then an answer that holds a few codes."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    tokens, loss, index, tasks = [], [], [0], []
    for _ in range(documents):
        length, prompt = int(rng.integers(20, 120)), int(rng.integers(5, 15))
        ids = rng.integers(0, TEXT, length)
        ids[prompt : prompt + 4] = rng.integers(*IMAGE, 4)
        ids[-3:-1] = rng.integers(*AUDIO, 2)
        flags = np.zeros(length, np.uint8)
        flags[prompt:] = 1
        tokens.append(ids)
        loss.append(flags)
        index.append(index[-1] + length)
        tasks.append(int(rng.integers(0, len(TASKS))))
    np.concatenate(tokens).astype(np.uint32).tofile(folder / "tokens.bin")
    np.concatenate(loss).tofile(folder / "loss.bin")
    np.save(folder / "index.npy", np.array(index, np.int64))
    np.save(folder / "tasks.npy", np.array(tasks, np.uint16))
    vocabulary = {"size": 192, "text": TEXT, "image": IMAGE, "audio": AUDIO, "turn_end": 2}
    meta = {
        "format": "m27-shard-1", "tasks": TASKS, "documents": documents, "tokens": index[-1],
        "vocabulary": vocabulary, "vocabulary_hash": "0", "unconditional": [1, 5, 2, 1, 6],
        "image_codec": "a", "audio_codec": "b",
    }  # fmt: skip
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def corpus(folder: Path) -> Corpus:
    """Two shards in `folder`."""
    return Corpus([write_shard(folder / f"shard{i}", 200 + 100 * i, i) for i in range(2)])


def decoder(rows: int = TEXT, **changes) -> Decoder:
    """A tiny frozen decoder, of text rows only, always the same, and lively enough to matter."""
    torch.manual_seed(0)
    size = dataclasses.replace(SIZES["tiny"], vocab_size=rows, **changes)
    model = Decoder(size).requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(5)
        else:
            parameter.copy_(torch.rand_like(parameter) + 0.5)
    return model


def config(**changes) -> TrainConfig:
    """Four steps of a few hundred tokens, in float32."""
    data = DataConfig(
        tasks={"draw": 2, "text": 1, "speak": 1}, drop_prompt=("draw",), drop_rate=0.5,
        row=256, rows=2, accumulate=2, pool=32, media_weights={"image": 0.5},
    )  # fmt: skip
    given = TrainConfig("tiny", steps=4, compile=False, log=("none",), lora=LoraConfig(rank=4), data=data)
    return dataclasses.replace(given, **changes)


def trainer(run: Path, shards: Corpus, settings: TrainConfig) -> Trainer:
    """A trainer as a new process would make it."""
    model = decoder() if settings.rows == "maps" else decoder(AUDIO[1])
    text = model.model.embed_tokens.weight
    if settings.rows == "free":
        rows: Rows = FreeRows(model, torch.float32)
    elif settings.rows == "frozen":
        rows = FrozenRows(text, torch.float32)
    else:
        rows = Rows(text, CONTROLS, (4, 4, 4), (4, 4, 2), torch.float32)
    return Trainer(settings, model, rows, shards, run, quiet=True)
