"""Scenes say what they show, books have no holes and few pictures, wording is consistent."""

import random
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from m27.codec import media
from m27.data import boxes, holdout
from m27.data import messages as say
from m27.data.makers import asked, books, canvas, scenes, triples
from m27.data.prompts import PROMPTS, ask
from m27.data.sources import easy_vqa, stamps, storybooks
from m27.data.sources.base import Item, plain, with_article

TASKS = {
    "name_picture",
    "caption_picture",
    "vqa",
    "scene_caption",
    "scene_count",
    "scene_color",
    "scene_where",
    "scene_box",
    "draw",
    "story",
    "story_page",
    "name_sound",
    "name_instrument",
    "name_word",
    "transcribe",
    "speak",
    "sound_for_text",
    "sound_for_picture",
    "picture_for_sound",
    "text",
}


def png(color: tuple[int, int, int], height: int = 20, width: int = 20) -> bytes:
    return media.png_bytes(np.full((height, width, 3), color, np.uint8))


@pytest.fixture
def pool() -> list[Item]:
    """Three cut-outs in colors that no background has."""
    names = {"dog": (1, 255, 1), "cat": (255, 1, 255), "red fox": (1, 1, 255)}
    return [Item(f"stamps/{n}", n, n, png(c), meta={"alpha": True}) for n, c in names.items()]


def box_of(image: np.ndarray, color: tuple[int, int, int]) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(np.abs(image.astype(int) - color).sum(2) < 40)
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


@pytest.fixture(autouse=True)
def plain_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Photographs as backgrounds stay on the shelf: one gray picture stands for them."""
    gray = Image.new("RGB", (128, 128), (128, 128, 128))
    monkeypatch.setattr(canvas, "photographs", lambda split: [gray])


COLOR = {"dog": (1, 255, 1), "cat": (255, 1, 255), "red fox": (1, 1, 255)}


@pytest.mark.parametrize("maker", [scenes.related, scenes.single])
def test_boxes_are_where_the_pixels_are(maker: Any, pool: list[Item]) -> None:
    for seed in range(30):
        scene = maker(random.Random(seed), pool)
        for thing in scene.things:
            found = box_of(scene.image, COLOR[thing.name])
            assert np.abs(np.subtract(found, thing.box)).max() <= 1


def test_relations_hold(pool: list[Item]) -> None:
    """What is asked agrees with the boxes; yes and no are as many as each other."""
    seen: Counter[str] = Counter()
    for seed in range(150):
        rng = random.Random(seed)
        scene = scenes.related(rng, pool)
        one, two = scene.things
        (x0, y0), (x1, y1) = ((sum(t.box[::2]) / 2, sum(t.box[1::2]) / 2) for t in (one, two))
        truth = {"left": x0 < x1, "right": x0 > x1, "above": y0 < y1, "below": y0 > y1}
        words = re.search(r"left|right|above|below", scene.caption)
        assert words is not None
        assert truth[words[0]]
        assert scene.caption.startswith(one.name)
        assert scenes.relation(one, two) == words[0]
        assert scenes.relation(two, one) == scenes._OPPOSITE[words[0]]
        for kind, question, answer in scenes.questions("scene_relation", scene, rng, None):
            seen[answer] += 1
            first = one.name in question and (
                two.name not in question or question.index(one.name) < question.index(two.name)
            )
            sign = words[0] if first else scenes._OPPOSITE[words[0]]
            if kind == "where":
                assert answer == sign
            elif kind == "what":
                asked = re.search(r"left|right|above|below", question)
                assert asked is not None
                named = two if answer == one.name else one
                assert named.name in question
                there = words[0] if answer == one.name else scenes._OPPOSITE[words[0]]
                assert asked[0] == there
            else:
                said = re.search(r"left|right|above|below", question)
                assert said is not None
                assert answer == ("yes" if said[0] == sign else "no")
    assert 0.8 < seen["yes"] / seen["no"] < 1.25
    assert min(seen[word] for word in scenes.RELATIONS) > 40


def test_unclear_relations_are_not_asked() -> None:
    thing = scenes.Thing("dog", (40, 40, 60, 60))
    assert scenes.relation(thing, scenes.Thing("cat", (60, 40, 80, 60))) == "", "too near"
    assert scenes.relation(thing, scenes.Thing("cat", (90, 90, 110, 110))) == "", "diagonal"


def test_counts_are_said(pool: list[Item]) -> None:
    for seed in range(40):
        scene = scenes.counted(random.Random(seed), pool)
        for name in {t.name for t in scene.things}:
            number = sum(t.name == name for t in scene.things)
            assert scenes.amount(number, name) in scene.caption
        for a in scene.things:
            for b in scene.things:
                if a is not b:
                    apart = a.box[2] <= b.box[0] + 2 or b.box[2] <= a.box[0] + 2
                    assert apart or a.box[3] <= b.box[1] + 2 or b.box[3] <= a.box[1] + 2


def test_shapes_have_their_colors() -> None:
    for seed in range(20):
        scene = scenes.shaped(random.Random(seed), [])
        for thing in scene.things:
            x, y = (thing.box[0] + thing.box[2]) // 2, (thing.box[1] + thing.box[3]) // 2
            assert tuple(scene.image[y, x]) == scenes.COLORS[thing.color]
            found = box_of(scene.image, scenes.COLORS[thing.color])
            assert np.abs(np.subtract(found, thing.box)).max() <= 1


def test_a_color_is_named_only_where_it_rules() -> None:
    def measured(*colors: tuple[int, int, int]) -> str:
        stripes = np.zeros((40, 40, 4), np.uint8)
        for number, color in enumerate(colors):
            stripes[number * 40 // len(colors) :] = (*color, 255)
        return canvas.color_of(stripes)

    for name, color in scenes.COLORS.items():
        assert measured(color) == name
    assert measured(scenes.COLORS["red"], scenes.COLORS["blue"]) == ""
    assert measured(scenes.COLORS["black"], *[scenes.COLORS["green"]] * 4) == "green", "an outline"


def test_boxes_keep_to_the_grid() -> None:
    assert boxes.spelled((0, 16, 40, 128)) == "0 1 2 8", "40 is as near to 2 as to 3: the even one"
    assert boxes.spelled((50, 50, 52, 52)) == "3 3 4 4", "at least one unit"
    assert boxes.spelled((3, 0, 62, 63), 64) == "0 0 8 8"
    assert boxes.overlap((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert boxes.overlap((0, 0, 2, 2), (3, 3, 4, 4)) == 0
    assert boxes.fits_grid((0, 16, 40, 128))
    assert not boxes.fits_grid((50, 50, 52, 52))


@pytest.mark.parametrize(
    ("box", "place"),
    [((0, 0, 30, 30), "top left"), ((50, 50, 80, 80), "middle"), ((90, 50, 128, 80), "right")],
)
def test_places(box: tuple[int, int, int, int], place: str) -> None:
    assert scenes.Thing("dog", box).place == place


def test_scene_documents(pool: list[Item], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "cutouts", lambda side: pool)
    monkeypatch.setitem(scenes.COUNT, "train", 60)
    monkeypatch.setitem(scenes.COUNT, "test", 36)
    train, again = (list(scenes.documents("train", 1)) for _ in range(2))
    other, test = list(scenes.documents("train", 2)), list(scenes.documents("test", 1))
    assert [words_of(d) for d in train] == [words_of(d) for d in again]
    assert [words_of(d) for d in train] != [words_of(d) for d in other]
    assert {d["task"] for d in train} == {task for task, _ in scenes._TASKS}
    assert len({d["id"] for d in train + test}) == 96
    for document in test:
        task = document["task"]
        if task in ("scene_caption",):
            assert words_of(document)[0] == PROMPTS[task][0]
        assert len(document["messages"]) == 2
    corners = [words_of(d)[1] for d in test if d["task"] == "scene_box"]
    assert corners
    assert all(re.fullmatch(r"[0-8]( [0-8]){3}", box) for box in corners)
    kinds = [d["id"].rsplit("/", 1)[1] for d in test if d["task"] == "scene_relation"]
    assert set(kinds) == {"where", "what", "is"}


def test_scenes_are_asked_about_in_many_ways(pool: list[Item]) -> None:
    for number, (maker, first) in enumerate(asked._SCENES):
        rng = random.Random(number)
        scene, found = asked._asked_scene(maker, first, rng, pool, "train")
        assert 1 <= len(found) <= asked.MOST
        assert len({question for _, question, _ in found}) == len(found)
        assert scene.image.shape == (128, 128, 3)
        known = [
            answer
            for task in (*first, *asked._EVERY)
            for _, _, answer in scenes.questions(task, scene, random.Random(0), None)
        ]
        assert all(answer in (*known, "yes", "no") for _, _, answer in found)
        asks_to_count = any(answer in scenes.NUMBERS[1:] for _, _, answer in found)
        assert asks_to_count == ("scene_count" in first), "else nearly every count is one"


def test_vqa_questions_tell_what_is_there() -> None:
    pairs = [("what color is the shape?", "red"), ("is there a red shape?", "yes")]
    pairs += [(f"is there a {n} shape?", "no") for n in range(9)]
    pairs += [("is there not a red shape?", "no"), ("is there not a blue shape?", "yes")]
    chosen = asked.telling(pairs, random.Random(0))
    assert {pairs[0], pairs[1], pairs[11]} <= set(chosen)
    assert len(chosen) == 6
    assert chosen != asked.telling(pairs, random.Random(1)), "in any order"


def words_of(document: Any) -> list[str]:
    return [
        "".join(part["text"] for part in message["content"] if part["type"] == "text")
        for message in document["messages"]
    ]


def test_plurals() -> None:
    made = {n: scenes.plural(n) for n in ("dog", "cherry", "bus", "wolf", "sheep", "ox", "key")}
    assert made == {
        "dog": "dogs",
        "cherry": "cherries",
        "bus": "buses",
        "wolf": "wolves",
        "sheep": "sheep",
        "ox": "oxen",
        "key": "keys",
    }


def book(story: str, texts: list[str], images: list[bytes | None]) -> list[Item]:
    return [
        Item(
            f"storybooks/{story}/{n:02d}",
            "the tale",
            text,
            image,
            meta={"story": story, "page": n, "title": "The tale", "credits": ""},
        )
        for n, (text, image) in enumerate(zip(texts, images, strict=True))
    ]


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> list[list[Item]]:
    texts = ["The tale", *[f"Page {n}. It went on." for n in range(1, 8)]]
    pictures = [png((n * 20, 90, 90), 30, 40) for n in range(8)]
    made = [book("1", texts, list(pictures)), book("2", texts[:4], list(pictures[:4]))]
    monkeypatch.setattr(storybooks, "books", lambda: iter(made))
    monkeypatch.setattr(holdout, "held_out", lambda source, concept, digest="": False)
    return made


def test_book_documents(shelf: list[list[Item]]) -> None:
    documents = list(books.documents("train", 0))
    assert {d["task"] for d in documents} == {"story", "story_page", "story_text", "story_next"}
    assert len({d["id"] for d in documents}) == len(documents)
    for document in documents:
        parts = [part for message in document["messages"] for part in message["content"]]
        shown = [part for part in parts if part["type"] == "image"]
        assert 1 <= len(shown) <= books.MAX_PICTURES
        assert all(part["image"].shape == (128, 128, 3) for part in shown)
        if document["task"] == "story":
            answer = [part["type"] for part in document["messages"][1]["content"]]
            assert answer == ["text", "image"] * (len(answer) // 2)
    assert list(books.documents("test", 0)) == []
    drawn = [d for d in documents if d["id"].startswith("story_page:picture")]
    assert len(drawn) == 12, "every page is drawn once"


def test_book_ends_before_a_dropped_page(
    shelf: list[list[Item]], monkeypatch: pytest.MonkeyPatch
) -> None:
    leaked = shelf[0][4].content_hash
    monkeypatch.setattr(holdout, "near_duplicates", lambda: frozenset({leaked}))
    assert [len(pages) for pages in books.books("train")] == [4, 4]


def test_long_pages_keep_whole_sentences() -> None:
    assert books.shorten("One two. Three four five.", 3) == "One two."
    assert books.shorten("One two three four.", 3) == ""
    assert books.shorten("One\n two", 3) == "One two"


def test_triples(monkeypatch: pytest.MonkeyPatch) -> None:
    wave = np.sin(np.arange(8000) / 9).astype(np.float32)

    def sounds() -> Iterator[Item]:
        for key, side in (
            ("animals/dog", "train"),
            ("symbols/a", "train"),
            ("animals/owl", "test"),
        ):
            name = key.split("/")[1]
            yield Item(f"stamps/{key}", name, name, png((9, 9, 9)), wave, {"split": side})

    monkeypatch.setattr(stamps, "sounds", sounds)
    monkeypatch.setattr(stamps, "spoken", lambda: iter(()))
    made = list(triples.documents("train", 0))
    tasks = [d["task"] for d in made]
    ways = ["sound_for_picture", "picture_for_sound", "name_sound", "sound_for_text"]
    assert tasks == ways * triples.VARIANTS
    assert len({d["id"] for d in made}) == len(made)
    shown = [d["messages"][0]["content"][0]["image"] for d in made[:: len(ways)]]
    assert all(picture.shape == (128, 128, 3) for picture in shown)
    assert len({picture.tobytes() for picture in shown}) > triples.VARIANTS / 2, "they vary"
    assert len(list(triples.documents("test", 0))) == len(ways)
    heard = next(d for d in triples.documents("test", 0) if d["task"] == "name_sound")
    assert words_of(heard) == [PROMPTS["name_sound"][0], "owl"]


def test_trim_cuts_silence_and_length() -> None:
    wave = np.zeros(80_000, np.float32)
    wave[20_000:78_000] = 0.3
    cut = stamps.trim(wave, 3.0)
    assert cut.size == 48_000
    assert abs(float(np.abs(cut).max()) - 0.9) < 1e-6
    assert abs(float(cut[-1])) < 1e-6, "faded out"
    assert stamps.trim(np.zeros(100, np.float32), 3.0).size == 0


def test_easy_vqa_questions_are_balanced() -> None:
    pairs = [("what color is the shape?", "red"), ("what shape is it?", "circle")]
    pairs += [(f"is it {n}?", "no") for n in range(9)] + [("is it red?", "yes")]
    chosen = easy_vqa._choose(pairs, random.Random(0))
    assert sorted(answer for _, answer in chosen) == ["circle", "no", "red", "yes"]


def test_every_task_has_several_phrasings() -> None:
    assert set(PROMPTS) >= TASKS
    for task, phrasings in PROMPTS.items():
        assert len(set(phrasings)) == len(phrasings)
        assert len(phrasings) >= 3 or task in ("vqa", "text"), task
        places = {"{text}" in phrasing for phrasing in phrasings}
        assert len(places) == 1, f"{task}: some phrasings take a text and some do not"


def test_asking() -> None:
    assert ask("draw", text="a dog") == "Draw a dog."
    assert {ask("draw", random.Random(n), text="x") for n in range(60)} == {
        phrasing.format(text="x") for phrasing in PROMPTS["draw"]
    }
    with pytest.raises(KeyError):
        ask("nothing")


def test_house_style() -> None:
    assert plain("A red fox.") == "red fox"
    assert with_article("owl") == "an owl"
    assert with_article("unicorn") == "a unicorn"
    assert with_article("scissors") == "scissors"
    assert with_article("two dogs") == "two dogs"
    assert with_article("bus") == "a bus"
    assert with_article("flag of peru") == "the flag of peru"


def test_pictures_keep_their_proportions() -> None:
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 255
    photograph = say.picture(Item("x/1", "", "", media.png_bytes(wide)))["image"]
    assert photograph.min() == 255, "the middle square"
    whole = say.picture(Item("x/1", "", "", media.png_bytes(wide), meta={"alpha": True}))["image"]
    assert (whole[0] == 255).all(), "on white"
    assert whole[64, 5].max() < 20, "whole"
    with pytest.raises(media.MediaError, match="x/2"):
        say.picture(Item("x/2", "", "", b"nothing"))
