"""One picture or sound with all that can be asked about it, in one document of several branches.

Each question stands alone, as users ask it (see `m27.data.branches`); only the picture is spelled once.
Of easy-VQA the open questions, those whose answer tells something, and a few others; of made scenes counts,
relations, colors, places and boxes together; of notes the instrument and its family.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import zip_longest

from m27.data import messages as say
from m27.data.makers import scenes
from m27.data.makers.canvas import Scene, cutouts
from m27.data.makers.scenes import Maker, Question
from m27.data.prompts import ask
from m27.data.sources import easy_vqa, instruments
from m27.data.sources.base import Document, Item, Side, of_split
from m27.data.sources.clips import on_side

NAME = "asked"
SCENES: dict[Side, int] = {"train": 30_000, "test": 600}
PLAIN = 0.5  # of the questions in training are in the first phrasing, as evaluation asks them
MOST = 8  # questions about one picture
_OTHERS = 3  # questions of easy-VQA whose answer was to be expected
# Makers of scenes in turn, each with the tasks that come first; others fill up.
_SCENES: tuple[tuple[Maker, tuple[str, ...]], ...] = (
    (scenes.counted, ("scene_count", "scene_color")),
    (scenes.related, ("scene_relation", "scene_box")),
    (scenes.single, ("scene_box", "scene_color", "scene_where")),
    (scenes.counted, ("scene_count", "scene_color")),
    (scenes.shaped, ("scene_relation", "scene_color", "scene_where")),
    (scenes.single, ("scene_box", "scene_color", "scene_where")),
    (scenes.related, ("scene_relation", "scene_box")),
    (scenes.colored, ("scene_color", "scene_box", "scene_where")),
)
# What fills up: no count, since most scenes hold one of a thing and "one" would be nearly always right.
_EVERY = ("scene_relation", "scene_color", "scene_where", "scene_box")


def documents(split: Side, seed: int) -> Iterator[Document]:
    """`vqa`, `scene_questions` and `instrument_questions` in turn as far as they come."""
    kinds = (_pictures(split, seed), _scenes(split, seed), _notes(split, seed))
    for row in zip_longest(*kinds):
        yield from (document for document in row if document is not None)


def about(
    name: str, task: str, medium: say.Part, asked: list[tuple[str, str]], source: str = NAME
) -> Document:
    """One document of a medium with several (question, answer) pairs, each a branch of its own."""
    first, *others = [
        say.turn([medium, say.words(question)], [say.words(answer)]) for question, answer in asked
    ]
    made = say.document(name, task, source, first)
    if others:
        made["branches"] = others
    return made


def _phrase(rng: random.Random, split: Side) -> random.Random | None:
    return None if split == "test" or rng.random() < PLAIN else rng


def _pictures(split: Side, seed: int) -> Iterator[Document]:
    for item in say.shuffled(of_split(easy_vqa.items(), split), seed):
        rng = random.Random(f"{NAME}:{seed}:{item.key}")
        yield about(item.key, "vqa", say.picture(item), telling(item.meta["questions"], rng))


def telling(pairs: list[tuple[str, str]], rng: random.Random) -> list[tuple[str, str]]:
    """The open questions, those of yes and no whose answer says what is there, and a few others."""
    expected = [answer == ("yes" if " not " in question else "no") for question, answer in pairs]
    chosen = [pair for pair, usual in zip(pairs, expected, strict=True) if not usual]
    others = [pair for pair, usual in zip(pairs, expected, strict=True) if usual]
    chosen += rng.sample(others, min(len(others), _OTHERS))
    return rng.sample(chosen, len(chosen))[:MOST]


def _scenes(split: Side, seed: int) -> Iterator[Document]:
    pool = cutouts(split)
    for number in range(SCENES[split]):
        rng = random.Random(f"{NAME}:{split}:{seed}:{number}")
        maker, first = _SCENES[number % len(_SCENES)]
        scene, found = _asked_scene(maker, first, rng, pool, split)
        name = f"{NAME}/{split}/{seed}/{number:05d}"
        pairs = [(question, answer) for _, question, answer in found]
        yield about(name, "scene_questions", say.image(scene.image), pairs)


def _asked_scene(
    maker: Maker, first: tuple[str, ...], rng: random.Random, pool: list[Item], split: Side
) -> tuple[Scene, list[Question]]:
    """A scene and at most `MOST` questions about it: two of each task of `first`, then others."""
    while True:
        scene = maker(rng, pool, split)
        found: dict[str, list[Question]] = {}
        for task in dict.fromkeys((*first, *_EVERY)):
            every = scenes.questions(task, scene, rng, _phrase(rng, split))
            found[task] = rng.sample(every, len(every))
        if all(found[task] for task in first[:1]):
            break
    kept = [question for task in first for question in found[task][:2]]
    rest = [question for questions in found.values() for question in questions]
    rest = [question for question in rng.sample(rest, len(rest)) if question not in kept]
    kept = [*kept, *rest][:MOST]
    return scene, rng.sample(kept, len(kept))


def _notes(split: Side, seed: int) -> Iterator[Document]:
    for item in say.shuffled(on_side(instruments.items(), split), seed):
        if item.audio is None:
            continue
        rng = random.Random(f"{NAME}:{seed}:{item.key}")
        audio = item.audio if split == "test" else instruments.played_again(item.audio, rng)
        asked = [
            (ask("name_family", _phrase(rng, split)), instruments.FAMILIES[item.text]),
            (ask("name_instrument", _phrase(rng, split)), item.text),
        ]
        yield about(item.key, "instrument_questions", say.sound(audio), asked)
