"""The audio recipes: notes that hold nothing held out, probes with intervals, the ablation's table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from m27.codec.audio import AudioCodec, AudioConfig
from m27.codec.whisper_encoder import WhisperEncoder
from m27.data.sources import instruments
from m27.data.sources.base import Item
from m27.train.audio_corpus import Clip, prepare
from recipes import audio_ablation, audio_codec, audio_notes, audio_probes, audio_report

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


class Font:
    """A bank whose notes say which program and key they are."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def note(
        self, program: int, key: int, velocity: int, held: float, seconds: float
    ) -> NDArray[np.float32]:
        self.asked.append((program, key))
        return np.sin(np.arange(int(seconds * 16_000)) * 0.1).astype(np.float32)


def test_notes_hold_no_held_out_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    font = Font()
    monkeypatch.setattr(instruments, "bank", lambda package: font)
    monkeypatch.setattr(audio_notes, "SECONDS", 0.1)
    made = list(audio_notes.notes())
    held = instruments.held_pairs()
    programs = {program: name for name, (program, _, _) in instruments.INSTRUMENTS.items()}
    for program, key in font.asked:
        if program in programs:
            assert f"{programs[program]} {key}" not in held
        else:  # of its group of eight programs, no instrument holds this key out
            for other, name in programs.items():
                assert other // 8 != program // 8 or f"{name} {key}" not in held
    assert len(made) == len(font.asked) > 700
    assert {len(clip.samples) for clip in made} == {1_600}
    assert any(clip.text == "" for clip in made)


def test_captions_of_items() -> None:
    note = Item("x/1", "cello 48", "cello", meta={"instrument": "cello", "key": 48})
    phrase = Item("x/2", "oboe phrase", "oboe", meta={"instrument": "oboe", "keys": [60, 62]})
    assert audio_notes.caption(note) == "cello cello bowed key48"
    assert audio_notes.caption(phrase) == "oboe oboe woodwind key60 key62"
    assert audio_notes.caption(Item("x/3", "rain", "rain")) == "rain"
    assert set(audio_notes.FAMILY) == set(instruments.INSTRUMENTS)


def test_a_probe_reads_what_is_there_and_says_how_sure() -> None:
    draw = torch.Generator().manual_seed(0)
    names = [str(i % 4) for i in range(200)]
    rows = [
        (
            name,
            torch.nn.functional.one_hot(torch.tensor(int(name)), 4)
            + torch.randn(4, generator=draw) * 0.1,
        )
        for name in names
    ]
    found = audio_probes.score(rows[:100], [*rows[100:], ("never trained on", torch.zeros(4))])
    low, high = found["interval"]
    assert found["accuracy"] == 1 and low < 1 == high and found["tested"] == 100
    blind = [(name, torch.randn(4, generator=draw)) for name in names]
    assert audio_probes.score(blind[:100], blind[100:])["accuracy"] < 0.5


def test_timbre_ignores_loudness() -> None:
    wave = torch.randn(1, 16_000, generator=torch.Generator().manual_seed(0)) * 0.1
    dull = torch.nn.functional.avg_pool1d(wave, 5, 1, 2)
    assert audio_report.timbre(wave, wave * 0.3) < 0.01
    assert audio_report.timbre(wave, dull) > 3


def test_until_is_the_next_such_time() -> None:
    assert -1 <= audio_codec.until("00:00") < 24 * 60
    assert audio_codec.until("12:00") != audio_codec.until("13:00")


def test_the_decoder_stage_needs_a_codec(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        audio_codec.main(["--stage", "decoder"])
    assert "--begin FILE" in capsys.readouterr().err


def test_ablation_trains_three_and_writes_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    hiss = rng.normal(0, 0.1, 60_000).astype(np.float32)
    teacher = WhisperEncoder(2, 32, 2, 600, final_norm=True)
    sounds = [Clip("esc10", hiss[:30_000], "rain"), Clip("esc10", hiss[30_000:], "sea waves")]
    prepare(sounds, AudioCodec(SMALL), teacher, tmp_path / "corpus")
    items = [Item(f"esc10/{i}", str(i % 2), "", audio=hiss[i * 4_000 :][:4_000]) for i in range(8)]
    monkeypatch.setattr(audio_ablation, "chosen", lambda *_: items[:2])
    monkeypatch.setattr(audio_probes, "chosen", lambda *_: items)
    one = {"esc10": audio_probes.PROBES["esc10"]}
    monkeypatch.setattr(audio_probes, "PROBES", one)
    monkeypatch.setattr(
        audio_ablation,
        "probes",
        lambda codec, count, mel, ear: audio_probes.probes(codec, count, one, mel, ear),
    )
    out = tmp_path / "result"
    arguments = {"--steps": 2, "--batch": 1, "--codes": 40, "--out": out, "--run": tmp_path / "run"}
    arguments["--corpus"] = tmp_path / "corpus"
    audio_ablation.main([str(x) for pair in arguments.items() for x in pair])
    made = json.loads(out.with_suffix(".json").read_text())
    assert list(made["variants"]) == ["no teacher", "teacher", "teacher and captions"]
    assert len({v["revision"] for v in made["variants"].values()}) == 3
    lines = out.with_suffix(".md").read_text().splitlines()
    assert len(lines) == 5 and all(line.count("|") == 5 for line in lines)
