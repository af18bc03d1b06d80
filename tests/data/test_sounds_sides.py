"""The real sounds, where they have been prepared: nothing lies on both sides of the hold-out."""

import hashlib
from collections import defaultdict

import pytest

from m27.data.registry import cache_folder
from m27.data.sources.base import shared_data
from m27.data.sources.sounds import SOURCES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shared_data() / "esc10").is_dir() or not (cache_folder() / "generated").is_dir(),
        reason="needs the shared media and prepared clips",
    ),
]


def test_no_samples_lie_on_both_sides():
    sides = defaultdict(set)
    counts = defaultdict(int)
    for name, items in SOURCES.items():
        for item in items():
            side = item.meta["split"]
            counts[name, side] += 1
            sides[hashlib.sha256(item.audio.tobytes()).hexdigest()].add(side)
            assert item.key.startswith(name + "/"), item.key
    assert not [digest for digest, found in sides.items() if len(found) > 1]
    assert counts["esc10", "test"] == 80
    assert counts["sonic-pi", "test"] == 40
    assert counts["spoken-orders", "test"] == 120
    assert counts["spoken-digits", "test"] == 1000
    assert counts["asterisk", "train"] == 0
    assert counts["asterisk", "test"] == 568
    assert 0.17 < counts["spoken-words", "test"] / 1469 < 0.23


def test_no_speaker_text_or_note_lies_on_both_sides():
    for name, of in (
        ("spoken-words", lambda item: item.meta["speaker"]),
        ("spoken-digits", lambda item: item.meta["speaker"]),
        ("sonic-pi", lambda item: item.concept),
        ("instruments", lambda item: item.concept + item.meta["font"]),
    ):
        found = {"train": set(), "test": set()}
        for item in SOURCES[name]():
            found[item.meta["split"]].add(of(item))
        assert found["test"], name
        assert not found["train"] & found["test"], name
    voices, texts = {"train": set(), "test": set()}, {"train": set(), "test": set()}
    for item in SOURCES["speech"]():
        side = item.meta["split"]
        if not item.meta["own"]:
            voices[side].add(item.meta["voice"].partition("+")[2] or item.meta["voice"])
        if item.meta["kind"] != "word":
            texts[side].add(item.text)
    assert not voices["train"] & voices["test"]
    assert not texts["train"] & texts["test"]


def test_more_speech_is_of_the_training_side_and_of_no_list(monkeypatch):
    from m27.data.sources import more_speech, sentences

    monkeypatch.setattr(more_speech, "COUNT", 12)
    found = list(more_speech.texts(3, 400))
    assert len(set(found)) == 400
    assert {sentences.side_of(text) for text in found} == {"train"}
    assert not set(found) & set(sentences.everyday())
    assert list(more_speech.texts(3, 50)) == found[:50] != list(more_speech.texts(4, 50))
    assert list(more_speech.documents("test", 3)) == []
