"""The teacher, captions against a neighbour, drawings found again: over made-up pictures."""

import numpy as np
import pytest
import torch
from PIL import Image

from m27.data.sources.base import Item
from m27.eval.bench import Bench
from m27.eval.report import Origin
from m27.eval.sheet import contact_sheet
from m27.eval.tasks import caption_quality, draw, sample
from m27.eval.teacher import Ridge, Teacher, means, remembered, unit


class Trunk(torch.nn.Module):
    """Features are the mean color and its square; the codec's rounding can be seen in them."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, pixels):
        return [pixels]

    def pooled(self, pixels):
        mean = pixels.mean((2, 3))
        return torch.cat([mean, mean**2], 1)


class Codec:
    levels = (4,)

    def __init__(self):
        self.trunk = Trunk()

    def encode(self, pixels):
        return (pixels.mean((2, 3)) * 4).round().long()[:, :, None]

    def decode(self, codes):
        return (codes[..., 0].float() / 4)[:, :, None, None].expand(-1, -1, 128, 128)

    def state_dict(self):
        return self.trunk.state_dict()


class Says(Bench):
    """A bench whose model captions and draws as told."""

    def __init__(self, out, samples=200, reply=None, color=None):
        super().__init__(None, None, Origin(seed=0, commit="c", weights="w"), samples)
        self.out, self.reply, self.color = out, reply, color
        codec = type("P", (), {"image_codec": Codec()})
        self.engine = type("E", (), {"processor": codec})

    def answers(self, conversations, max_tokens, label=""):
        return [self.reply(messages[0]["content"][0]["image"]) for messages in conversations]

    def generate(self, requests, label=""):
        answers = []
        for request in requests:
            made = plain(self.color(request.messages[0]["content"]))
            answers.append(type("R", (), {"content": [{"type": "image", "image": made}]}))
        return answers


def plain(color):
    return np.broadcast_to(np.array(color, np.uint8), (128, 128, 3)).copy()


COLORS = {f"thing {k}": (k * 4 % 256, k * 56 % 256, 255 - k * 4 % 256) for k in range(60)}


def item(name, style="one", split="test", shift=0, **meta):
    color = tuple(min(255, part + shift) for part in COLORS[name])
    meta |= {"style": style, "tone": False, "split": split, "color": color}
    return Item(f"emoji/{style}/{split}/{name}", name, name, bytes(color), meta=meta)


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    monkeypatch.setattr("m27.eval.teacher.cache_folder", lambda: tmp_path)

    def picture(item):
        return {"type": "image", "image": plain(item.meta["color"])}

    monkeypatch.setattr("m27.eval.teacher.picture", picture)
    monkeypatch.setattr(sample, "picture", picture)


def test_a_codec_without_a_trunk_is_no_teacher():
    with pytest.raises(ValueError, match="no trunk"):
        Teacher(None)
    with pytest.raises(ValueError, match="no trunk"):
        Teacher(object())


def test_features_of_pictures_and_of_what_the_codec_makes_of_them():
    teacher = Teacher(Codec())
    pictures = [plain((0, 100, 255))] * 20
    assert teacher.features(pictures)[:, 1].numpy() == pytest.approx(100 / 255)
    again = teacher.reconstructed(pictures)
    assert len(again) == 20 and again[0].dtype == np.uint8
    assert teacher.features(again)[0, 1] == pytest.approx(128 / 255)
    assert teacher.features([]).shape == (0, 1280)


def test_features_are_computed_once_and_again_for_another_network(tmp_path):
    items = [item(f"thing {k}") for k in range(5)]
    seen = []

    def compute(some):
        seen.append(len(some))
        return torch.stack([torch.full((3,), float(i.key.split()[-1])) for i in some])

    path = tmp_path / "features.safetensors"
    assert remembered(path, items[:3], compute)[:, 0].tolist() == [0, 1, 2]
    assert remembered(path, items[::-1], compute)[:, 0].tolist() == [4, 3, 2, 1, 0]
    assert seen == [3, 2]
    teacher = Teacher(Codec())
    teacher.of_items(items, "a")
    before = len(list(tmp_path.glob("eval-a-*")))
    teacher._trunk.weight.data += 1
    teacher.of_items(items, "a")
    assert (before, len(list(tmp_path.glob("eval-a-*")))) == (1, 2)


def test_means_and_units():
    names, rows = means(torch.tensor([[1.0, 0], [3, 0], [0, 5]]), ["b", "b", "a"])
    assert names == ["a", "b"]
    assert rows.tolist() == [[0, 5], [2, 0]]
    assert unit(torch.tensor([[3.0, 5]]), torch.tensor([0.0, 1])).tolist() == [
        pytest.approx([0.6, 0.8])
    ]


def test_ridge_recovers_a_line_and_shrinks_with_its_penalty():
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    y = x @ torch.tensor([[1.0], [2], [0], [-1]]) + 3
    assert torch.allclose(Ridge(x, y, 1e-9)(x), y, atol=1e-4)
    shrunk = Ridge(x, y, 1.0)(x)
    assert float(shrunk.mean()) == pytest.approx(float(y.mean()), abs=1e-4)
    assert 0.35 < float(shrunk.std() / y.std()) < 0.65


def captioned(side):
    split = "train" if side == "train" else "test"
    shift = 3 if side == "train" else 0
    for k in range(40):
        name = f"thing {k}"
        yield item(name, split=split, shift=shift, keywords=f"{name}, word {k}")


def test_captions_are_a_ratio_to_what_the_nearest_picture_says(monkeypatch, tmp_path):
    monkeypatch.setattr(caption_quality, "captioned", captioned)
    names = {color: name for name, color in COLORS.items()}
    right = Says(tmp_path, 30, lambda picture: names[tuple(picture[0, 0].tolist())])
    row, records = caption_quality.Captions().run(right)
    assert row.n == 30
    assert row.score == pytest.approx(1.0)  # the neighbour differs by a shade and says the same
    assert row.unit == "ratio" and row.chance < 0.5
    assert records[0]["nearest"] == records[0]["prediction"]
    row, _ = caption_quality.Captions().run(Says(tmp_path, 30, lambda picture: "thing 7"))
    assert row.score == row.frequent < 0.5
    assert not row.passed


def test_references_are_the_title_and_each_keyword_once():
    one = item("thing 1", keywords="sea, thing 1, boat")
    assert caption_quality.references(one) == ["thing 1", "sea", "boat"]
    assert caption_quality.references(item("thing 1")) == ["thing 1"]


def test_drawn_emoji_are_found_among_fifty(monkeypatch, tmp_path):
    items = [item(name, style, shift=k) for name in COLORS for k, style in enumerate(("a", "b"))]
    monkeypatch.setattr(draw, "held_out", lambda: items)

    def artist(wish):
        return COLORS[wish.removeprefix("Draw a ").removesuffix(".")]

    row, records = draw.DrawEmoji().run(Says(tmp_path, 80, color=artist))
    assert row.n == 60  # every concept once: there are no more
    assert row.score == 1.0
    assert row.passed and row.goal
    assert row.chance == 0.02
    with Image.open(tmp_path / "draw-emoji.png") as sheet:
        assert sheet.size == (1280, 5 * 142)
    row, records = draw.DrawEmoji().run(Says(tmp_path, 80, color=lambda wish: (9, 9, 9)))
    assert row.score < 0.1
    assert not row.passed
    assert {r["right"] for r in records} >= {False}


def test_drawn_classes_are_recognised_by_a_classifier_of_photographs(monkeypatch, tmp_path):
    classes = draw.cifar10.CLASSES
    tints = dict(
        zip(classes, ((k * 28, 255 - k * 28, k % 3 * 100) for k in range(10)), strict=True)
    )

    def items():
        for side in ("train", "test"):
            for k in range(50):
                name = classes[k % 10]
                meta = {
                    "split": side,
                    "color": tuple(min(255, c + k // 10 % 4) for c in tints[name]),
                }
                yield Item(f"cifar10/{side}/{k}", name, name, bytes([k]), meta=meta)

    monkeypatch.setattr(draw.cifar10, "items", items)
    monkeypatch.setattr(draw, "PENALTY", 1e-6)
    monkeypatch.setattr(draw, "CHECKED", 10)

    def artist(wish):
        return next(tints[name] for name in classes if name in wish)

    row, records = draw.DrawCifar().run(Says(tmp_path, 20, color=artist))
    assert row.n == 20
    assert [r["answer"] for r in records[:11]] == [*classes, classes[0]]
    assert row.score >= 0.7
    row, _ = draw.DrawCifar().run(Says(tmp_path, 20, color=lambda wish: tints["cat"]))
    assert row.score == 0.1


def test_contact_sheets(tmp_path):
    path = tmp_path / "deep" / "sheet.png"
    contact_sheet(path, [plain((255, 0, 0)), plain((0, 0, 255))], ["red", "ü" * 40])
    with Image.open(path) as opened:
        sheet = np.asarray(opened)
    assert sheet.shape == (142, 256, 3)
    assert sheet[5, 5].tolist() == [255, 0, 0] and sheet[5, 200].tolist() == [0, 0, 255]
    contact_sheet(tmp_path / "none.png", [], [])
    assert not (tmp_path / "none.png").exists()
    with pytest.raises(ValueError, match="1 pictures with 0 names"):
        contact_sheet(path, [plain((0, 0, 0))], [])
