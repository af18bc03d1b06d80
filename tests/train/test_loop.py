"""The loop as a whole: exact resumption, both passes alike, signals, the log."""

import dataclasses
import json
import os
import signal

import pytest
import torch

from m27.train import checkpoint
from m27.train.settings import SettingError
from tests.train import fixtures


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return fixtures.corpus(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory):
    """Four uninterrupted steps."""
    run = tmp_path_factory.mktemp("whole")
    return run, fixtures.trainer(run, shards, fixtures.config()).run()


def log(run):
    """The records of a run's log."""
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def same(left, right):
    assert left.keys() == right.keys()
    return all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(stop, shards, whole, tmp_path):
    first = fixtures.trainer(tmp_path, shards, fixtures.config()).run(until=stop)
    assert not first.finished
    assert first.step == stop
    second = fixtures.trainer(tmp_path, shards, fixtures.config()).run()
    assert second.finished
    assert second.tokens == whole[1].tokens
    assert same(second.trained, whole[1].trained)
    assert not same(first.trained, second.trained)


def test_a_kill_between_snapshots_loses_only_the_steps_since(shards, whole, tmp_path):
    trainer = fixtures.trainer(tmp_path, shards, fixtures.config())
    trainer.run(until=1)
    trainer.save = lambda: None  # killed before it could
    trainer.run(until=3)
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 3, "torn')
    result = fixtures.trainer(tmp_path, shards, fixtures.config()).run()
    assert same(result.trained, whole[1].trained)
    assert [record["step"] for record in log(tmp_path)] == [1, 2, 3, 4]


def test_fused_and_plain_pass_train_alike(shards, whole, tmp_path):
    plain = fixtures.trainer(tmp_path, shards, fixtures.config(path="plain")).run()
    for name, tensor in plain.trained.items():
        torch.testing.assert_close(tensor, whole[1].trained[name], rtol=1e-3, atol=1e-4)


def test_training_lowers_the_loss(shards, tmp_path):
    settings = fixtures.config(steps=20)
    fixtures.trainer(tmp_path, shards, settings).run()
    losses = [record["loss"] for record in log(tmp_path)]
    assert sum(losses[-3:]) / 3 < sum(losses[:3]) / 3 - 0.2


def test_the_log_tells_media_tasks_and_speed(whole):
    lines = log(whole[0])
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert set(lines[0]["media"]) == {"text", "control", "image", "audio"}
    assert set(lines[0]["tasks"]) == {"draw", "text", "speak"}
    assert lines[-1]["tokens"] == whole[1].tokens == 4 * 2 * 2 * 256
    assert lines[0]["tokens_per_second"] > 0


def test_sigterm_saves_and_ends_the_run(shards, whole, tmp_path):
    trainer = fixtures.trainer(tmp_path, shards, fixtures.config())
    usual = signal.getsignal(signal.SIGTERM)
    step = trainer._train_step

    def then_terminate(batches):
        record = step(batches)
        if trainer.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return record

    trainer._train_step = then_terminate
    result = trainer.run()
    assert (result.step, result.finished) == (2, False)
    assert signal.getsignal(signal.SIGTERM) == usual
    resumed = fixtures.trainer(tmp_path, shards, fixtures.config()).run()
    assert same(resumed.trained, whole[1].trained)


def test_two_snapshots_are_kept(shards, tmp_path):
    settings = fixtures.config(save_minutes=0.0)
    fixtures.trainer(tmp_path, shards, settings).run()
    assert [step for step, _ in checkpoint.steps(tmp_path)] == [3, 4]


def test_a_run_by_the_clock_decays_and_ends_in_time(shards, tmp_path):
    optim = dataclasses.replace(fixtures.config().optim, decay=0.5)
    settings = fixtures.config(steps=None, minutes=0.05, optim=optim)
    result = fixtures.trainer(tmp_path, shards, settings).run()
    assert result.finished
    assert result.seconds >= 3.0
    rates = [record["rate"] for record in log(tmp_path)]
    # A slow machine may do few steps; whatever it does, the last one lies in the decay.
    assert rates[-1] < 1.0  # of the peak


def test_other_shards_and_other_shapes_are_refused(shards, whole, tmp_path):
    other = fixtures.corpus(tmp_path / "other")
    other.fingerprint = "other"
    with pytest.raises(checkpoint.ResumeError, match="other shards"):
        fixtures.trainer(whole[0], other, fixtures.config())
    lora = dataclasses.replace(fixtures.config().lora, rank=8)
    with pytest.raises(checkpoint.ResumeError, match="lora_A"):
        fixtures.trainer(whole[0], shards, fixtures.config(lora=lora))


def test_a_run_of_no_length_is_refused(shards, tmp_path):
    with pytest.raises(SettingError, match="steps"):
        fixtures.trainer(tmp_path, shards, fixtures.config(steps=None))


def test_a_broken_snapshot_is_named(tmp_path):
    folder = tmp_path / "step-000004"
    folder.mkdir()
    (folder / "trained.safetensors").write_bytes(b"nonsense")
    with pytest.raises(checkpoint.ResumeError, match="step-000004"):
        checkpoint.latest(tmp_path)
    assert checkpoint.latest(tmp_path / "nowhere") is None
