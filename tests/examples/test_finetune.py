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


def test_a_sketch_and_a_coloured_drawing_are_told_apart(monkeypatch) -> None:
    rng = np.random.default_rng(0)

    def lines(thing: int) -> np.ndarray:
        rgb = np.full((128, 128, 3), 255, np.uint8)
        at = 6 * thing + int(rng.integers(0, 3))
        rgb[at : at + 4] = 0
        return rgb

    def items():
        for n, name in enumerate((*SKETCHES.THINGS, *SKETCHES.NEW)):
            for number in range(10):
                meta = {"split": "test" if number == 0 else "train"}
                yield Item(f"q/{name}/{number}", "", name, media.png_bytes(lines(n)), meta=meta)

    def coloured() -> np.ndarray:
        rgb = np.full((128, 128, 3), 255, np.uint8)
        rgb[30:90, 20:100] = rng.integers(0, 256, 3)
        return rgb

    monkeypatch.setattr(SKETCHES.quickdraw, "items", items)
    judge = SKETCHES.Judge([coloured() for _ in range(40)])
    things = (*SKETCHES.THINGS, *SKETCHES.NEW)
    marks = [judge.marks(name, lines(n)) for n, name in enumerate(things)]
    assert all(sketch for _, sketch in marks)
    assert sum(right for right, _ in marks) > 15
    assert not any(judge.marks("apple", coloured())[1] for _ in range(10))
    assert {len(real) for real in judge.real.values()} == {1}
