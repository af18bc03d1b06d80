"""The card's samples: all that was asked for is made, once the same as the next time, and put beside the card."""

import json

import numpy as np
import pytest

from m27.codec import media
from m27.data.sources.base import Item
from recipes import samples
from recipes.samples import Inputs, SamplesRecipe
from tests import tiny


@pytest.fixture(scope="module")
def engine():
    return tiny.engine()


def given() -> Inputs:
    grey = [np.full((64, 64, 3), level, np.uint8) for level in (0, 200)]
    pictures = [
        Item(f"emoji/{n}", n, n, image=media.png_bytes(rgb), meta={"whole": True})
        for n, rgb in zip(("night", "fog"), grey, strict=True)
    ]
    return Inputs(("red fox", "owl", "tree"), tuple(pictures), ("a dog sits",), ("rain",))


def test_everything_is_made_and_named(engine, tmp_path):
    recipe = SamplesRecipe(tmp_path / "model", tmp_path / "out", columns=2)
    made = samples.make(engine, recipe, given(), hear=lambda wave: f"{len(wave)} samples")
    assert json.loads((recipe.out / "samples.json").read_text()) == made
    drawn = media.read_image(recipe.out / "drawn.png")
    assert drawn.shape == (2 * 128 + samples.GAP, 2 * 128 + samples.GAP, 3)
    assert (drawn[-100:, -100:] == 255).all()  # three pictures: the fourth place is empty
    assert len(made["sounds"]) == 2
    for sound in made["sounds"]:
        assert 8_000 <= media.read_audio(recipe.out / sound["file"]).size <= 48_000
    assert made["sounds"][0]["heard"].endswith("samples")
    assert made["sounds"][1]["heard"] == "–"
    assert [x["right"] for x in made["answers"]] == ["night", "fog"]
    samples.put_beside(recipe, made)
    assert (recipe.model / "samples" / "drawn.png").read_bytes() == (
        recipe.out / "drawn.png"
    ).read_bytes()


def test_the_codec_sheet_shows_what_the_codec_keeps(engine, tmp_path):
    recipe = SamplesRecipe(tmp_path, tmp_path / "out")
    samples.make(engine, recipe, given())
    above, below = np.split(media.read_image(recipe.out / "codec.png"), [128 + samples.GAP])
    assert abs(int(above[64, 64, 0]) - int(below[64, 64, 0])) <= 9  # sixteen steps of grey
    assert abs(int(above[64, 200, 0]) - int(below[64, 200, 0])) <= 9


def test_the_same_seed_makes_the_same(engine, tmp_path):
    made = []
    for name in ("one", "two"):
        recipe = SamplesRecipe(tmp_path, tmp_path / name)
        samples.make(engine, recipe, given())
        made.append([path.read_bytes() for path in sorted(recipe.out.iterdir())])
    assert made[0] == made[1]
