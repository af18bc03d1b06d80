"""The day of a lease at tiny scale: loads in single pieces, codecs in the background, codes put in, a stage trained."""

from __future__ import annotations

import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from m27.data import registry, templates
from m27.data.sources import sentences
from m27.data.sources.speech import OWN
from m27.language.processor import Processor
from m27.train.audio_corpus import Clip
from m27.train.image_data import Pictures
from m27.train.lora import LoraConfig
from m27.train.settings import DataConfig
from recipes import codec_corpora, lease, lease_day, stages
from tests import tiny
from tests.data.test_templates import LEVELS, documents, tone


def test_corpora_come_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (5, 32, 32, 3), dtype=np.uint8)
    groups = {"emoji": Pictures("emoji", pixels, list("abcde"), 0.5)}
    assert codec_corpora.write_pictures(groups, tmp_path / "p") == 5
    (back,) = codec_corpora.read_pictures(tmp_path / "p", 2)
    assert (back.kind, list(back.captions), back.weight) == ("emoji", list("abcde"), 0.5)
    assert (
        back.pixels.shape == pixels.shape and np.abs(back.pixels.astype(int) - pixels).mean() < 60
    )
    quiet = (tone(0.5) * 32_767).astype(np.int16)
    clips = [Clip("esc10", tone(1.0), "rain"), Clip("speech", quiet), Clip("speech", quiet, "a")]
    hours = codec_corpora.write_sounds(clips, tmp_path / "s", 1.2 / 3600)
    assert hours == pytest.approx(1.5 / 3600)  # the clip that fills it is the last
    made = list(codec_corpora.read_sounds(tmp_path / "s", 2))
    assert [(clip.source, clip.text, len(clip.samples)) for clip in made] == [
        ("esc10", "rain", 16_000), ("speech", "", 8_000),
    ]  # fmt: skip


def test_a_load_is_whole_when_its_last_piece_has_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_day, "LOADS", {"a": ("one", "two"), "b": ("none",)})
    (tmp_path / "here" / "one").mkdir(parents=True)
    (tmp_path / "here" / "one" / "x").write_bytes(bytes(range(250)) * 4)
    (tmp_path / "here" / "two").write_bytes(b"two")
    sizes = lease_day.pack(tmp_path / "out", tmp_path / "here", 400)
    assert sizes == {"a": [400, 400, 203]}
    there, work = tmp_path / "there", tmp_path / "work"
    there.mkdir()
    for number in range(3):  # each call brings one piece, and the folder of the last one is gone
        (tmp_path / "out" / f"a-{number}").rename(there / f"a-{number}")
        assert lease_day.unpack(there / f"a-{number}", work) == (number == 2)
        shutil.rmtree(there / f"a-{number}")
    assert (work / "one" / "x").read_bytes() == bytes(range(250)) * 4
    assert (work / "two").read_bytes() == b"two"
    with pytest.raises(lease.LeaseError, match="no such load"):
        lease_day.unpack(there / "z", work)


def test_what_runs_in_the_background_says_how_it_ended(tmp_path: Path) -> None:
    lease_day.background(tmp_path, "good", ["-c", "print('it\\'s', 6 * 7)"])
    lease_day.background(tmp_path, "bad", ["-c", "raise SystemExit(3)"])
    assert lease_day.wait(tmp_path, ["good", "bad"], 60) == {"good": 0, "bad": 3}
    assert (tmp_path / "good.log").read_text() == "it's 42\n"
    lease_day.background(tmp_path, "good", ["-c", "print('again')"])  # begun once only
    assert lease_day.wait(tmp_path, ["good", "none"], 0) == {"good": 0, "none": None}
    assert (tmp_path / "good.log").read_text() == "it's 42\n"


def test_a_part_of_speech_that_fails_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lease_day, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(2))
    said_by = lambda call: f"part {call[1]}: FAILED: no voice" if call[1] else "speech"  # noqa: E731
    monkeypatch.setattr(lease_day, "_speech_part", said_by)
    assert lease_day.main(["speech", "--work", str(tmp_path), "--parts", "2"]) == 2
    said = capsys.readouterr().err
    assert "part 2: FAILED: no voice" in said and "2 of 3 parts of speech failed" in said


def test_finish_puts_codes_in_and_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Templates and a model that were carried; the codecs are those of the folder, since none was trained."""
    work = tmp_path / "work"
    tiny.write_model(work / "weights" / "m27-nano")
    folder = work / ".cache" / "lease" / "templates" / "emoji"
    plain = Processor(tiny.TOKENIZER, tiny.VOCABULARY)
    templates.build(documents(), plain, LEVELS, folder)
    monkeypatch.setattr(Processor, "load", classmethod(lambda cls, where: tiny.processor()))

    def small() -> stages.NanoRecipe:
        recipe = stages.whole()
        data = DataConfig(tasks={"see": 1, "play": 1}, row=512, pool=4)
        run = replace(
            recipe.train, minutes=None, steps=2, lora=LoraConfig(rank=2), data=data, path="auto",
            compile=False, dtype="float32", threads=1,
        )  # fmt: skip
        return replace(recipe, train=run, warm_start=False)

    monkeypatch.setattr(stages, "STAGES", {"whole": small})
    monkeypatch.setattr("recipes.base.IMAGE_LEVELS", tiny.IMAGE_LEVELS)
    monkeypatch.setattr("recipes.base.AUDIO_LEVELS", tiny.AUDIO_LEVELS)
    monkeypatch.setattr("m27.runtime.set_threads", lambda count: count)
    lease_day.background(work, "image", ["-c", "pass"])
    call = ["finish", "--work", str(work), "--wait", "image", "--minutes", "5", "--device", "cpu"]
    assert lease_day.main([*call, "--back", str(tmp_path / "back"), "--set", "steps=2"]) == 0
    shard = work / ".cache" / "shards" / "whole" / "emoji"
    assert json.loads((shard / "meta.json").read_text())["image_codec"] != templates.PENDING
    home = tmp_path / "home"
    lease.unpack(tmp_path / "back", home)
    assert (home / "weights" / "m27-nano" / "trained.safetensors").is_file()
    assert (home / "image.log").is_file()
    assert len((home / "runs" / "m27-nano-whole" / "log.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("job", list(lease_day.JOBS))
def test_jobs_are_commands_that_can_be_typed(job: str) -> None:
    module, *words = lease_day.JOBS[job]
    source = (Path(__file__).parents[2] / (module.replace(".", "/") + ".py")).read_text()
    assert [w for w in words if w.startswith("--") and f'"{w}"' not in source] == []


def test_names_that_the_plan_types_are_there() -> None:
    root = Path(__file__).parents[2]
    for words in lease_day.LOADS.values():
        for path in words:
            assert path.startswith(".cache/") or (root / path).exists(), path
    carried = {Path(path).name for words in lease_day.LOADS.values() for path in words}
    wanted = ("libflite1", "libasound2", "espeakng-loader", *sentences.TEXTS)  # without network what speaks has these
    assert {registry.pinned(name).folder for name in wanted} <= carried
    assert OWN.name == "kal16" and sys.version_info >= (3, 10)
