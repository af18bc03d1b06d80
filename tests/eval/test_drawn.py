"""GenEval of drawn pictures: folders in the official form, a detector of transformers, colours, official results."""

import json
from pathlib import Path

import numpy as np
import pytest

from m27.cli import main
from m27.codec import media
from m27.eval.detectors import ClipColours, Detector, DetectorError, PixelColours, crop
from m27.eval.drawn import DrawnError, score
from m27.eval.journal import JournalError
from m27.eval.scorers.geneval import COLOURS, Box

RGB = {"red": (210, 20, 30), "blue": (30, 80, 210)}


class Eye:
    """Finds one apple where the picture is not white, and a clock nowhere."""

    name, classes = "an eye", frozenset({"apple", "clock"})

    def __init__(self, most=None):
        self.looked, self.most = 0, most

    def __call__(self, picture):
        if self.looked == self.most:
            raise KeyboardInterrupt
        self.looked += 1
        rows, columns = np.nonzero((picture < 240).any(-1))
        if not len(rows):
            return {}
        box = Box(int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1, 0.95)
        return {"apple": [box]}


def asked(tag, count=1, **more):
    return {"tag": tag, "prompt": f"{tag} of an apple", "include": [{"class": "apple", "count": count, **more}]}


def drawn(folder, number, request, colours):
    place = folder / f"{number:05d}"
    for k, colour in enumerate(colours):
        picture = np.full((40, 60, 3), 255, np.uint8)
        if colour:
            picture[10:30, 20:44] = RGB[colour]
        media.write_png(place / "samples" / f"{k:04d}.png", picture)
    (place / "metadata.jsonl").write_text(json.dumps(request))
    media.write_png(place / "grid.png", np.zeros((2, 2, 3), np.uint8))  # official, and not scored
    return folder


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "drawings"
    drawn(folder, 0, asked("single_object"), ["red", "red", None, "blue"])
    drawn(folder, 1, asked("single_object"), [None, None, None, None])
    drawn(folder, 2, asked("colors", color="red"), ["red", "blue", "blue", "red"])
    drawn(folder, 3, asked("counting", count=2), ["red", "red", "red", "red"])
    return folder


def test_the_score_is_the_mean_over_tags_and_results_are_in_the_official_form(folder, tmp_path):
    said = []
    row = score(folder, Eye(), PixelColours(), tmp_path / "out", say=said.append)
    assert row["score"] == pytest.approx((3 / 8 + 2 / 4 + 0) / 3)
    assert row["figures"] == {
        "tag: single_object": 3 / 8, "tag: colors": 0.5, "tag: counting": 0.0,
        "correct images": 5 / 16, "correct prompts": 2 / 4,
    }  # fmt: skip
    assert row["low"] <= row["score"] <= row["high"]
    assert (row["n"], row["pictures"], row["notes"]) == (4, 16, [])
    assert row["detector"] == "an eye" and "rule of m27's" in row["colours"]
    assert "objects by an eye" in said[0]
    results = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert list(results[0]) == ["filename", "tag", "prompt", "correct", "reason", "metadata", "details"]
    assert Path(results[0]["filename"]).is_file()
    assert json.loads(results[0]["details"]) == {"apple": [[20, 10, 44, 30, 0.95]]}
    assert json.loads(results[0]["metadata"]) == asked("single_object")
    assert results[-1]["reason"] == "expected apple>=2, found 1"


def test_a_run_that_ends_goes_on_and_another_detector_is_not_mixed_in(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("m27.eval.drawn.commit", lambda: "0123")
    whole = score(folder, Eye(), PixelColours(), tmp_path / "whole", say=lambda _: None)
    with pytest.raises(KeyboardInterrupt):
        score(folder, Eye(most=7), PixelColours(), tmp_path / "out", say=lambda _: None)
    eye = Eye()
    assert score(folder, eye, PixelColours(), tmp_path / "out", say=lambda _: None) == whole
    assert eye.looked == 9
    other = Eye()
    other.name = "another"
    with pytest.raises(JournalError, match="detector 'an eye'"):
        score(folder, other, PixelColours(), tmp_path / "out", say=lambda _: None)
    assert score(folder, other, PixelColours(), tmp_path / "out", fresh=True, say=lambda _: None)["n"] == 4


def test_fewer_prompts_and_classes_that_a_detector_lacks(folder, tmp_path):
    eye = Eye()
    eye.classes = frozenset({"clock"})
    row = score(folder, eye, PixelColours(), tmp_path / "out", most=1, say=lambda _: None)
    assert (row["n"], row["pictures"]) == (1, 4)
    assert "does not know apple" in row["notes"][0]


def test_folders_in_another_form_are_refused(tmp_path):
    with pytest.raises(DrawnError, match=r"00000/samples/0000\.png"):
        score(tmp_path, Eye(), PixelColours(), tmp_path / "out")
    folder = drawn(tmp_path / "d", 0, {"tag": "x", "prompt": "y"}, ["red"])
    with pytest.raises(DrawnError, match=r"metadata.jsonl: no 'include'"):
        score(folder, Eye(), PixelColours(), tmp_path / "out")
    (folder / "00000" / "metadata.jsonl").write_text("no")
    with pytest.raises(DrawnError, match=r"metadata\.jsonl"):
        score(folder, Eye(), PixelColours(), tmp_path / "out")


def test_the_rule_of_colours_names_plain_ones():
    shades = {
        "red": (200, 30, 30), "orange": (250, 140, 20), "yellow": (250, 220, 40), "green": (40, 160, 70),
        "blue": (30, 80, 190), "purple": (130, 40, 150), "pink": (250, 160, 200), "brown": (100, 60, 30),
        "black": (10, 10, 15), "white": (250, 250, 245),
    }  # fmt: skip
    assert list(shades) == list(COLOURS)
    for name, rgb in shades.items():
        picture = np.zeros((20, 20, 3), np.uint8)
        picture[5:15, 5:15] = rgb
        assert PixelColours()(picture, [Box(5, 5, 15, 15)], "ball") == [name]
    assert crop(picture, Box(-3, 25, 900, 26)).shape == (1, 20, 3)


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """A tiny YOLOS with random weights, its processor beside it."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.yolos import YolosImageProcessorPil

    folder = tmp_path_factory.mktemp("detector")
    config = transformers.YolosConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=[64, 64],
        patch_size=16, num_detection_tokens=6, id2label={0: "apple", 1: "mouse", 2: "clock"},
    )  # fmt: skip
    transformers.YolosForObjectDetection(config).save_pretrained(folder)
    YolosImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def test_a_detector_of_transformers_gives_boxes_in_the_pictures_pixels(detector, monkeypatch):
    monkeypatch.setattr("m27.eval.detectors.THRESHOLD", 0.05)  # random weights are sure of nothing
    finder = Detector(str(detector))
    assert finder.classes == {"apple", "computer mouse", "clock"}
    assert finder.name.startswith("YolosForObjectDetection of ")
    picture = np.random.default_rng(0).integers(0, 256, (80, 120, 3), np.uint8)
    found = finder(picture)
    boxes = [box for many in found.values() for box in many]
    assert boxes and set(found) <= finder.classes
    assert all(0.05 <= box.confidence <= 1 for box in boxes)
    centres = [((b.left + b.right) / 2, (b.top + b.bottom) / 2) for b in boxes]
    assert all(0 <= x <= 120 and 0 <= y <= 80 for x, y in centres)
    assert finder(picture) == found


def test_a_clip_of_transformers_says_one_of_the_ten_colours(tmp_path):
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[PAD]", "[UNK]", "a", "photo", "of", "object", "apple", *COLOURS]
    tokenizer = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    from transformers.models.clip import CLIPImageProcessorPil

    reads = transformers.CLIPProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}), fast
    )
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={**small, "vocab_size": len(words), "max_position_embeddings": 16, "eos_token_id": 0},
        vision_config={**small, "image_size": 16, "patch_size": 8}, projection_dim=8,
    )  # fmt: skip
    transformers.CLIPModel(config).save_pretrained(tmp_path)
    reads.save_pretrained(tmp_path)
    reader = ClipColours(str(tmp_path))
    picture = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    boxes = [Box(0, 0, 12, 20), Box(5, 5, 30, 28)]
    told = reader(picture, boxes, "apple")
    assert len(told) == 2 and set(told) <= set(COLOURS)
    assert reader(picture, boxes, "apple") == told and reader(picture, [], "apple") == []
    assert reader.name.startswith("CLIPModel of ")


def test_what_is_no_model_is_one_line(tmp_path, detector):
    with pytest.raises(DetectorError, match=str(tmp_path)):
        Detector(str(tmp_path))
    with pytest.raises(DetectorError, match="does not compare pictures with words"):
        ClipColours(str(detector))


def test_prompts_are_drawn_by_our_model_into_the_official_form_and_not_twice(tmp_path, monkeypatch):
    from m27.eval.drawing import draw
    from m27.infer.engine import Engine
    from tests import tiny

    monkeypatch.setattr("m27.codec.image.ImageCodec", tiny.TinyImageCodec)
    monkeypatch.setattr("m27.codec.audio.AudioCodec", tiny.TinyAudioCodec)
    (tmp_path / "model").mkdir()
    tiny.write_model(tmp_path / "model")
    engine = Engine.load(tmp_path / "model", precision="float32", threads=1)
    prompts = tmp_path / "evaluation_metadata.jsonl"
    prompts.write_text("\n".join(json.dumps(asked(tag)) for tag in ("single_object", "colors", "counting")))
    draw(prompts, engine, tmp_path / "drawings", each=2, most=2)
    files = sorted(p.relative_to(tmp_path / "drawings").as_posix() for p in (tmp_path / "drawings").rglob("*.*"))
    one = ["metadata.jsonl", "samples/0000.png", "samples/0001.png"]
    assert files == [f"{place}/{name}" for place in ("00000", "00001") for name in one]
    pictures = {p: p.read_bytes() for p in (tmp_path / "drawings").rglob("*.png")}
    lost = min(pictures)
    lost.unlink()
    kept = max(pictures).stat().st_mtime_ns
    draw(prompts, engine, tmp_path / "drawings", each=2, most=2)
    assert {p: p.read_bytes() for p in pictures} == pictures
    assert max(pictures).stat().st_mtime_ns == kept
    row = score(tmp_path / "drawings", Eye(), PixelColours(), tmp_path / "out", say=lambda _: None)
    assert (row["n"], row["pictures"]) == (2, 4)


def test_the_command_scores_a_folder_and_refuses_in_one_line(folder, detector, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def command(*words):
        with pytest.raises(SystemExit) as left:
            main(["eval", *map(str, words)])
        return left.value.code

    assert not command(folder, "--form", "geneval", "--detector", detector)
    assert "drawings geneval: 0.0 %" in capsys.readouterr().out
    (results,) = Path("out/eval").rglob("results.jsonl")
    assert len(results.read_text().splitlines()) == 16
    Path("a.jsonl").write_text("{}")
    for words, says in (
        ((folder, "--form", "geneval"), "--form geneval needs --detector"),
        (("gone", "--form", "geneval", "--detector", "x"), "gone: no such"),
        ((folder, "--form", "geneval", "--detector", "nowhere/x"), "nowhere/x: "),
        (("a.jsonl", "--detector", "x"), "--detector and --colours go with --form geneval"),
    ):
        assert command(*words) == 2
        told = capsys.readouterr().err
        assert says in told, told
