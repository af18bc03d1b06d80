"""The small corpus: what is spelled, what is held out, and that every id lies where its medium's do."""

import json

import numpy as np
import pytest
import torch

from m27.codec.media import png_bytes
from m27.data.sources.base import Item
from recipes import moe_data


def _photographs():
    rng = np.random.default_rng(0)
    for number in range(90):
        pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
        side = "test" if number % 3 == 0 else "train"
        yield Item(f"p/{number}", "frog", "frog", png_bytes(pixels), meta={"split": side})


def _clips():
    rng = np.random.default_rng(1)
    for number in range(12):
        audio = rng.normal(0, 0.1, 16_000).astype(np.float32)
        side = "test" if number % 3 == 0 else "train"
        yield Item(f"c/{number}", "seven", "seven", audio=audio, meta={"split": side})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    told = [(f"text {n}", f"number {n} is a frog. " * 400, n % 4 > 0) for n in range(8)]
    monkeypatch.setattr(moe_data, "texts", lambda: iter(told))
    parts = {moe_data.cifar10: _photographs, moe_data.spoken_words: _clips}
    for source in (
        moe_data.cifar10, moe_data.tiny_imagenet, moe_data.spoken_digits, moe_data.spoken_words,
        moe_data.spoken_orders, moe_data.environment,
    ):  # fmt: skip
        monkeypatch.setattr(source, "items", parts.get(source, lambda: iter(())))
    moe_data.build(tmp_path / "corpus")
    return tmp_path / "corpus"


def test_rows_of_every_medium_on_both_sides(folder):
    for side in ("train", "held"):
        rows = np.load(folder / f"{side}.npy")
        told = json.loads((folder / f"{side}.json").read_text())
        assert rows.shape == (len(told["kinds"]), moe_data.ROW) and rows.max() < moe_data.SIZE
        assert set(told["kinds"]) == {0, 1, 2}
        for row, kind in zip(rows, told["kinds"], strict=True):
            media = set(np.digitize(row, (moe_data.IMAGE, moe_data.AUDIO)).tolist())
            assert media == {0, kind}
    origins = [
        set(json.loads((folder / f"{s}.json").read_text())["origins"]) for s in ("train", "held")
    ]
    assert {o for o in origins[1] if o.startswith("text ")} == {"text 0", "text 4"}
    assert not {o for o in origins[0] if o.startswith("text ")} & origins[1]
    assert [p.name for p in folder.parent.iterdir()] == ["corpus"]  # nothing unfinished is left


def test_a_batch_of_rows(folder):
    rows = np.load(folder / "train.npy")[:3]
    batch = moe_data.collate(rows)
    assert batch.ids_BT.numpy().tolist() == rows.tolist()
    assert batch.targets_M.equal(batch.ids_BT[:, 1:].flatten())
    assert batch.ids_BT.flatten()[batch.places_M + 1].equal(batch.targets_M)


def test_centres_are_found_and_the_nearest_is_the_nearest():
    draw = torch.Generator().manual_seed(3)
    means = 10 * torch.randn(4, 6, generator=draw)
    vectors = means.repeat(50, 1) + 0.1 * torch.randn(200, 6, generator=draw)
    table = moe_data.centres(vectors, 4)
    assert moe_data.nearest(vectors, table).equal(torch.cdist(vectors, table).argmin(1))


def test_patches_are_cut_row_by_row():
    pixels = np.zeros((32, 32, 3), dtype=np.uint8)
    pixels[0:4, 4:8] = 255
    item = Item("p", "p", "p", png_bytes(pixels))
    plain, mirrored = moe_data.patches(item), moe_data.patches(item, True)
    assert plain.shape == (64, 48)
    assert (plain == 1).all(1).nonzero().flatten().tolist() == [1]
    assert (mirrored == 1).all(1).nonzero().flatten().tolist() == [6]
