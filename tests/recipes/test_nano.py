"""The recipe is one typed config, and its run resumes: two steps, save, two more, equal to four."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from m27.data.prompts import PROMPTS
from m27.model.packed import save_packed
from m27.train.lora import LoraConfig
from m27.train.settings import DataConfig, SettingError
from recipes import base, nano, stages
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
    monkeypatch.setattr(nano, "sampling", lambda recipe: None)
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
        stages.joint().train, steps=4, minutes=None, compile=False, dtype="float32", data=data,
        lora=LoraConfig(rank=2),
    )  # fmt: skip
    return replace(
        stages.joint(), train=run, shards=tmp_path / "shards", runs=tmp_path / "runs",
        out=tmp_path / "out",
    )  # fmt: skip


def test_two_steps_saved_and_resumed_equal_four(recipe, tmp_path):
    whole = nano.train(replace(recipe, runs=tmp_path / "whole"))
    assert whole.finished
    assert nano.train(recipe, until=2).step == 2
    resumed = nano.train(recipe)
    assert resumed.step == 4
    assert all(torch.equal(resumed.trained[k], whole.trained[k]) for k in whole.trained)


def test_every_stage_names_tasks_and_makers_that_exist():
    for name, stage in stages.STAGES.items():
        recipe = stage()
        tasks = recipe.train.data.tasks
        known = {task.split("/")[0] for task in PROMPTS} | {"scene_questions", "instrument_questions"}
        assert known >= set(tasks)
        assert set(recipe.train.data.drop_prompt) <= set(tasks) | {"story_page", "picture_for_sound"}
        assert set(recipe.train.data.kl_tasks) | set(recipe.train.data.full_tasks) <= set(tasks)
        assert recipe.train.name == "m27-nano" if name == "joint" else recipe.train.name.endswith(name)
        for source in recipe.sources:
            assert callable(nano.maker(source))
    assert {task.split("/")[0] for task in PROMPTS} == set(stages.JOINT)
    with pytest.raises(SettingError, match="weather"):
        nano.maker("weather")


def test_stages_follow_each_other(recipe, tmp_path):
    """Each begins with what the one before it left; the first with the shipped weights or captions."""
    first = replace(recipe, train=replace(recipe.train, name="m27-nano-projections", body="frozen"))
    assert nano.begins_with(first) is None
    before = nano.train(replace(first, begin=()))
    assert nano.begins_with(recipe) == recipe.runs / "m27-nano-projections"
    trainer = nano.open_trainer(recipe)
    assert trainer.step == 0
    held = trainer.trained()
    assert all(torch.equal(held[name], tensor) for name, tensor in before.trained.items())
    assert nano.newest(recipe).train.name == "m27-nano-projections"
    save_packed(
        tmp_path / "shipped", config=fixtures.decoder().config, trained=before.trained, alpha=1,
        rank=2, image_levels=base.IMAGE_LEVELS, audio_levels=base.AUDIO_LEVELS,
        base=fixtures.decoder().state_dict(),
    )  # fmt: skip
    new = replace(recipe, runs=tmp_path / "new", out=tmp_path / "shipped")
    assert nano.begins_with(new) == tmp_path / "shipped"
    assert nano.begins_with(replace(new, shipped=False)) is None
    assert nano.begins_with(replace(new, begin=(str(tmp_path / "shipped"),), shipped=False)) is not None


def test_a_gpu_takes_more_tokens_a_step():
    recipe = stages.on_gpu(stages.joint())
    data, run = recipe.train.data, recipe.train
    assert data.row * data.rows * data.accumulate == 65_536
    assert (run.device, run.optim.lr) == ("cuda", 2 * stages.joint().train.optim.lr)


def test_a_shipped_log_is_thinned_and_whole(tmp_path):
    lines = [json.dumps({"step": n}) for n in range(1, 1002)]
    (tmp_path / "log.jsonl").write_text("\n".join(lines) + "\n")
    nano.ship_log(tmp_path / "log.jsonl", tmp_path / "out.jsonl")
    steps = [json.loads(line)["step"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(steps) <= nano.LOG_LINES + 1
    assert (steps[0], steps[-1]) == (1, 1001)
    nano.ship_log(tmp_path / "none.jsonl", tmp_path / "none")
    assert not (tmp_path / "none").exists()


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
    assert nano.main(["--stage", "joint", "--set", "optim.learning=1"]) == 2
    assert "optim.learning" in capsys.readouterr().err
    assert nano.main(["--stage", "build", "--only", "weather"]) == 2
    assert "weather" in capsys.readouterr().err


def test_a_share_takes_fewer_documents_of_every_source(monkeypatch, capsys):
    seen = {}

    def build(recipe, only, jobs):
        seen.update(recipe.sources)
        return True

    monkeypatch.setattr(nano, "build", build)
    assert nano.main(["--stage", "build", "--share", "0.25"]) == 0
    whole = stages.joint().sources
    assert seen.keys() == whole.keys()
    assert all(seen[name] == -(-whole[name] // 4) for name in whole)
    assert nano.main(["--stage", "build", "--share", "0"]) == 2
    assert "--share" in capsys.readouterr().err
