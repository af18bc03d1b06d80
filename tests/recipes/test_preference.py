"""The worked example of preferences, from items to figures, on the model in miniature."""

import json

import numpy as np
import pytest

from m27.codec import media
from m27.data import branches
from m27.data.sources.base import Item
from m27.language import processor as language
from recipes import preference
from tests import tiny

NAMES = [f"thing {number}" for number in range(40)]


@pytest.fixture
def drawn(monkeypatch):
    """Bright drawings in the one style and dark ones in the other, of forty things."""

    def items():
        for number, name in enumerate(NAMES):
            for style, level in ((preference.CHOSEN, 200), (preference.REJECTED, 40)):
                picture = media.png_bytes(np.full((64, 64, 3), level + number % 20, np.uint8))
                side = "train" if number < 30 else "test"
                meta = {"style": style, "tone": False, "whole": True, "split": side}
                yield Item(f"emoji/{style}/{name}", name, name, picture, meta=meta)

    monkeypatch.setattr(preference.emoji, "items", items)
    monkeypatch.setattr(language.Processor, "load", lambda *_: tiny.processor())


def test_a_pair_is_one_thing_in_two_styles(drawn):
    found = list(preference.documents("train", 27, 10))
    assert len({document["id"] for document in found}) == 10
    for document in found:
        assert branches.holds_pairs(document["task"])
        (other,) = document["branches"]
        assert other[0] == document["messages"][0]
        bright, dark = (one[1]["content"][0]["image"].mean() for one in (document["messages"], other))
        assert bright > 150 > dark
    held_out = {document["id"] for document in preference.documents("test", 27, 10)}
    assert held_out
    assert not held_out & {document["id"] for document in preference.documents("train", 27, 100)}


def test_the_example_runs_and_says_what_it_found(drawn, tmp_path, capsys):
    model, folder, out = tmp_path / "model", tmp_path / "run", tmp_path / "out.json"
    tiny.write_model(model)
    changes = ["steps=12", "optim.lr=1e-2", "compile=false", "data.row=256", "lora.rank=4", "dtype=float32"]
    arguments = ["--model", str(model), "--folder", str(folder), "--out", str(out)]
    assert preference.main([*arguments, *(f"--set={change}" for change in changes)]) == 0
    found = json.loads(out.read_text())
    assert found["before"]["accuracy"].startswith("0.5")
    assert float(found["after"]["accuracy"].split()[0]) > 0.9
    assert found["after"]["log_odds"] > found["before"]["log_odds"]
    assert preference.main([*arguments, "--set=preference.bta=1"]) == 2
    assert "did you mean 'preference.beta'" in capsys.readouterr().err
