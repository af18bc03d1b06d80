"""A decoder can be changed under the same codes; an encoder cannot, and then nothing is written."""

import shutil
from pathlib import Path

import pytest
import torch

from m27.codec.audio import AudioCodec, AudioConfig
from m27.codec.image import ImageCodec
from recipes import swap
from recipes.swap import SwapError


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A model's folder with a codec, another decoder for it, and another encoder."""
    made = {name: tmp_path_factory.mktemp(name) for name in ("model", "decoder", "encoder")}
    torch.manual_seed(0)
    codec = ImageCodec()
    codec.save(made["model"])
    codec = ImageCodec.load(made["model"])
    with torch.no_grad():
        codec.decoder.out.weight.add_(0.1)
    codec.save(made["decoder"])
    with torch.no_grad():
        next(iter(codec.neck.parameters())).mul_(1.5)
    codec.save(made["encoder"])
    return made


@pytest.fixture
def model(folders, tmp_path) -> Path:
    return Path(shutil.copytree(folders["model"], tmp_path / "model"))


def test_another_decoder_takes_its_place(folders, model, capsys):
    new = folders["decoder"] / "image_codec.safetensors"
    assert swap.main(["--codec", str(new), "--model", str(model)]) == 0
    assert (model / new.name).read_bytes() == new.read_bytes()
    said = capsys.readouterr().out
    assert "codes        the same" in said
    assert "to be made again: recipes.image_report" in said
    changed = {part.name: part.changed for part in swap.compare(new, folders["model"] / new.name).parts}
    assert changed == {"decoder": 1, "neck": 0, "trunk": 0}


def test_another_encoder_is_refused(folders, model, capsys):
    new = folders["encoder"] / "image_codec.safetensors"
    before = (model / new.name).read_bytes()
    assert swap.main(["--codec", str(new), "--model", str(model)]) == 2
    assert "its codes are not those of" in capsys.readouterr().err
    assert (model / new.name).read_bytes() == before
    assert swap.main(["--codec", str(new), "--model", str(model), "--check"]) == 2
    assert "codes        others" in capsys.readouterr().out


def test_the_check_writes_nothing(folders, model):
    new = folders["decoder"] / "image_codec.safetensors"
    before = (model / new.name).read_bytes()
    assert swap.main(["--codec", str(new), "--model", str(model), "--check"]) == 0
    assert (model / new.name).read_bytes() == before


def test_a_codec_of_another_medium_has_another_place(folders, tmp_path, capsys):
    AudioCodec(AudioConfig()).save(tmp_path)
    (sound,) = tmp_path.glob("*.safetensors")
    assert swap.main(["--codec", str(sound), "--model", str(folders["model"])]) == 2
    assert "audio_codec.safetensors: no such file" in capsys.readouterr().err
    with pytest.raises(SwapError, match="one is of pictures"):
        swap.compare(sound, folders["model"] / "image_codec.safetensors")
