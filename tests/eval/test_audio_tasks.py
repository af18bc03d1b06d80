"""Tasks of sound on made-up answers: error rates, retrieval and probes by hand-made features."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from m27.data.sources import instruments
from m27.data.sources.base import Item
from m27.eval.ear import Whitening
from m27.eval.report import Origin
from m27.eval.tasks import hearing, sounding, speech
from m27.eval.tasks.sample import Sample
from tests import tiny

TEXTS = ["the red dog", "a cat runs", "the red dog", "two birds sing now"]


@dataclass
class Desk:
    """A bench that answers what it was told to."""

    said: list = field(default_factory=list)
    samples: int = 500
    seed: int = 0
    origin: Origin = field(default_factory=lambda: Origin(0, "c", "w"))
    asked: list = field(default_factory=list)

    def answers(self, conversations, max_tokens, label=""):
        self.asked += conversations
        return self.said[: len(conversations)]

    def generate(self, requests, label=""):
        self.asked += requests
        return [SimpleNamespace(content=[{"audio": sound}]) for sound in self.said]

    @property
    def engine(self):
        return SimpleNamespace(processor=tiny.processor())


def item(key, text, level=0.0, **meta):
    return Item(key, text, text, audio=np.full(800, level, np.float32), meta=meta)


def sample(number, answer):
    return Sample(f"s{number}", [{"role": "user", "content": "x"}], answer)


def test_the_word_error_rate_counts_words_not_sentences(monkeypatch):
    monkeypatch.setattr(speech, "transcribe", lambda sound: "the red dog")
    items = [item(f"k/{n}", text, voice="ab"[n % 2]) for n, text in enumerate(TEXTS)]
    desk = Desk(["the red dog", "a cat", "The red frog!", ""])
    row, records = speech.HearSpeech("hear", lambda: items, (0.5, 0.4)).run(desk)
    assert [r["errors"] for r in records] == [0, 1, 1, 4]
    assert row.score == pytest.approx(6 / 13)
    assert row.low <= row.score <= row.high
    assert (row.passed, row.goal) == (True, False)
    # "the red dog" for all: right twice, three wrong words, four wrong words.
    assert row.frequent == pytest.approx(7 / 13)
    assert "a 16.7 %, b 71.4 %; Whisper-base 53.8 % of 4" in row.note
    parts = desk.asked[0][0]["content"]
    assert [part["type"] for part in parts] == ["audio", "text"]


def test_speech_is_heard_by_whisper_and_beside_the_codec(monkeypatch):
    items = [item("s/0", "a b", 0.5), item("s/1", "c d", -0.5)]
    monkeypatch.setattr(speech.speech, "say_tests", lambda count: items[:count])
    monkeypatch.setattr(speech, "transcribe", lambda wave: "a b" if wave[0] > 0 else "c x")
    row, records = speech.Speak().run(Desk([items[0].audio, items[0].audio]))
    assert [r["errors"] for r in records] == [0, 2]
    assert row.score == 0.5
    assert row.passed
    assert not row.goal
    assert "of 2 reference clips 25.0 %, through the codec 25.0 %" in row.note


def test_the_best_constant_is_one_of_the_texts_or_silence():
    assert speech.constant(["a b", "c d"]) == 0.5
    assert speech.constant(["a", "b", "c d e f"]) < 1
    assert speech.constant(["a", "b", "c", "d e f g h i j k"]) < 1.0 == speech.constant([])


def test_a_sound_comes_back_from_the_codec():
    wave = np.full(tiny.HOP * 3, 3 / 7, np.float32)
    assert np.allclose(speech.coded(Desk(), wave), wave, atol=0.15)


def test_families_are_named_by_their_instruments(monkeypatch):
    notes = [
        item("i/0", "cello", split="test", font="f"), item("i/1", "tuba", split="test", font="f")
    ]  # fmt: skip
    monkeypatch.setattr(hearing.instruments, "items", lambda: iter(notes))
    desk = Desk()
    desk.said = ["a violin", "the strings"]
    row, records = hearing.INSTRUMENT_FAMILY.run(desk)
    golds = {r["id"]: r for r in records}
    assert golds["i/0"]["right"]
    assert not golds["i/1"]["right"]
    assert row.chance == pytest.approx(1 / len(set(instruments.FAMILIES.values())))


def test_candidates_hold_the_right_one_once():
    names = [f"n{k}" for k in range(40)]
    drawn = hearing.candidates(names, "n7", "x")
    assert len(drawn) == len(set(drawn)) == hearing.AMONG
    assert "n7" in drawn
    assert drawn == hearing.candidates(names, "n7", "x") != hearing.candidates(names, "n7", "y")


def test_a_sound_is_sought_among_all_held_out_names(monkeypatch):
    every = [sample(n, f"name {n % 30}") for n in range(40)]

    class Words:
        """Each name a direction of its own."""

        def encode(self, texts):
            return torch.stack([torch.eye(31)[int((t.split() + [30])[1])] for t in texts])

    monkeypatch.setattr(hearing, "held_out", lambda seed: every)
    monkeypatch.setattr(hearing.SentenceEncoder, "load", Words)
    desk = Desk(["name 0", "name 0", "name 30", "name 3"], samples=4)
    row, records = hearing.SoundsAmong().run(desk)
    assert [r["right"] for r in records] == [True, False, False, True]
    assert (row.n, row.score, row.chance, row.frequent) == (4, 0.5, 0.05, 0.25)


def test_other_sounds_have_other_names():
    samples = [sample(n, f"name {n // 3}") for n in range(60)]
    for right in (0, 31):
        places = sounding._among(samples, right, 0)
        assert places[0] == right
        assert len({samples[p].answer for p in places}) == len(places) == sounding.AMONG


def test_whitening_finds_the_like_one_despite_a_loud_common_part():
    generator = torch.Generator().manual_seed(0)
    known = torch.randn(200, 12, generator=generator) * 5 + 100
    whiten = Whitening(known, 8)
    real = known[:10]
    noisy = real + 0.5 * torch.randn(10, 12, generator=generator)
    found = sounding.nearest(whiten(noisy), whiten(real), [list(range(10))] * 10)
    assert found == list(range(10))
    assert torch.allclose(whiten(real).norm(dim=1), torch.ones(10), atol=1e-5)


def test_a_note_counts_if_the_probe_hears_its_instrument(monkeypatch):
    names = list(instruments.INSTRUMENTS)
    asked = [sample(0, "cello"), sample(1, "violin"), sample(2, "tuba")]

    def hear(features):
        return torch.nn.functional.one_hot(features, len(names)).float()

    monkeypatch.setattr(sounding, "wishes", lambda n, seed: asked)
    monkeypatch.setattr(sounding, "probe", lambda bench, names: (hear, (0.9, 0.8)))
    said = ["cello", "cello", "flute"]
    places = torch.tensor([names.index(name) for name in said])
    monkeypatch.setattr(sounding, "listen_all", lambda sounds, label: places)
    desk = Desk([np.zeros(9)] * 3)
    row, records = sounding.MakeSounds().run(desk)
    assert [r["right"] for r in records] == [True, False, False]
    assert [r["family"] for r in records] == [True, True, False]
    assert row.score == pytest.approx(1 / 3)
    assert row.note.startswith("family right 66.7 %; the probe on real held-out notes 90.0 %")
    assert all(r.plan == ("audio",) for r in desk.asked)
    assert len({r.seed for r in desk.asked}) == 3


def test_a_picture_is_given_its_own_sound(monkeypatch):
    samples = [sample(n, f"name {n}") for n in range(12)]
    sounds = [np.full(800, n / 12, np.float32) for n in range(12)]

    def listen(waves, label):
        """Each level a direction of its own, so that only its own sound is like it."""
        return torch.eye(12)[[round(float(np.median(w)) * 12) % 12 for w in waves]]

    monkeypatch.setattr(sounding, "shown", lambda n, seed: (samples, sounds))
    monkeypatch.setattr(sounding, "known", list)
    monkeypatch.setattr(sounding, "listen_items", lambda items, label: torch.randn(50, 12))
    monkeypatch.setattr(sounding, "listen_all", listen)
    monkeypatch.setattr(sounding, "coded", lambda bench, wave: wave)
    monkeypatch.setattr(sounding, "Whitening", lambda known: lambda x: x)
    right = [True] * 9 + [False] * 3
    desk = Desk([sounds[n] if ok else sounds[0] for n, ok in enumerate(right)])
    row, records = sounding.SoundForPicture().run(desk)
    assert [r["right"] for r in records] == right
    assert (row.score, row.passed, row.goal) == (0.75, True, True)
    assert row.chance == pytest.approx(0.1)
    assert "after the codec 100.0 %" in row.note
