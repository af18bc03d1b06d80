"""The loop as a whole: exact resumption, both passes alike, signals, the log."""

import dataclasses
import json
import os
import signal
import time

import numpy as np
import pytest
import torch

from m27.data.mixture import Corpus
from m27.model.packed import read_packed, save_packed
from m27.train import checkpoint
from m27.train.feed import by_thread
from m27.train.lora import LoraConfig
from m27.train.settings import SettingError
from m27.train.watch import Sample
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


def restricted(**changes):
    """Scored as the grammar will choose, and text also by its divergence from the base."""
    settings = fixtures.config(**changes)
    data = dataclasses.replace(
        settings.data, full_share=0.2, full_tasks=("speak",), kl_tasks={"text": 0.7}
    )
    return dataclasses.replace(settings, data=data)


@pytest.fixture
def with_text(tmp_path):
    """Shards whose documents of the task "text" hold text ids alone."""
    folder = fixtures.write_shard(tmp_path / "mixed", 200, 3)
    index, tasks = np.load(folder / "index.npy"), np.load(folder / "tasks.npy")
    tokens = np.fromfile(folder / "tokens.bin", np.uint32)
    for number in np.flatnonzero(tasks == fixtures.TASKS.index("text")):
        tokens[index[number] : index[number + 1]] %= fixtures.TEXT
    tokens.tofile(folder / "tokens.bin")
    return Corpus([folder])


def test_all_passes_train_alike_on_restricted_targets_and_divergence(with_text, tmp_path):
    results = {
        path: fixtures.trainer(tmp_path / path, with_text, restricted(path=path)).run()
        for path in ("fused", "merged", "plain")
    }
    assert all("divergence" in record for record in log(tmp_path / "fused"))
    for name, tensor in results["plain"].trained.items():
        torch.testing.assert_close(tensor, results["fused"].trained[name], rtol=1e-3, atol=1e-4)
        # Summed in another order: where a gradient is nearly nothing, AdamW makes a step of its sign.
        torch.testing.assert_close(tensor, results["merged"].trained[name], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("path", ["fused", "merged", "plain"])
def test_a_rehearsal_changes_nothing(with_text, tmp_path, path):
    whole = fixtures.trainer(tmp_path / "whole", with_text, restricted(path=path)).run()
    trainer = fixtures.trainer(tmp_path / "rehearsed", with_text, restricted(path=path))
    steps = trainer._rehearsed(trainer._steps())
    for _ in range(4):
        trainer._train_step(next(steps)[0])
    assert same(trainer.trained(), whole.trained)


def test_full_training_begins_where_the_adapters_ended_and_keeps_its_base(with_text, tmp_path):
    fixtures.trainer(tmp_path / "first", with_text, restricted()).run()
    lora = fixtures.trainer(tmp_path / "lora", with_text, restricted(path="plain", steps=5))
    full = fixtures.trainer(tmp_path / "full", with_text, restricted(body="full", steps=5))
    records = []
    for trainer in (lora, full):
        trainer.begin_from(tmp_path / "first")
        records.append(trainer._train_step(next(trainer._steps())[0]))
    assert records[1]["loss"] == pytest.approx(records[0]["loss"], rel=1e-3)
    # Text is held to the base as published, whatever the weights began with.
    assert records[1]["divergence"] == pytest.approx(records[0]["divergence"], rel=1e-2)
    name = "model.layers.0.mlp.down_proj.weight"
    before = full.parameters[name].detach().clone()
    full._train_step(next(full._steps())[0])
    assert not torch.equal(full.parameters[name], before)
    assert torch.equal(full.decoder.model.embed_tokens.weight, fixtures.decoder().model.embed_tokens.weight)


def test_a_frozen_body_stays_and_the_rows_learn(shards, tmp_path):
    trainer = fixtures.trainer(tmp_path, shards, fixtures.config(body="frozen"))
    before = trainer.trained()
    after = trainer.run().trained
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert {"control.weight", "image_map.linear.weight", "audio_map.linear.weight"} <= moved
    assert not any("lora" in name for name in moved)
    again = fixtures.trainer(tmp_path, shards, fixtures.config(body="frozen", steps=5)).run()
    assert (again.step, again.trained.keys()) == (5, after.keys())


@pytest.mark.parametrize("rank", [4, 6])
def test_a_run_begins_with_shipped_weights_as_they_are(rank, shards, whole, tmp_path):
    """Also of a smaller rank and another alpha: the model is the same to begin with."""
    out = tmp_path / "shipped"
    model = fixtures.decoder()
    save_packed(
        out, config=dataclasses.replace(model.config, vocab_size=192), trained=whole[1].trained,
        alpha=32.0, rank=4, image_levels=(4, 4, 4), audio_levels=(4, 4, 2), base=model.state_dict(),
    )  # fmt: skip
    lora = LoraConfig(rank=rank, alpha=12.0)
    trainer = fixtures.trainer(tmp_path / "run", shards, fixtures.config(lora=lora))
    trainer.begin_from(out)
    trainer.rows.refresh()
    _, state = read_packed(out)
    torch.testing.assert_close(
        trainer.rows.table_VD, state["model.embed_tokens.weight"], rtol=0, atol=1e-6
    )
    assert trainer.way.fused.layers[0].down.weight.shape
    for name in ("model.layers.0.mlp.down_proj", "model.layers.1.self_attn.q_proj"):
        a, b = trainer.adapters[name]
        merged = trainer.decoder.get_parameter(f"{name}.weight") + trainer.adapters.scale * b @ a
        torch.testing.assert_close(merged, state[f"{name}.weight"], rtol=0, atol=1e-5)


def test_a_run_begins_with_blocks_of_8_bits(shards, whole, tmp_path):
    """A shipped folder's blocks are read as numbers; untouched, they are shipped again bit by bit."""
    lora = LoraConfig(rank=32, alpha=32.0)
    trained, draw = dict(whole[1].trained), torch.Generator().manual_seed(0)
    model = fixtures.decoder()
    for name in [name for name in trained if ".lora_" in name]:
        shape = list(trained[name].shape)
        shape[0 if name.endswith("A") else 1] = lora.rank
        trained[name] = torch.randn(shape, generator=draw) * 0.05
    settings = {
        "config": dataclasses.replace(model.config, vocab_size=192), "alpha": 32.0, "rank": 32,
        "image_levels": (4, 4, 4), "audio_levels": (4, 4, 2),
    }  # fmt: skip
    out = tmp_path / "shipped"
    save_packed(out, trained=trained, base=model.state_dict(), **settings)
    before = (out / "trained.safetensors").read_bytes()
    assert b".lora_B.q" in before
    found = checkpoint.beginning(out)
    assert found.scale == 1.0
    assert found.trained.keys() == trained.keys()
    trainer = fixtures.trainer(tmp_path / "run", shards, fixtures.config(lora=lora))
    trainer.begin_from(out)
    begun = trainer.trained()
    for name in trained:
        assert torch.equal(begun[name], found.trained[name])
        error = (begun[name] - trained[name]).norm()
        assert error <= 0.01 * trained[name].norm()
    save_packed(out, trained=begun, **settings)
    assert (out / "trained.safetensors").read_bytes() == before


def test_what_does_not_fit_is_refused(shards, whole, tmp_path):
    lora = LoraConfig(rank=2)
    trainer = fixtures.trainer(tmp_path / "run", shards, fixtures.config(lora=lora))
    with pytest.raises(checkpoint.ResumeError, match="rank is 4"):
        trainer.begin_from(whole[0])
    with pytest.raises(checkpoint.ResumeError, match="neither"):
        trainer.begin_from(tmp_path)


def test_a_call_ends_after_its_minutes_and_the_next_goes_on(shards, whole, tmp_path):
    first = fixtures.trainer(tmp_path, shards, fixtures.config()).run(call_minutes=0.0)
    assert (first.step, first.finished) == (0, False)
    trainer = fixtures.trainer(tmp_path, shards, fixtures.config())
    step = trainer._train_step

    def slowly(batches):
        time.sleep(0.05)
        return step(batches)

    trainer._train_step = slowly
    second = trainer.run(call_minutes=0.01 / 60)
    assert (second.step, second.finished) == (1, False)
    third = fixtures.trainer(tmp_path, shards, fixtures.config()).run()
    assert same(third.trained, whole[1].trained)


def test_made_ahead_is_the_same_and_an_error_arrives():
    def items():
        yield from range(5)
        raise KeyError("torn")

    got = []
    with pytest.raises(KeyError, match="torn"):
        list(map(got.append, by_thread(items())))
    assert got == [0, 1, 2, 3, 4]


def test_samples_are_asked_for_in_time_and_at_the_end(shards, tmp_path):
    asked = []

    def sample(trained, step):
        asked.append((step, set(trained)))
        return [Sample("Draw <b>.", [("image", "data:image/png;base64,AA==")])]

    trainer = fixtures.trainer(tmp_path, shards, fixtures.config(sample_minutes=60.0))
    trainer.run(sample=sample)
    assert [step for step, _ in asked] == [4]
    assert asked[0][1] == set(trainer.parameters)
    page = (tmp_path / "watch.html").read_text()
    assert "Draw &lt;b&gt;." in page
    assert "data:image/png" in page


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
