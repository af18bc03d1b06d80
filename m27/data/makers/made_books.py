"""Made picture books, whose request says how many pictures there are to be, or where.

`story_count` asks for a story about named things with N pictures: N times a sentence and the
picture of what it names. `place_pictures` asks to write given sentences and to draw a picture (and
sometimes make the sound) after some of them. Pieces of the same stories are asked for with their
first page given: `story_page` (the next picture) and `story_next` (the next page). Things are the
cut-outs of one side of the hold-out; a story keeps its place, which colors the paper.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m27.data import messages as say
from m27.data.makers import canvas as paper
from m27.data.prompts import ask
from m27.data.sources import stamps
from m27.data.sources.base import Document, Item, Side, of_split, with_article
from m27.data.sources.clips import loudest

NAME = "made_books"
COUNT: dict[Side, int] = {"train": 16_000, "test": 1_200}
MAX_PICTURES = 4
PLACES: dict[str, str] = {
    "in a green meadow": "green", "in the forest": "green", "by the blue sea": "blue",
    "under the blue sky": "blue", "on the yellow sand": "yellow", "in the white snow": "white",
    "in a white room": "white", "in the dark night": "black", "in a gray town": "gray",
    "in the brown hills": "brown", "under an orange sky": "orange", "in a pink house": "pink",
}  # fmt: skip
ORDINALS = ("first", "second", "third", "fourth")
_AMOUNTS = ("no pictures", "one picture", "2 pictures", "3 pictures", "4 pictures")
_BEGIN = (
    "{A} lives {place}.", "Once there was {A} {place}.", "{A} wakes up {place}.",
    "Look, {A} {place}!", "This is {A}. It is at home {place}.",
)  # fmt: skip
_MEET = (
    "One day it sees {B}.", "Then {B} comes by.", "It meets {B}.", "{B} says hello.",
    "Who is there? It is {B}.",
)  # fmt: skip
_FIND = (
    "Together they find {C}.", "Behind a stone there is {C}.", "They both want {C}.",
    "Then they see {C}.", "Now they look for {C}, and there it is.",
)  # fmt: skip
_END = (
    "The {a} and the {b} are friends now.", "The {a} and the {b} go home.",
    "The {a} and the {b} play all day.", "So the {a} and the {b} stay together.",
)  # fmt: skip
_BOTH = ("{A} and {B} meet {place}.", "{A} and {B} live {place}.", "{A} plays with {B} {place}.")
_ALONE = (
    "The {a} is happy.", "The {a} runs fast.", "Then the {a} falls asleep.", "The {a} is hungry.",
    "Now the {a} looks around.", "Good night, {a}!",
)  # fmt: skip
_SAID = (
    "There is {A} {place}.", "I see {A}.", "Here comes {A}.", "My friend has {A}.",
    "We find {A} {place}.", "{A} is all I want.", "Can you see {A}?", "Yesterday I drew {A}.",
)  # fmt: skip
_SOUND_SECONDS = 1.2
_NOT_ALIVE = re.compile(
    r"\b(flower|tree|lea\w+|herb|cactus|tulip|rose|hibiscus|sunflower|blossom|seedling|plant|"
    r"bouquet|rice|clover|shamrock|mushroom|rosette|nest|paw|prints|lotus|hyacinth|feather|coral|"
    r"web|bone|shell|wing|wood|rock|egg|footprints|branch|pine|palm|moon|sun|fire)\b"
)


@dataclass(frozen=True)
class Page:
    """A sentence and the things that its picture shows."""

    text: str
    things: tuple[Item, ...]


def documents(split: Side, seed: int) -> Iterator[Document]:
    """16,000 documents to train on and 1,200 to test, the tasks in turn (see `_TASKS`)."""
    pool = paper.cutouts(split)
    alive = [item for item in pool if living(item)]
    dead = [item for item in pool if not living(item)]
    sounding = [
        item
        for item in of_split(stamps.sounds(), split)
        if paper.countable(item.text) and len(item.text.split()) <= 2 and item.audio is not None
    ]
    for number in range(COUNT[split]):
        rng = random.Random(f"{NAME}:{split}:{seed}:{number}")
        phrase = say.phrasing(split, seed, f"{NAME}:{number}")
        task = _TASKS[number % len(_TASKS)]
        name = f"{NAME}/{split}/{seed}/{number:05d}"
        if task == "place_pictures":
            messages = _placed(rng, phrase, pool, sounding)
        else:
            pages, place = story(rng, alive, dead)
            while task != "story_count" and len(pages) < 2:
                pages, place = story(rng, alive, dead)
            messages = _told(task, pages, place, rng, phrase)
        yield say.document(name, task, NAME, messages)


_TASKS = ("story_count", "place_pictures", "story_page", "story_count", "place_pictures",
          "story_next")  # fmt: skip


def living(item: Item) -> bool:
    """Whether an item is an animal, as far as its source's groups and its name tell."""
    group = item.meta.get("group") or item.meta.get("folder", "") or item.key.split("/")[1]
    return group.startswith("animals") and not _NOT_ALIVE.search(item.text)


def story(rng: random.Random, alive: list[Item], dead: list[Item]) -> tuple[list[Page], str]:
    """One to four pages about one animal, two, or two and a thing; and the place of it all."""
    length = rng.choice((1, 2, 2, 3, 3, 3, 4, 4))
    place = rng.choice(list(PLACES))
    hero, friend = _different(rng, alive, 2)
    thing = rng.choice(dead)
    words = {
        "A": with_article(hero.text), "a": hero.text, "B": with_article(friend.text),
        "b": friend.text, "C": with_article(thing.text), "c": thing.text, "place": place,
    }  # fmt: skip

    def page(lines: tuple[str, ...], *shown: Item) -> Page:
        text = rng.choice(lines).format(**words)
        return Page(text[0].upper() + text[1:], shown)

    if rng.random() < 0.25:
        others = rng.sample(_ALONE, length - 1)
        return [page(_BEGIN, hero), *(page((line,), hero) for line in others)], place
    if length == 1:
        return [page(_BOTH, hero, friend)], place
    pages = [page(_BEGIN, hero), page(_MEET, friend)]
    if length == 4:
        pages.append(page(_FIND, thing))
    if length >= 3:
        pages.append(page(_END, hero, friend))
    return pages, place


def named(pages: list[Page]) -> list[Item]:
    """The things of a story, in the order in which they come up."""
    found = {item.text: item for page in pages for item in page.things}
    return list(found.values())


def listed(names: list[str]) -> str:
    """ "a fox", "a fox and an owl", "a fox, an owl and a cake"."""
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def illustration(things: tuple[Item, ...], color: str, rng: random.Random) -> NDArray[np.uint8]:
    """One or two things side by side on colored paper: uint8 [128, 128, 3]."""
    sheet = paper.colored_paper(rng, color, graded=rng.random() < 0.5)
    side = 92 if len(things) == 1 else 58
    for number, item in enumerate(things):
        size = paper.scaled(paper.cut(item).size, round(side * rng.uniform(0.85, 1.0)))
        middle = ((number + 0.5) * paper.SIZE / len(things), paper.SIZE * rng.uniform(0.5, 0.6))
        paper.paste(sheet, item, paper.corner_near(middle, size, rng, 3), max(size))
    return paper.pixels(sheet)


def _told(
    task: str, pages: list[Page], place: str, rng: random.Random, phrase: random.Random | None
) -> list[say.Message]:
    """The whole story as asked for, or its page that follows a given one."""
    color = PLACES[place]
    told = [
        [say.words(page.text), say.image(illustration(page.things, color, rng))] for page in pages
    ]
    names = listed([with_article(item.text) for item in named(pages)])
    if task == "story_count":
        wish = ask(task, phrase, text=names, more=_AMOUNTS[len(pages)])
        return say.turn([say.words(wish)], [part for page in told for part in page])
    after = rng.randrange(1, len(pages))
    if task == "story_page":
        wish = ask("story_page", phrase, text=pages[after].text)
        return say.turn([*told[after - 1], say.words(wish)], [told[after][1]])
    return say.turn([*told[after - 1], say.words(ask("story_next", phrase))], told[after])


def _placed(
    rng: random.Random, phrase: random.Random | None, pool: list[Item], sounding: list[Item]
) -> list[say.Message]:
    """Sentences to be written as they are, with a picture (or its sound as well) where asked."""
    count = rng.choice((2, 3, 3, 4))
    loud = bool(sounding) and rng.random() < 0.2
    things = _different(rng, pool, count)
    asked = sorted(rng.sample(range(count), 1 if loud else rng.randint(1, min(count, 3))))
    if loud:
        things[asked[0]] = rng.choice(sounding)
    place, lines = rng.choice(list(PLACES)), rng.sample(_SAID, count)
    sentences = []
    for item, line in zip(things, lines, strict=True):
        text = line.format(A=with_article(item.text), place=place)
        sentences.append(text[0].upper() + text[1:])
    answer: list[say.Part] = []
    waiting: list[str] = []
    for number, sentence in enumerate(sentences):
        waiting.append(sentence)
        if number in asked:
            item = things[number]
            shown = illustration((item,), PLACES[place], rng)
            answer += [say.words(" ".join(waiting)), say.image(shown)]
            if loud and item.audio is not None:
                answer.append(say.sound(loudest(item.audio, _SOUND_SECONDS)))
            waiting = []
    if waiting:
        answer.append(say.words(" ".join(waiting)))
    where = _where(asked, count, rng) + (", and its sound" if loud else "")
    wish = ask("place_pictures", phrase, text=" ".join(sentences), more=where)
    return say.turn([say.words(wish)], answer)


def _where(asked: list[int], count: int, rng: random.Random) -> str:
    """The asked places in words: "the second and the last", "every sentence"."""
    if len(asked) == count:
        return "every sentence"
    words = [ORDINALS[number] for number in asked]
    if asked[-1] == count - 1 and rng.random() < 0.6:
        words[-1] = "last"
    return listed([f"the {word}" for word in words])


def _different(rng: random.Random, pool: list[Item], count: int) -> list[Item]:
    """Items of different names."""
    chosen: dict[str, Item] = {}
    while len(chosen) < count:
        item = rng.choice(pool)
        chosen.setdefault(item.text, item)
    return list(chosen.values())
