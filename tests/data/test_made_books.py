"""Made books have as many pictures as asked for, where they are asked for; captions their language."""

import random
import re
from typing import Any

import numpy as np
import pytest

from m27.codec import media
from m27.data import registry
from m27.data.makers import canvas, heard_pictures, languages, made_books
from m27.data.prompts import LANGUAGES, PROMPTS, ask_in
from m27.data.sources import environment, stamps
from m27.data.sources.base import Item

ANIMALS = ("fox", "owl", "bear", "horse", "frog")
THINGS = ("cake", "lamp", "hammer", "bicycle")


def cutout(number: int) -> bytes:
    rgb = np.full((30, 24, 3), 20 * number + 10, np.uint8)
    return media.png_bytes(rgb)


@pytest.fixture(autouse=True)
def pool(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [
        Item(f"stamps/{folder}/{name}", name, name, cutout(n), meta={"alpha": True})
        for n, (folder, name) in enumerate(
            [*(("animals", name) for name in ANIMALS), *(("household", name) for name in THINGS)]
        )
    ]
    wave = np.sin(np.arange(30_000) / 9).astype(np.float32)
    loud = [Item("stamps/animals/cow", "cow", "cow", cutout(9), wave, {"split": "train"})]
    monkeypatch.setattr(canvas, "cutouts", lambda split: made)
    monkeypatch.setattr(stamps, "sounds", lambda: iter(loud))
    monkeypatch.setitem(made_books.COUNT, "train", 120)
    monkeypatch.setitem(made_books.COUNT, "test", 12)


def parts_of(document: Any) -> tuple[str, list[Any]]:
    """What the user says, and the parts of the answer."""
    asked, answer = document["messages"]
    said = "".join(part["text"] for part in asked["content"] if part["type"] == "text")
    return said, answer["content"]


def of_task(task: str, side: Any = "train") -> list[Any]:
    return [d for d in made_books.documents(side, 1) if d["task"] == task]


def test_a_story_has_the_asked_number_of_pictures_and_names_what_they_show() -> None:
    amounts = {"one picture": 1, "2 pictures": 2, "3 pictures": 3, "4 pictures": 4}
    seen = set()
    for document in of_task("story_count"):
        said, answer = parts_of(document)
        wanted = next(n for words, n in amounts.items() if words in said)
        seen.add(wanted)
        assert [part["type"] for part in answer] == ["text", "image"] * wanted
        told = " ".join(part["text"] for part in answer if part["type"] == "text")
        about = [name for name in (*ANIMALS, *THINGS) if re.search(rf"\b{name}\b", said)]
        assert about
        assert all(re.search(rf"\b{name}\b", told) for name in about)
    assert seen == {1, 2, 3, 4}


def places(said: str, count: int) -> set[int]:
    """The sentences after which a request wants a picture, read from its words."""
    head = said.split(":")[0] if said.split(":")[0] != said else said
    if "every sentence" in head:
        return set(range(count))
    found = {n for n, word in enumerate(made_books.ORDINALS) if f"the {word}" in head}
    return found | ({count - 1} if "the last" in head else set())


def test_pictures_stand_where_they_are_asked_for_and_the_sentences_are_kept() -> None:
    sounds = 0
    for document in of_task("place_pictures"):
        said, answer = parts_of(document)
        text = said.split(": ", 1)[1]
        assert text == " ".join(part["text"] for part in answer if part["type"] == "text")
        count = len(re.findall(r"[.!?]", text))
        written, found = "", set()
        for part in answer:
            if part["type"] == "text":
                written += part["text"]
            elif part["type"] == "image":
                found.add(len(re.findall(r"[.!?]", written)) - 1)
            else:
                sounds += 1
                assert "its sound" in said
                assert part["audio"].size <= made_books._SOUND_SECONDS * 16_000
        assert found == places(said, count)
    assert sounds >= 2


def test_pieces_follow_a_page_of_their_story() -> None:
    for task, types in (("story_page", ["image"]), ("story_next", ["text", "image"])):
        for document in of_task(task):
            given = [part["type"] for part in document["messages"][0]["content"]]
            assert given == ["text", "image", "text"]
            assert [part["type"] for part in parts_of(document)[1]] == types


def test_documents_are_the_same_again_and_the_test_side_asks_the_first_phrasing() -> None:
    one, two = (list(made_books.documents("train", 3)) for _ in range(2))
    assert [parts_of(d)[0] for d in one] == [parts_of(d)[0] for d in two]
    assert len({d["id"] for d in one}) == len(one)
    for document in of_task("place_pictures", "test"):
        assert parts_of(document)[0].startswith(PROMPTS["place_pictures"][0].split("{")[0])


def test_a_language_is_asked_for_in_english_or_in_itself() -> None:
    assert ask_in("de") == "Describe the picture in German."
    asked = {ask_in("de", random.Random(n)) for n in range(60)}
    assert set(LANGUAGES["de"][1]) < asked
    assert all(own in asked or "German" in own for own in asked)


def test_translations_of_stamps(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    folder = tmp_path / "stamps" / "animals"
    folder.mkdir(parents=True)
    (folder / "dog.txt").write_text(
        "A dog.\nde.utf8=Ein Hund.\nfr.utf8=Un chien.\nnl.utf8=A dog.\nxx.utf8=?\n"
    )
    monkeypatch.setattr(stamps, "pictures", lambda: [folder / "dog.png"])
    found = stamps.translations(tuple(LANGUAGES))
    assert found == {"stamps/animals/dog": {"de": "Ein Hund", "fr": "Un chien"}}


def test_emoji_have_names_in_every_language() -> None:
    if not registry.is_fetched("emojibase-data"):
        pytest.skip("emojibase-data is not on this machine (m27 data fetch)")
    assert languages.names("fox") == {
        "de": "Fuchs",
        "es": "zorro",
        "fr": "renard",
        "it": "volpe",
        "nl": "vos",
    }


def test_every_sound_of_a_class_goes_with_pictures_of_that_class() -> None:
    assert set(heard_pictures.SHOWN) == set(environment.CLASSES)
    good = {"dog face": "dog bark", "helicopter": "helicopter", "baby": "baby cry"}
    for name, kind in good.items():
        assert [k for k, words in heard_pictures.SHOWN.items() if re.fullmatch(words, name)] == [
            kind
        ]
    assert not any(re.fullmatch(words, "hot dog stand") for words in heard_pictures.SHOWN.values())
