"""Cycles on made-up answers: the way back is asked about what was made, and stands beside that of the real thing."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from m27.data.sources.base import Item
from m27.eval.report import Origin
from m27.eval.run import EvalError, chosen
from m27.eval.tasks import MORE, TASKS, cycles
from m27.eval.tasks.cycles import SpeechAndBack, Wish, WordsAndBack
from m27.eval.tasks.sample import Sample

NAMES = ["red fox", "tin drum", "pear", "ship"]


class Desk:
    """A bench that makes a shade for a request, and names shades; it takes a fox for a pear."""

    samples, seed, origin = 500, 0, Origin(0, "c", "w")

    def __init__(self):
        self.made, self.looked = [], []

    def generate(self, requests, label=""):
        self.made += requests
        medium = requests[0].modalities[0]
        shades = [NAMES.index(self._text(r.messages)) for r in requests]
        return [SimpleNamespace(content=[{medium: np.full((2, 2, 3), s, np.uint8), "codes": [0]}]) for s in shades]

    def answers(self, conversations, max_tokens, label=""):
        self.looked += conversations
        out = []
        for messages in conversations:
            part = messages[0]["content"][0]
            name = NAMES[int(np.ravel(part[part["type"]])[0])]
            out.append("pear" if name == "red fox" and "real" not in label else name)
        return out

    def _text(self, messages):
        content = messages[0]["content"]
        text = content if isinstance(content, str) else content[0]["text"]
        return next(name for name in NAMES if name in text)


class Words:
    """Each name a direction of its own."""

    @classmethod
    def load(cls):
        return cls()

    def encode(self, texts):
        return torch.stack([torch.eye(len(NAMES))[NAMES.index(text)] for text in texts])


def wishes(medium):
    def of(n, seed):
        out = []
        for k, name in enumerate(NAMES[:n]):
            real = {"type": medium, medium: np.full((2, 2, 3), k, np.uint8)}
            asked = [{"role": "user", "content": f"Draw a {name}."}]
            out.append(Wish(Sample(f"c/{k}", asked, name), [{"role": "user", "content": [real]}], NAMES))
        return out

    return of


@pytest.mark.parametrize(("medium", "task"), [("image", "caption_picture"), ("audio", "name_sound")])
def test_what_was_made_is_described_and_found_again(monkeypatch, medium, task):
    monkeypatch.setattr(cycles, "SentenceEncoder", Words)
    desk = Desk()
    row, records = WordsAndBack("cycle", medium, task, wishes(medium)).run(desk)
    assert [r["choice"] for r in records] == ["pear", "tin drum", "pear", "ship"]
    assert (row.score, row.chance, row.frequent) == (0.75, 0.25, 0.25)
    assert f"of the real {medium}s 100.0 %" in row.note and "R@1 among 4 names" in row.note
    assert all(r.plan == (medium,) and r.seed == k for k, r in enumerate(desk.made))
    back = desk.looked[0][0]["content"]
    assert [part["type"] for part in back] == [medium, "text"] and back[0][medium][0, 0, 0] == 0


def test_speech_goes_through_words_and_comes_back(monkeypatch):
    texts = ["the red dog", "a cat runs"]
    items = [Item(f"k/{n}", t, t, audio=np.full(800, n, np.float32)) for n, t in enumerate(texts)]
    heard = ["the red dog", "a cat"]
    said = ["the red frog", "a cat"]

    class Speaker:
        samples, seed, origin = 500, 0, Origin(0, "c", "w")

        def answers(self, conversations, max_tokens, label=""):
            return heard

        def generate(self, requests, label=""):
            assert all(text in str(r.messages) for r, text in zip(requests, heard, strict=True))
            return [SimpleNamespace(content=[{"audio": np.full(4, n, np.float32)}]) for n in range(2)]

    monkeypatch.setattr(cycles, "transcribe", lambda wave: said[int(wave[0])])
    row, records = SpeechAndBack("cycle-speech", lambda: items).run(Speaker())
    assert [r["errors"] for r in records] == [1, 1] and records[1]["heard"] == "a cat"
    assert row.score == pytest.approx(2 / 6)
    assert "there alone 16.7 %, back alone 20.0 %" in row.note


def test_cycles_are_asked_by_name_and_are_no_rows_of_the_table():
    assert [task.name for task in chosen([])] == list(TASKS)
    assert [task.name for task in chosen(["cycle-sound", "cifar10"])] == ["cifar10", "cycle-sound"]
    assert list(MORE) == ["cycle-picture", "cycle-sound", "cycle-speech"]
    with pytest.raises(EvalError, match="cycle-speech"):
        chosen(["cycle"])
