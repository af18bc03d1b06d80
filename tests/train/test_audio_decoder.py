"""Second stage of the audio codec: codes stay, discriminators learn, a resumed run is the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from m27.codec.audio import AudioCodec, AudioConfig
from m27.codec.packing import CodecError
from m27.codec.whisper_encoder import WhisperEncoder
from m27.train.audio_adversary import Adversary, fool_loss, judge_loss, matching_loss
from m27.train.audio_codec import work
from m27.train.audio_corpus import Clip, prepare
from m27.train.audio_decoder import DecoderTrainer, DecoderTraining
from m27.train.audio_hearing import save_teacher

SMALL = AudioConfig(
    whisper_blocks=1,
    whisper_dim=32,
    whisper_heads=2,
    encoder_dim=16,
    encoder_blocks=1,
    decoder_dim=24,
    decoder_blocks=2,
    look_ahead=1,
    bands=16,
    refiner_dim=16,
    refiner_blocks=1,
)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> DecoderTraining:
    """A recipe over a prepared small corpus and a codec to begin from."""
    folder = tmp_path_factory.mktemp("decoder")
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    hum = np.sin(np.arange(60_000) * 0.1).astype(np.float32) * 0.2
    hiss = rng.normal(0, 0.1, 90_000).astype(np.float32)
    teacher = WhisperEncoder(2, 32, 2, 600, final_norm=True)
    clips = [Clip("esc10", hiss, "rain"), Clip("speech", hum)]
    codec = AudioCodec(SMALL)  # whose ear is the teacher's beginning, as prepared features expect
    heard = {k: v for k, v in teacher.state_dict().items() if k in codec.ear.state_dict()}
    codec.ear.load_state_dict(heard)
    prepare(clips, codec, teacher, folder / "corpus")
    return DecoderTraining(
        corpus=str(folder / "corpus"),
        run=str(folder / "run"),
        out=str(folder / "out"),
        begin=str(codec.save(folder / "begun")),
        steps=4,
        batch=2,
        codes=40,
        log_every=2,
        warmup=1,
        bf16=False,
        adversary_from=0.25,
        rows=1,
        samples=4_000,
        sizes=(256,),
        periods=(3,),
        width=4,
    )


def test_codes_stay_bit_for_bit_and_the_wave_changes(recipe: DecoderTraining) -> None:
    before = AudioCodec.load(Path(recipe.begin).parent)
    path = work(DecoderTrainer(recipe))
    assert path.name == "audio_codec_decoder.safetensors"
    after = AudioCodec.load(path.parent, name=path.name)
    wave = torch.randn(2, 20_000, generator=torch.Generator().manual_seed(0)) * 0.2
    codes = before.encode(wave)
    assert torch.equal(codes, after.encode(wave))
    assert before.codes_revision == after.codes_revision
    assert not torch.equal(before.decode(codes), after.decode(codes))
    assert after.refiner is not None and bool(after.refiner.out.weight.any())
    lines = (Path(recipe.run) / "log.jsonl").read_text().splitlines()
    assert "matching" in lines[1] and after.revision in lines[-1]


def test_codes_of_the_corpus_are_those_of_its_features(recipe: DecoderTraining) -> None:
    trainer = DecoderTrainer(recipe)
    corpus, codec = trainer.corpus, trainer.codec
    assert corpus.codes is not None and len(corpus.codes) == len(corpus.wave)
    first, last = (int(x) for x in corpus.starts[:2])
    wave = corpus.wave[first:last].flatten()[None].float() / 32_767
    agree = (codec.encode(wave)[0] == corpus.codes[first:last]).float().mean()
    assert float(agree) > 0.9  # features were rounded to half precision
    batch = corpus.batch(np.random.default_rng(0), 2, 40)
    assert batch.codes_BN is not None and batch.codes_BN.shape == (2, 40)


def test_a_step_in_bfloat16_is_finite(recipe: DecoderTraining, tmp_path: Path) -> None:
    trainer = DecoderTrainer(replace(recipe, bf16=True, run=str(tmp_path / "run")))
    row, _ = trainer.train_step()
    assert all(np.isfinite(list(row.values()))) and row["norm"] > 0


def test_resumed_equals_uninterrupted(recipe: DecoderTraining, tmp_path: Path) -> None:
    whole = DecoderTrainer(replace(recipe, run=str(tmp_path / "whole")))
    for _ in range(4):
        whole.train_step()
    first = DecoderTrainer(replace(recipe, run=str(tmp_path / "parts")))
    before = {k: v.clone() for k, v in first.learned.state_dict().items()}
    for _ in range(2):
        first.train_step()
    first.save()
    second = DecoderTrainer(replace(recipe, run=str(tmp_path / "parts")))
    assert second.resume() and second.step == 2
    for _ in range(2):
        second.train_step()
    changed = {"maker": 0, "adversary": 0}
    for name, value in whole.learned.state_dict().items():
        assert torch.equal(value, second.learned.state_dict()[name]), name
        changed[name.split(".")[0]] += int(not torch.equal(value, before[name]))
    assert min(changed.values()) > 5


def test_what_a_recogniser_hears_comes_nearer(recipe: DecoderTraining, tmp_path: Path) -> None:
    teacher = WhisperEncoder(2, 32, 2, 600, final_norm=True)
    save_teacher(teacher, tmp_path / "teacher.safetensors")
    deaf = replace(recipe, run=str(tmp_path / "run"), adversary_from=1.0, steps=30, lr=3e-3)
    losses = {}
    for hearing in (1e-6, 3.0):
        own = replace(deaf, teacher=str(tmp_path / "teacher.safetensors"), hearing=hearing)
        trainer = DecoderTrainer(own)
        rows = [trainer.train_step()[0] for _ in range(30)]
        losses[hearing] = float(sum(float(row["hearing"]) for row in rows[-6:]) / 6)
    assert losses[3.0] < 0.95 * losses[1e-6], losses


def test_hearing_without_a_teacher_is_an_error(recipe: DecoderTraining, tmp_path: Path) -> None:
    with pytest.raises(CodecError, match="nothing"):
        DecoderTrainer(replace(recipe, teacher=str(tmp_path / "nothing"), hearing=1.0))


def test_discriminators_learn_to_tell_tones_from_noise() -> None:
    torch.manual_seed(0)
    adversary = Adversary((256,), (2, 3), 4)
    optimizer = torch.optim.Adam(adversary.parameters(), 1e-2)
    time = torch.arange(1_600) / 16_000
    losses = []
    for _ in range(30):
        pitch = 100 + 400 * torch.rand(4, 1)
        real, made = torch.sin(2 * torch.pi * pitch * time) * 0.3, torch.randn(4, 1_600) * 0.2
        loss = judge_loss(adversary(real), adversary(made))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(2, abs=0.3) and losses[-1] < 0.6
    with torch.no_grad():
        right, wrong = adversary(real), adversary(made)
        assert float(fool_loss(right)) < 0.5 < float(fool_loss(wrong))
        assert float(matching_loss(right, right)) == 0 < float(matching_loss(right, wrong))
