"""The command that makes Kokoro's speech: whole at any moment, and it says what is there."""

import numpy as np
import pytest

from m27.data.sources import kokoro
from recipes import speech

pytest.importorskip("soundfile")


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    monkeypatch.setenv("M27_CACHE", str(tmp_path))
    lines = [("good morning", "af_kore", "test"), ("red ball", "af_heart", "train")]
    monkeypatch.setattr(kokoro, "plan", lambda: lines)


def test_it_counts_what_it_made_and_makes_nothing_twice(monkeypatch, capsys):
    monkeypatch.setattr(kokoro, "speak", lambda text, voice: np.full(4000, 0.1, np.float32))
    assert speech.ready() == {"train": 0, "test": 0}
    speech.main(["--minutes", "1"])
    assert capsys.readouterr().out.startswith("2 utterances made; 1 for training, 1 for tests")
    assert speech.ready() == {"train": 1, "test": 1}
    speech.main([])
    assert capsys.readouterr().out.startswith("0 utterances made")


@pytest.mark.parametrize("wrong", [["--minutes", "0"], ["--jobs", "0"]])
def test_impossible_numbers_are_refused(wrong, capsys):
    with pytest.raises(SystemExit):
        speech.main(wrong)
    assert "at least 1" in capsys.readouterr().err


def test_a_broken_off_utterance_leaves_no_file(monkeypatch):
    def fail(text, voice):
        raise KeyboardInterrupt

    monkeypatch.setattr(kokoro, "speak", fail)
    with pytest.raises(KeyboardInterrupt):
        speech.main([])
    assert speech.ready() == {"train": 0, "test": 0}
