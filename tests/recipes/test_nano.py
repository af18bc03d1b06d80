"""The recipe is one typed config, and its run resumes: two steps, save, two more, equal to four."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from m27.data.prompts import PROMPTS
from m27.train.lora import LoraConfig
from m27.train.settings import DataConfig, SettingError
from recipes import base, nano
from tests.train import fixtures

TEXT = fixtures.TEXT
IMAGE = (TEXT + 128, TEXT + 128 + 16384)
AUDIO = (IMAGE[1], IMAGE[1] + 8192)


WRITE = nano.write  # the runs below are made not to write


class Named:
    """Stands for a processor, of which only the vocabulary is asked for."""

    vocabulary = None


class ToyBase:
    """Stands for the published file."""

    def config(self):
        return fixtures.decoder().config

    def state_dict(self):
        return fixtures.decoder().state_dict()


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "open_gguf", ToyBase)
    monkeypatch.setattr(nano, "write", lambda recipe: None)
    monkeypatch.setattr("m27.runtime.set_threads", lambda count: count)
    for name in ("emoji", "speech"):
        folder = fixtures.write_shard(tmp_path / "shards" / name, 150, len(name))
        tokens = np.fromfile(folder / "tokens.bin", np.uint32).astype(np.int64)
        tokens[tokens >= fixtures.IMAGE[0]] += IMAGE[0] - fixtures.IMAGE[0]
        tokens.astype(np.uint32).tofile(folder / "tokens.bin")
        meta = json.loads((folder / "meta.json").read_text())
        meta["vocabulary"] |= {"size": AUDIO[1], "text": TEXT, "image": IMAGE, "audio": AUDIO}
        (folder / "meta.json").write_text(json.dumps(meta))
    data = DataConfig(tasks={"draw": 2, "speak": 1}, drop_prompt=("draw",), row=256, accumulate=1)
    run = replace(
        nano.nano().train, steps=4, minutes=None, compile=False, dtype="float32", data=data,
        lora=LoraConfig(rank=2),
    )  # fmt: skip
    return replace(
        nano.nano(), train=run, shards=tmp_path / "shards", runs=tmp_path / "runs",
        out=tmp_path / "out",
    )  # fmt: skip


def test_two_steps_saved_and_resumed_equal_four(recipe, tmp_path):
    whole = nano.train(replace(recipe, runs=tmp_path / "whole"))
    assert whole.finished
    assert nano.train(recipe, until=2).step == 2
    resumed = nano.train(recipe)
    assert resumed.step == 4
    assert all(torch.equal(resumed.trained[k], whole.trained[k]) for k in whole.trained)


def test_the_recipe_names_tasks_and_makers_that_exist():
    recipe = nano.nano()
    tasks = recipe.train.data.tasks
    assert set(PROMPTS) <= set(tasks)
    assert set(recipe.train.data.drop_prompt) <= set(tasks)
    for name in recipe.sources:
        assert callable(nano.maker(name))
    with pytest.raises(SettingError, match="weather"):
        nano.maker("weather")


def test_the_default_run_is_the_shipped_one():
    run = nano.nano().train
    assert (run.minutes, run.steps, run.data.accumulate, run.data.row) == (65, None, 1, 2048)
    rates = run.optim.lr, run.optim.map_lr, run.optim.control_lr
    assert rates == (5e-4, 6e-4, 6e-4)
    assert (run.optim.warmup, run.optim.decay) == (0.03, 0.3)


def test_the_rank_written_is_that_of_the_run(recipe, monkeypatch):
    run = replace(recipe.train, lora=LoraConfig(rank=3, alpha=5))
    nano.train(replace(recipe, train=run))
    written = {}
    monkeypatch.setattr(nano, "save_packed", lambda out, **given: written.update(given))
    monkeypatch.setattr(nano.Processor, "load", lambda folder: Named)
    monkeypatch.setattr(base, "nano_config", lambda gguf, vocabulary: None)
    WRITE(recipe)
    assert recipe.train.lora.rank == 2
    assert (written["rank"], written["alpha"]) == (3, 5)


def test_an_unknown_setting_is_a_status_2_that_names_the_nearest(capsys):
    assert nano.main(["--stage", "train", "--set", "optim.learning=1"]) == 2
    assert "optim.learning" in capsys.readouterr().err
    assert nano.main(["--stage", "build", "--only", "weather"]) == 2
    assert "weather" in capsys.readouterr().err
