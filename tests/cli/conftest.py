"""A tiny model in a folder, its codecs put in, and the command line run in this process."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from m27.cli import main
from m27.codec import media
from tests import tiny


@dataclass
class Done:
    """What a command left behind."""

    status: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("tiny-model")
    tiny.write_model(folder)
    return folder


@pytest.fixture
def run(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Run:
    """Run `m27 ARGUMENTS` on the tiny model, in an empty working folder."""
    monkeypatch.setattr("m27.codec.image.ImageCodec", tiny.TinyImageCodec)
    monkeypatch.setattr("m27.codec.audio.AudioCodec", tiny.TinyAudioCodec)
    monkeypatch.setattr("recipes.finetune_data.cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setenv("M27_MODEL", str(model))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str | Path) -> Done:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return Done(int(left.value.code or 0), captured.out, captured.err)

    return call


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A picture, dark above and light below."""
    rgb = np.zeros((96, 64, 3), np.uint8)
    rgb[48:] = 255
    media.write_png(tmp_path / "a picture.png", rgb)
    return tmp_path / "a picture.png"


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """Half a second of sound at 44.1 kHz."""
    media.write_wav(tmp_path / "sound.wav", np.linspace(-1, 1, 22_050).astype(np.float32), 44_100)
    return tmp_path / "sound.wav"
