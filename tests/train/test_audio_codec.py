"""Training of the audio codec: the corpus, the loss, exact resumption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from m27.codec.audio import AudioCodec, AudioConfig
from m27.codec.whisper_encoder import WhisperEncoder
from m27.train.audio_codec import AudioTraining, Trainer, perplexity, rate, spectral_loss, train
from m27.train.audio_corpus import Corpus, prepare, strips

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
)


def clips() -> list[tuple[str, NDArray[np.float32]]]:
    """A few seconds of noise and tones from two sources."""
    rng = np.random.default_rng(0)
    hum = np.sin(np.arange(60_000) * 0.1).astype(np.float32) * 0.2
    hiss = [rng.normal(0, 0.1, size).astype(np.float32) for size in (9_000, 12_000, 200_000)]
    return [("esc10", hiss[0]), ("esc10", hiss[1]), ("esc10", hiss[2]), ("speech", hum)]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> AudioTraining:
    """A recipe over a prepared small corpus."""
    folder = tmp_path_factory.mktemp("audio")
    torch.manual_seed(0)
    teacher = WhisperEncoder(2, 32, 2, 600, final_norm=True)
    prepare(clips(), AudioCodec(SMALL), teacher, folder / "corpus")
    return AudioTraining(
        corpus=str(folder / "corpus"),
        run=str(folder / "run"),
        out=str(folder / "out"),
        steps=4,
        batch=2,
        codes=40,
        log_every=2,
        warmup=1,
        bf16=False,
    )


def test_strips_are_whole_codes_of_2_to_8_seconds() -> None:
    made = list(strips(clips(), 0))
    assert {source for source, _ in made} == {"esc10", "speech"}
    for _, wave in made:
        assert len(wave) % 400 == 0 and 32_000 <= len(wave) <= 128_000
        assert float(np.abs(wave).max()) <= 1


def test_corpus_gives_aligned_crops(recipe: AudioTraining) -> None:
    corpus = Corpus(Path(recipe.corpus), {"esc10": 1.0, "speech": 0.0})
    batch = corpus.batch(np.random.default_rng(0), 3, 40)
    assert batch.wave_BT.shape == (3, 16_000)
    assert batch.heard_BND.shape == batch.teacher_BND.shape == (3, 40, 32)
    assert batch.acoustic_BFM.shape == (3, 80, 224)
    again = corpus.batch(np.random.default_rng(0), 3, 40)
    assert torch.equal(batch.wave_BT, again.wave_BT)


def test_empty_corpus_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no clip"):
        prepare([], AudioCodec(SMALL), WhisperEncoder(1, 32, 2, 600), tmp_path / "none")


def test_spectral_loss_is_zero_for_the_same_wave_and_grows() -> None:
    wave = torch.randn(1, 8_000, generator=torch.Generator().manual_seed(0)) * 0.1
    same, louder, far = (spectral_loss(wave * gain, wave) for gain in (1.0, 1.5, 4.0))
    assert float(same[0]) == 0 and float(same[1]) == 0
    assert 0 < float(louder[0]) < float(far[0])
    assert 0 < float(louder[1]) < float(far[1])


def test_perplexity() -> None:
    assert perplexity(torch.zeros(10, dtype=torch.long), 8) == pytest.approx(1)
    assert perplexity(torch.arange(8), 8) == pytest.approx(8)


def test_rate_warms_up_and_falls() -> None:
    recipe = AudioTraining(lr=1.0, warmup=10)
    assert rate(0, 0, recipe) == pytest.approx(0.1)
    assert rate(100, 0, recipe) == pytest.approx(1)
    assert rate(100, 1.0, recipe) == pytest.approx(0.02)


def test_resumed_equals_uninterrupted(recipe: AudioTraining, tmp_path: Path) -> None:
    whole = Trainer(replace(recipe, run=str(tmp_path / "whole")))
    for _ in range(4):
        whole.train_step()
    first = Trainer(replace(recipe, run=str(tmp_path / "parts")))
    before = {k: v.clone() for k, v in first.learned.state_dict().items()}
    for _ in range(2):
        first.train_step()
    first.save()
    second = Trainer(replace(recipe, run=str(tmp_path / "parts"), seed=0))
    assert second.resume() and second.step == 2
    for _ in range(2):
        second.train_step()
    changed = 0
    for name, value in whole.learned.state_dict().items():
        assert torch.equal(value, second.learned.state_dict()[name]), name
        changed += int(not torch.equal(value, before[name]))
    assert changed > 20


def test_train_writes_codec_and_log(recipe: AudioTraining) -> None:
    path = train(recipe)
    assert path.is_file()
    codec = AudioCodec.load(path.parent)
    assert codec.encode(torch.zeros(1, 4_000)).shape == (1, 10)
    lines = (Path(recipe.run) / "log.jsonl").read_text().splitlines()
    assert len(lines) == 3 and codec.revision in lines[-1]
