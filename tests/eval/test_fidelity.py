"""FID and FAD of folders and of stored features: who looked stands in the row, and a run goes on where it was ended."""

import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from m27.cli import main
from m27.codec import media
from m27.data.media_parts import fitted
from m27.eval import encoders, features
from m27.eval.encoders import EncoderError, TorchScript, VisionTeacher, open_encoder, seconds
from m27.eval.features import FeaturesError, stored
from m27.eval.fidelity import fidelity
from m27.eval.scorers.frechet import Moments, distance


class Eye:
    """Mean colours of a picture; counts what it is shown."""

    name, seen, endings, device = "an eye (0123)", "as they are", (".png",), "cpu"

    def __init__(self, most=None):
        self.shown, self.most = 0, most

    def features(self, files):
        for file in files:
            if self.shown == self.most:
                raise EncoderError("ended")
            self.shown += 1
            yield media.read_image(file).astype(np.float32).mean((0, 1))[None]


def pictures(folder, n, seed, high=256):
    rng = np.random.default_rng(seed)
    for k in range(n):
        media.write_png(folder / f"{k:04d}.png", rng.integers(0, high, (4, 4, 3), np.uint8))
    return folder


def run(tmp_path, a, b, eye, out="out", **more):
    said = []
    row = fidelity("fid", tmp_path / a, tmp_path / b, lambda: eye, tmp_path / out, say=said.append, **more)
    assert json.loads((tmp_path / out / "rows.jsonl").read_text()) == row
    return row, said[0]


def means(folder):
    return np.stack([media.read_image(p).astype(float).mean((0, 1)) for p in sorted(folder.iterdir())])


def test_two_folders_are_compared_and_the_row_says_how(tmp_path):
    a, b = pictures(tmp_path / "drawn", 30, 0), pictures(tmp_path / "real", 40, 1, 200)
    row, said = run(tmp_path, "drawn", "real", Eye())
    wanted = distance(*(Moments.of(means(folder)).gaussian() for folder in (a, b)))
    assert row["score"] == pytest.approx(wanted, rel=1e-5)
    assert row["low"] <= row["score"] <= row["high"]
    assert (row["n"], row["n_reference"], row["features"], row["rows"]) == (30, 40, 3, 30)
    assert row["encoder"] == "an eye (0123); as they are"
    assert row["library"].startswith("m27 ") and "numpy" in row["library"]
    assert row["data_revision"] != row["reference_revision"]
    assert {"interval", "commit", "device", "scorer", "precision", "notes", "figures"} <= row.keys()
    assert "n 30 and 40, less is better" in said and "\n  by an eye" in said


def test_a_run_that_ends_goes_on_and_a_picture_drawn_again_is_looked_at_again(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "FILES", 8)
    pictures(tmp_path / "drawn", 20, 0)
    pictures(tmp_path / "real", 20, 1)
    whole, _ = run(tmp_path, "drawn", "real", Eye(), "whole")
    with pytest.raises(EncoderError, match="ended"):
        run(tmp_path, "drawn", "real", Eye(most=13))
    eye = Eye()
    row, _ = run(tmp_path, "drawn", "real", eye)
    assert row == whole
    assert eye.shown == 32  # eight were kept
    for one in sorted((tmp_path / "drawn").iterdir())[16:]:
        one.rename(one.with_suffix(".bak"))
    eye = Eye()
    fewer, _ = run(tmp_path, "drawn", "real", eye)
    assert (eye.shown, fewer["n"], len(list((tmp_path / "out/generated").iterdir()))) == (0, 16, 2)
    for one in (tmp_path / "drawn").glob("*.bak"):
        one.rename(one.with_suffix(".png"))
    media.write_png(tmp_path / "drawn" / "0003.png", np.zeros((4, 4, 3), np.uint8))
    eye = Eye()
    other, _ = run(tmp_path, "drawn", "real", eye)
    assert eye.shown == 8 + 4 and other["score"] != row["score"]


def test_what_a_run_kept_is_a_set_of_its_own(tmp_path):
    for n, name in enumerate(("drawn", "real")):
        pictures(tmp_path / name, 25, n)
    row, _ = run(tmp_path, "drawn", "real", Eye())
    again, _ = run(tmp_path, "out/generated", "out/reference", None, "again")
    assert again["score"] == pytest.approx(row["score"])
    assert again["encoder"] == row["encoder"]
    assert [note for note in again["notes"] if "not known" in note] == []


def test_stored_features_of_every_form_say_the_same(tmp_path):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(50, 4)).astype(np.float32), rng.normal(size=(60, 4)).astype(np.float32)
    np.save(tmp_path / "a.npy", a)
    save_file({"features": a}, tmp_path / "a.safetensors")
    save_file({"pool_3": b}, tmp_path / "b.safetensors")
    np.savez(tmp_path / "b.npz", mu=b.mean(0), sigma=np.cov(b, rowvar=False))
    rows = [
        run(tmp_path, one, other, None)[0]
        for one, other in (("a.npy", "b.safetensors"), ("a.safetensors", "b.npz"), ("a.npy", "b.npz"))
    ]
    assert [row["score"] for row in rows] == pytest.approx([rows[0]["score"]] * 3, rel=1e-4)
    assert rows[1]["low"] is not None and rows[1]["n_reference"] is None and rows[1]["figures"] == {}
    assert "extrapolated" in rows[0]["figures"]
    assert "only mean and covariance" in rows[1]["notes"][-1]
    assert sum("not known" in note for note in rows[0]["notes"]) == 2


def test_few_rows_are_warned_of(tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "a.npy", rng.normal(size=(30, 40)))
    np.save(tmp_path / "b.npy", rng.normal(size=(90, 40)))
    row, said = run(tmp_path, "a.npy", "b.npy", None)
    assert row["notes"][0].startswith("generated: 30 rows of 40 features")
    assert "full rank" in said and not any(note.startswith("reference: 90 rows") for note in row["notes"])


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.npy", b"no", "is no .npy file"),
        ("x.npz", b"no", "is no .npz file with mu and sigma"),
        ("x.safetensors", b"no", "is no safetensors file"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FeaturesError, match=re.escape(f"{tmp_path / name}: {says}")):
        stored(tmp_path / name)


def test_shapes_that_are_no_features_are_refused(tmp_path):
    np.save(tmp_path / "flat.npy", np.zeros(5))
    np.save(tmp_path / "text.npy", np.array([["a"]]))
    np.savez(tmp_path / "odd.npz", mu=np.zeros(3), sigma=np.zeros((2, 2)))
    save_file({"a": np.zeros((1, 2)), "b": np.zeros((1, 2))}, tmp_path / "two.safetensors")
    for name in ("flat.npy", "text.npy", "odd.npz", "two.safetensors"):
        with pytest.raises(FeaturesError, match=name):
            stored(tmp_path / name)


def test_features_of_two_encoders_do_not_compare(tmp_path):
    pictures(tmp_path / "drawn", 3, 0)
    save_file({"features": np.zeros((5, 3))}, tmp_path / "r.safetensors", {"encoder": "another", "seen": "resized"})
    with pytest.raises(FeaturesError, match="was looked at by an eye"):
        run(tmp_path, "drawn", "r.safetensors", Eye())


class Scripted(torch.nn.Module):
    """The first two channels' means, or all four of them, as the caller says."""

    def forward(self, x, return_features: bool = False):
        means = x.float().mean((2, 3))
        return torch.cat([means, means], 1) if return_features else means[:, :2]


class Heard(torch.nn.Module):
    def forward(self, x):
        return torch.stack([x.abs().mean(), x.max()])[None]


def scripted(path, module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(module).save(str(path))
    return path


def test_a_torchscript_file_looks_at_pictures_of_any_size(tmp_path):
    rng = np.random.default_rng(0)
    files = []
    for k, size in enumerate((4, 4, 9, 4)):
        files.append(tmp_path / f"{k}.png")
        media.write_png(files[-1], rng.integers(0, 256, (size, size, 3), np.uint8))
    eye = TorchScript(scripted(tmp_path / "inception.pt", Scripted()), sounds=False)
    rows = np.concatenate(list(eye.features(files)))
    wanted = np.stack([media.read_image(file).mean((0, 1)) for file in files])
    assert rows.shape == (4, 6)
    assert np.allclose(rows, np.tile(wanted, 2), atol=1e-3)
    assert "inception.pt (TorchScript, " in eye.name and "resizing is inside the file" in eye.seen
    resized = TorchScript(tmp_path / "inception.pt", False, size=8)
    assert resized.seen.startswith("8 x 8, Pillow bicubic with antialiasing")
    assert np.concatenate(list(resized.features(files))).shape == (4, 6)


def test_a_torchscript_file_hears(tmp_path):
    media.write_wav(tmp_path / "a.wav", np.linspace(-0.5, 0.5, 16_000, dtype=np.float32))
    ear = TorchScript(scripted(tmp_path / "vggish.pt", Heard()), sounds=True)
    (rows,) = ear.features([tmp_path / "a.wav"])
    assert rows == pytest.approx(np.array([[0.25, 0.5]]), abs=1e-3)


def test_what_is_no_torchscript_is_said(tmp_path):
    (tmp_path / "x.pt").write_bytes(b"no")
    with pytest.raises(EncoderError, match=r"x\.pt: is no TorchScript file"):
        open_encoder("fid", str(tmp_path / "x.pt"), tmp_path)
    with pytest.raises(EncoderError, match="no such file"):
        open_encoder("fid", str(tmp_path / "y.pt"), tmp_path)
    with pytest.raises(EncoderError, match="of sounds"):
        open_encoder("fad", None, tmp_path, 64)


def test_the_shipped_teacher_looks_at_pictures_resized_with_antialiasing(tmp_path):
    root = Path(__file__).resolve().parents[2]
    eye = VisionTeacher(root / "weights" / "m27-nano", size=64)
    (rows,) = eye.features([root / "examples" / "samples" / "photo.png"])
    assert rows.shape == (1, 1280) and np.isfinite(rows).all() and rows.max() > 1
    assert "EfficientNet-Lite0" in eye.name and "64 x 64, Pillow bicubic with antialiasing" in eye.seen
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    media.write_png(tmp_path / "a.png", stripes)
    inner = fitted(tmp_path / "a.png", 32, 32)[:, 2:-2].astype(int)
    assert np.abs(inner - 128).max() < 16  # grey: without antialiasing it would be black or white


def test_whisper_listens_a_second_at_a_time(tmp_path, monkeypatch):
    states = np.repeat(np.arange(3, dtype=np.float32), 50)[:, None]
    assert seconds(states).tolist() == [[0], [1], [2]]
    assert seconds(states[:74]).tolist() == [[0]]
    assert seconds(states[:75]).tolist() == [[0], [1]]
    assert seconds(states[:3]).tolist() == [[0]]
    heard = []

    def encoded(wave):
        heard.append(len(wave))
        return None, np.ones((len(wave) // 320, 512), np.float32)

    monkeypatch.setattr(encoders.whisper, "encoded", encoded)
    media.write_wav(tmp_path / "a.wav", np.zeros(16_000 * 31, np.float32))
    (rows,) = open_encoder("fad", None, tmp_path).features([tmp_path / "a.wav"])
    assert (heard, rows.shape) == ([480_000, 16_000], (31, 512))


def command(*words):
    with pytest.raises(SystemExit) as left:
        main(["eval", *map(str, words)])
    return left.value.code


def test_the_command_compares_and_refuses_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", np.random.default_rng(0).normal(size=(50, 4)))
    assert not command("a.npy", "--against", "a.npy", "--metric", "fid")
    assert "a.npy against a.npy fid: 0.000" in capsys.readouterr().out
    assert list(Path("out/eval").rglob("rows.jsonl"))
    Path("empty").mkdir()
    for words, says in (
        (("a.npy", "--against", "a.npy"), "--against goes with --metric fid or fad, not none"),
        (("a.npy", "--against", "b.npy", "--metric", "fid"), "b.npy: no such file or folder"),
        (("a.npy", "--against", "a.npy", "--metric", "fid", "--samples", "0"), "--samples must be at least 1"),
        (("empty", "--against", "a.npy", "--metric", "fad"), "empty: no file here that ends in .wav"),
        (("a.npy", "--resize", "8"), "--encoder and --resize go with --against"),
        (("a.npy", "--metric", "fid"), "fid"),
    ):
        assert command(*words) == 2
        told = capsys.readouterr().err
        assert says in told and told.count("\n") == 1, told
