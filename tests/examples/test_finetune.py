"""examples/finetune: what each script makes can be opened as the command beside it says; marks are counted."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from m27.codec import media
from m27.data import check, importers
from m27.data.sources.base import Item

SKETCHES, ORDERS, CATALOGUE = (
    importlib.import_module(f"examples.finetune.{name}")
    for name in ("sketches", "orders", "catalogue")
)


def png(value: int) -> bytes:
    rgb = np.full((28, 28, 3), 255, np.uint8)
    rgb[value : value + 3] = 0
    return media.png_bytes(rgb)


def test_sketches_are_a_folder_of_captioned_pictures(tmp_path: Path, monkeypatch) -> None:
    def items():
        for number in range(25):
            meta = {"split": "test" if number % 5 == 0 else "train"}
            yield Item(f"quickdraw/apple/{number:03d}", "", "apple", png(number), meta=meta)
        yield Item("quickdraw/axe/000", "", "axe", png(3), meta={"split": "train"})

    monkeypatch.setattr(SKETCHES.quickdraw, "items", items)
    monkeypatch.setattr(SKETCHES, "EACH", 12)
    SKETCHES.make(tmp_path)
    documents = list(
        importers.open(tmp_path / "train", direction="draw", prompt=SKETCHES.PROMPT)
    )
    assert len(documents) == 12
    asked, drawn = documents[0]["messages"]
    assert asked["content"][0]["text"] == "Draw a sketch of an apple."
    assert media.read_image(drawn["content"][0]["path"]).shape == (128, 128, 3)
    assert not check.check(importers.open(tmp_path / "test", direction="draw", prompt=SKETCHES.PROMPT)).problems


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
    ORDERS.measure(tmp_path)
    measured = json.loads((tmp_path / "measured.json").read_text())
    assert measured["drink before"]["right"] == 0
    assert measured["drink after"]["right"] == 2
    assert (measured["details found after"]["right"], measured["details found after"]["n"]) == (2, 3)
    assert measured["best constant drink"]["right"] == 1


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
    assert answer == {"product": "royal gala", "kind": "apple", "aisle": "fruit"}


@pytest.mark.parametrize(
    ("kind", "aisle"),
    [("apple", "fruit"), ("carrot", "vegetables"), ("oat milk", "plant-based"), ("yoghurt", "dairy")],
)
def test_aisles(kind: str, aisle: str) -> None:
    assert CATALOGUE.entry(Item("k", "n", kind, meta={"name": "n"}))["aisle"] == aisle
