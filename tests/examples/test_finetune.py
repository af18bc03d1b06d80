"""examples/finetune: what each script makes can be opened as the command beside it says; marks are counted."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from m27.codec import media
from m27.data import importers
from m27.data.sources.base import Item

PICTOGRAMS, ORDERS, CATALOGUE = (
    importlib.import_module(f"examples.finetune.{name}")
    for name in ("pictograms", "orders", "catalogue")
)


def png(value: int) -> bytes:
    rgb = np.full((28, 28, 3), 255, np.uint8)
    rgb[value : value + 3] = 0
    return media.png_bytes(rgb)


DRAWING = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><path d="M4 4h{}v20H4z"/></svg>'


def test_pictograms_are_a_folder_of_captioned_pictures(tmp_path: Path, monkeypatch) -> None:
    icons = tmp_path / "package/package/icons/high-contrast"
    icons.mkdir(parents=True)
    known = {}
    names = ("red apple", "bus", "airplane", "smiling face", "person-default")
    for number, name in enumerate(names):
        label, group = name.removesuffix("-default"), "smileys-emotion" if "face" in name else "objects"
        known[str(number)] = {"label": label, "name": label, "group": group}
        (icons / f"{name.replace(' ', '-')}.svg").write_text(DRAWING.format(10 + number))
    (icons / "nobody-knows.svg").write_text(DRAWING.format(3))
    monkeypatch.setattr(PICTOGRAMS.registry, "fetch", lambda name: tmp_path / "package")
    monkeypatch.setattr(PICTOGRAMS.emoji, "names", lambda: known)
    sides = {"red apple": "train", "bus": "test", "person": "dropped", "airplane": "train"}
    monkeypatch.setattr(PICTOGRAMS, "split", lambda item: sides[item.text])
    PICTOGRAMS.make(tmp_path / "out")
    for side, captions in (("train", ["a red apple"]), ("test", ["a bus"])):  # airplane is new: drawn, never trained on
        documents = list(importers.open(tmp_path / "out" / side, direction="draw", prompt=PICTOGRAMS.PROMPT))
        asked = [d["messages"][0]["content"][0]["text"] for d in documents]
        assert asked == [f"Draw a pictogram of {text}." for text in captions]
        rgb = media.read_image(documents[0]["messages"][1]["content"][0]["path"])
        assert rgb.shape == (128, 128, 3)
        assert (rgb[0, 0] == 255).all() and (rgb[40, 30] == 0).all()
    assert not set(PICTOGRAMS.THINGS) & set(PICTOGRAMS.NEW)


def test_orders_are_a_folder_of_recordings_with_texts(tmp_path: Path, monkeypatch) -> None:
    slots = {"size": "large", "coffeeDrink": "mocha", "numberOfShots": "double shot"}

    def items():
        for number, side in enumerate(("train", "train", "test")):
            wave = np.linspace(-0.5, 0.5, 4000 + number).astype(np.float32)
            yield Item(f"o/{number}", str(number), "", audio=wave, meta={"split": side, "slots": slots})

    monkeypatch.setattr(ORDERS.spoken_orders, "items", items)
    ORDERS.make(tmp_path)
    documents = list(
        importers.open(tmp_path / "train", direction="transcribe", prompt="What is ordered?")
    )
    assert len(documents) == 2
    assert documents[0]["messages"][1]["content"][0]["text"] == "mocha, large, double shot"
    rows = [
        {"answer": "mocha, large", "before": "a voice", "after": "mocha, small"},
        {"answer": "latte", "before": "", "after": "Latte"},
    ]
    (tmp_path / "answers.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ORDERS.measure(tmp_path, tmp_path)
    measured = json.loads((tmp_path / "measured.json").read_text())
    assert measured["drink, before"]["right"] == 0
    assert measured["drink, after"]["right"] == 2
    assert (measured["details found, after"]["right"], measured["details found, after"]["n"]) == (2, 3)
    assert (measured["details right, after"]["right"], measured["details right, after"]["n"]) == (2, 3)
    assert measured["whole orders, after"]["right"] == 1
    assert measured["drink, always the commonest"]["right"] == 1


def test_the_catalogue_is_one_file_of_records(tmp_path: Path, monkeypatch) -> None:
    def items():
        for number in range(20):
            meta = {"split": ("train", "test")[number % 2], "name": "royal gala"}
            yield Item(f"grocery/train/{number}", "royal gala", "apple", png(number), meta=meta)

    monkeypatch.setattr(CATALOGUE.grocery, "items", items)
    monkeypatch.setattr(CATALOGUE, "TEST", 3)
    CATALOGUE.make(tmp_path)
    documents = list(importers.open(tmp_path / "train.json"))
    assert len(documents) == CATALOGUE.EACH
    assert len(list(importers.open(tmp_path / "test.json"))) == 3
    answer = json.loads(documents[0]["messages"][1]["content"][0]["text"])
    assert list(answer.items()) == [("kind", "apple"), ("aisle", "fruit"), ("product", "royal gala")]


@pytest.mark.parametrize(
    ("kind", "aisle"),
    [("apple", "fruit"), ("carrot", "vegetables"), ("oat milk", "plant-based"), ("yoghurt", "dairy")],
)
def test_aisles(kind: str, aisle: str) -> None:
    assert CATALOGUE.entry(Item("k", "n", kind, meta={"name": "n"}))["aisle"] == aisle


class Darkness:
    """Stands for the vision network: where a picture is dark."""

    def features(self, pictures):
        import torch

        return torch.tensor(np.stack([255.0 - media.fit_image(rgb, 16, 16).mean(2).ravel() for rgb in pictures]))


def test_a_pictogram_and_a_coloured_drawing_are_told_apart() -> None:
    rng = np.random.default_rng(0)

    def bars(thing: int) -> np.ndarray:
        rgb = np.full((128, 128, 3), 255, np.uint8)
        rgb[10 + 12 * thing : 22 + 12 * thing] = 0
        return rgb

    def coloured() -> np.ndarray:
        rgb = np.full((128, 128, 3), 255, np.uint8)
        rgb[30:90, 20:100] = rng.integers(0, 256, 3)
        return rgb

    real = {name: bars(n) for n, name in enumerate(("anchor", "bus", "crab", "rose"))}
    judge = PICTOGRAMS.Judge(Darkness(), real, [bars(n) for n in range(8)], [coloured() for _ in range(20)])
    for thing, rgb in real.items():
        assert judge.marks(thing, [rgb, np.roll(rgb, 2, axis=0)]) == [(True, True)] * 2
    assert judge.marks("anchor", [real["rose"]]) == [(False, True)]
    assert not any(made for _, made in judge.marks("bus", [coloured() for _ in range(10)]))
