"""Training of the audio codec: the corpus, the loss, exact resumption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from m27.codec.audio import AudioCodec, AudioConfig
from m27.codec.whisper_encoder import WhisperEncoder
from m27.train.audio_captions import CaptionHead, bag
from m27.train.audio_codec import AudioTraining, Trainer, rate, train
from m27.train.audio_corpus import Clip, Corpus, prepare, strips
from m27.train.audio_losses import perplexity, spectral_loss

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


def clips() -> list[Clip]:
    """A few seconds of noise and tones from two sources, one of them with a caption a clip."""
    rng = np.random.default_rng(0)
    hum = np.sin(np.arange(60_000) * 0.1).astype(np.float32) * 0.2
    hiss = [rng.normal(0, 0.1, size).astype(np.float32) for size in (9_000, 12_000, 200_000)]
    noise = [Clip("esc10", wave, f"rain key{i}") for i, wave in enumerate(hiss)]
    return [*noise, Clip("speech", (hum * 32_767).astype(np.int16))]


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


def test_strips_are_whole_codes_and_know_where_their_clips_are() -> None:
    made = list(strips(clips(), 0))
    assert {strip.source for strip in made} == {"esc10", "speech"}
    for strip in made:
        assert len(strip.wave) % 400 == 0 and 25_600 <= len(strip.wave) <= 128_000
        assert float(np.abs(strip.wave).max()) <= 1
        for first, last, _ in strip.spans:
            assert 0 <= first < last <= len(strip.wave) // 400
            assert float(np.abs(strip.wave[first * 400 : last * 400]).mean()) > 1e-4
    texts = {text for strip in made for *_, text in strip.spans}
    assert texts == {"rain key0", "rain key1", "rain key2"}


def test_joined_clips_have_a_span_each() -> None:
    rng = np.random.default_rng(1)
    many = [Clip("w", rng.normal(0, 0.1, 8_000).astype(np.float32), str(i)) for i in range(40)]
    joined = [strip for strip in strips(many, 0) if len(strip.spans) > 1]
    assert joined
    for strip in joined:
        heard = np.abs(strip.wave).reshape(-1, 400).mean(1) > 1e-5
        for first, last, text in strip.spans:
            assert heard[first + 1 : last - 1].all() and text.isdigit()
        pauses = [b[0] - a[1] for a, b in zip(strip.spans, strip.spans[1:], strict=False)]
        assert min(pauses) >= 0


def test_corpus_gives_aligned_crops(recipe: AudioTraining) -> None:
    corpus = Corpus(Path(recipe.corpus), {"esc10": 1.0, "speech": 0.0})
    batch = corpus.batch(np.random.default_rng(0), 3, 40, others=5)
    assert batch.wave_BT.shape == (3, 16_000)
    assert batch.heard_BND.shape == batch.teacher_BND.shape == (3, 40, 32)
    assert batch.acoustic_BFM.shape == (3, 80, 224)
    again = corpus.batch(np.random.default_rng(0), 3, 40)
    assert torch.equal(batch.wave_BT, again.wave_BT)
    stored = np.fromfile(Path(recipe.corpus) / "wave.bin", np.int16).astype(np.float32) / 32_767
    sound = batch.wave_BT[0].numpy()
    at = [i for i in range(0, len(stored) - 16_000, 400) if stored[i] == sound[0]]
    assert any(np.array_equal(stored[i : i + 16_000], sound) for i in at)
    assert batch.spans and len(batch.others) == 5
    assert {text.split()[0] for *_, text in batch.spans} == {"rain"}
    assert all(0 <= a < b <= 40 and 0 <= row < 3 for row, a, b, _ in batch.spans)


def test_captions_name_keys_in_half_of_the_batches(recipe: AudioTraining) -> None:
    corpus = Corpus(Path(recipe.corpus), {"esc10": 1.0})
    seen = {
        text
        for seed in range(20)
        for *_, text in corpus.batch(np.random.default_rng(seed), 2, 40).spans
    }
    assert "rain" in seen and len(seen) > 1


def test_caption_loss_is_learned_and_ignores_equals() -> None:
    torch.manual_seed(0)
    head = CaptionHead(3, 32, 16)
    q = torch.randn(4, 6, 3).sign()
    q[2:] = -q[:2].flip(0)
    sounding = torch.ones(4, 6, dtype=torch.bool)
    spans = [(row, 0, 6, text) for row, text in enumerate(["a cat", "rain", "a dog", "wind"])]
    optimizer = torch.optim.Adam(head.parameters(), 1e-2)
    values = []
    for _ in range(60):
        loss = head(q, sounding, spans, ["bells", "rain"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(float(loss.detach()))
    assert values[-1] < 0.1 * values[0]
    assert float(head(q, sounding, [], ["rain"])) == 0
    twins = [(0, 0, 6, "rain"), (1, 0, 6, "rain")]
    assert float(head(q, sounding, twins, ["rain"]).detach()) == pytest.approx(0, abs=1e-5)
    quiet = sounding.clone()
    quiet[0, 3:] = False
    louder = q.clone()
    louder[0, 3:] = 5.0  # where nothing sounds, codes do not count
    assert torch.equal(head(q, quiet, spans, []), head(louder, quiet, spans, []))


def test_bag_is_of_words() -> None:
    assert bag("A Cat!") == bag("a cat") and len(bag("a cat")) == 2 and bag("") == (0,)


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


def test_begins_from_a_codec(recipe: AudioTraining, tmp_path: Path) -> None:
    torch.manual_seed(5)
    file = AudioCodec(SMALL).save(tmp_path / "first")
    trainer = Trainer(replace(recipe, begin=str(file), run=str(tmp_path / "run")))
    wanted = AudioCodec.load(file.parent).encoder.state_dict()
    for name, value in trainer.codec.encoder.state_dict().items():
        assert torch.equal(value, wanted[name]), name


def test_a_step_in_bfloat16_is_finite(recipe: AudioTraining, tmp_path: Path) -> None:
    trainer = Trainer(replace(recipe, bf16=True, run=str(tmp_path / "run")))
    row, _ = trainer.train_step()
    assert all(np.isfinite(list(row.values()))) and row["norm"] > 0


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
