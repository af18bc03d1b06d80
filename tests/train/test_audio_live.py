"""Training of the audio codec from waves alone: what is heard, exact resumption, no step that waits for its device."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from m27.codec import packing
from m27.codec.audio import AudioCodec
from m27.codec.whisper_encoder import WhisperEncoder
from m27.train.audio_codec import work
from m27.train.audio_hearing import hearing_loss, load_teacher, save_teacher
from m27.train.audio_live import LiveCorpus, LiveTrainer, LiveTraining, altered
from tests.train.test_audio_codec import SMALL, clips


def without_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch has no autocast on a device that only has shapes."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())


@pytest.fixture
def recipe(tmp_path: Path) -> LiveTraining:
    """A codec to begin with and a teacher that goes on from its ear, on disk."""
    torch.manual_seed(0)
    codec = AudioCodec(SMALL)
    file = codec.save(tmp_path / "begin")
    teacher = WhisperEncoder(2, 32, 2, 600, final_norm=True)
    ear = {f"{k}": v for k, v in codec.ear.state_dict().items()}
    teacher.load_state_dict(ear, strict=False)
    save_teacher(teacher, tmp_path / "teacher.safetensors")
    return LiveTraining(
        begin=str(file), teacher=str(tmp_path / "teacher.safetensors"), run=str(tmp_path / "run"),
        out=str(tmp_path / "out"), shape=(16, 1, 24, 2, 16, 1), steps=3, batch=3, codes=40, heard_rows=2,
        rows=2, samples=6_400, width=4, sizes=(256,), periods=(3,), adversary_from=0.3, negatives=4,
        device="cpu", bf16=False, warmup=1, log_every=1,
    )  # fmt: skip


def trainer(recipe: LiveTraining, device: str = "cpu") -> LiveTrainer:
    corpus = LiveCorpus(clips(), {"esc10": 1.0}, device)
    teacher = load_teacher(Path(recipe.teacher), SMALL)
    return LiveTrainer(replace(recipe, device=device), corpus, teacher)


def test_resumed_equals_uninterrupted_and_writes_a_codec(recipe: LiveTraining) -> None:
    whole = trainer(recipe)
    file = work(whole)
    first = trainer(replace(recipe, run=recipe.run + "-parts"))
    first.train_step()
    first.save()
    second = trainer(replace(recipe, run=recipe.run + "-parts"))
    assert second.resume() and second.step == 1
    rows = [second.train_step()[0] for _ in range(2)]
    for name, value in whole.learned.state_dict().items():
        assert torch.equal(value, second.learned.state_dict()[name]), name
    assert {"hearing", "judge", "fool", "matching", "captions"} <= set(rows[-1])
    assert all(np.isfinite(float(value)) for value in rows[-1].values())
    made = AudioCodec.load(file.parent)
    assert made.config.vocoder == "istft" and made.config.encoder_dim == 16
    assert made.decode(made.encode(torch.zeros(1, 8_000))).shape == (1, 8_000)


def test_no_step_waits_for_its_device(
    recipe: LiveTraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device with shapes and no values, a value that the host asks for and a tensor left elsewhere are errors."""
    without_autocast(monkeypatch)
    one = trainer(recipe, "meta")
    one.step = 2
    row, codes = one.train_step()
    assert "judge" in row and codes.device.type == "meta" and codes.shape == (3, 40)
    assert all(not isinstance(v, torch.Tensor) or v.device.type == "meta" for v in row.values())


def test_what_whisper_hears_is_what_training_hears(recipe: LiveTraining) -> None:
    """The states of a crop are those that the codec finds when it encodes that crop."""
    codec = AudioCodec.load(Path(recipe.begin).parent)
    corpus = LiveCorpus(clips(), {"esc10": 1.0}, "cpu")
    corpus.hears_with(load_teacher(Path(recipe.teacher), SMALL), SMALL.whisper_blocks, False)
    batch = corpus.batch(np.random.default_rng(1), 2, 40)
    heard, acoustic = codec.features(batch.wave_BT)
    assert torch.allclose(batch.heard_BND, heard, atol=2e-2)
    assert torch.allclose(batch.acoustic_BFM, acoustic, atol=1e-4)
    assert float(batch.wave_BT.abs().max()) <= 0.981


def test_hearing_loss_is_zero_for_the_same_wave_and_its_gradient_brings_waves_nearer() -> None:
    torch.manual_seed(0)
    teacher = WhisperEncoder(2, 32, 2, 600, final_norm=True).requires_grad_(False)
    given = torch.randn(2, 8_000) * 0.1
    assert float(hearing_loss(teacher, given, given, (1,), False)) == 0
    made: Any = (given + torch.randn(2, 8_000) * 0.05).requires_grad_()
    far = hearing_loss(teacher, made, given, (1,), False)
    (gradient,) = torch.autograd.grad(far, made)
    near = made.detach() - gradient * 1e-3 / gradient.norm()
    assert float(hearing_loss(teacher, near, given, (1,), False)) < float(far.detach())


def test_altered_keeps_within_full_scale() -> None:
    wave = torch.randn(3, 400)
    out = altered(wave, torch.tensor([0.0, 0.5, -0.5]), torch.tensor([1.0, 4.0, 0.1]))
    assert float(out.abs().max()) <= 0.981
    same = altered(wave[:1] * 0.1, torch.zeros(1), torch.ones(1))
    assert torch.allclose(same, wave[:1] * 0.1)


def test_a_teacher_reads_as_it_was_written(tmp_path: Path) -> None:
    teacher = WhisperEncoder(2, 32, 2, 600, final_norm=True)
    save_teacher(teacher, tmp_path / "t.safetensors")
    wanted = packing.unpack(packing.pack(teacher.state_dict()))
    for name, value in load_teacher(tmp_path / "t.safetensors", SMALL).state_dict().items():
        assert torch.equal(value, wanted[name]), name


@pytest.mark.slow
def test_a_step_in_bfloat16_is_near_one_in_float32(recipe: LiveTraining) -> None:
    """What a GPU computes in: no operation meets two dtypes, and losses are those of float32 but for rounding."""
    rows = []
    for bf16 in (False, True):
        one = trainer(replace(recipe, bf16=bf16))
        rows.append([one.train_step()[0] for _ in range(3)][-1])
    assert rows[0].keys() == rows[1].keys()
    for name in ("spectrum", "hearing", "loss"):
        assert float(rows[1][name]) == pytest.approx(float(rows[0][name]), rel=0.1), name
