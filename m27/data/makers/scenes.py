"""Scenes made of cut-outs: pictures whose caption, counts, colors, places and boxes are known.

A scene of one side uses cut-outs and photographs of that side only. Places are words for the third
of the picture that holds the middle of the thing; a relation is asked for only where it is clear, a
color only of what has one; a box is "left top right bottom" in whole units of an 8×8 grid, the
codes of the picture, and asked for only where rounding keeps most of it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from PIL import Image, ImageDraw

from m27.data import messages as say
from m27.data.boxes import GRID, fits_grid
from m27.data.makers import canvas as paper
from m27.data.makers.canvas import COLORS, PHOTOGRAPH, SHAPES, SIZE, Scene, Thing, cutouts
from m27.data.prompts import ask
from m27.data.sources.base import Document, Item, Side, plain, with_article

__all__ = ["COLORS", "GRID", "PHOTOGRAPH", "SHAPES", "SIZE", "Scene", "Thing", "cutouts"]

NAME = "scenes"
COUNT: dict[Side, int] = {"train": 36_000, "test": 3_000}
NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
RELATIONS = ("left", "right", "above", "below")
_SAID = {"left": "left of", "right": "right of", "above": "above", "below": "below"}
_CAPTIONED = {"left": "to the left of", "right": "to the right of"}
_OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
_IRREGULAR = {"mouse": "mice", "goose": "geese", "wolf": "wolves", "leaf": "leaves", "ox": "oxen"}
_SAME = ("fish", "sheep", "deer", "bread", "rice", "corn", "fruit", "milk", "broccoli", "garlic")
_TURNS = 3  # questions about one scene in training; in the test one

Maker = Callable[[random.Random, list[Item], Side], Scene]
Question = tuple[str, str, str]  # phrasing's kind, question, answer


def documents(split: Side, seed: int) -> Iterator[Document]:
    """36,000 scenes to train on and 3,000 to test, a document each, the tasks of `_TASKS` in turn."""
    pool = cutouts(split)
    for number in range(COUNT[split]):
        rng = random.Random(f"{NAME}:{split}:{seed}:{number}")
        yield _document(number, rng, pool, split, seed)


def plural(name: str) -> str:
    """More than one of a name.

    >>> plural("red fox"), plural("cherry"), plural("sheep")
    ('red foxes', 'cherries', 'sheep')
    """
    start, _, last = name.rpartition(" ")
    if last in _IRREGULAR:
        last = _IRREGULAR[last]
    elif last.endswith(("s", "x", "z", "ch", "sh")) and last not in _SAME:
        last += "es"
    elif last.endswith("y") and last[-2:-1] not in "aeou":
        last = last[:-1] + "ies"
    elif last not in _SAME:
        last += "s"
    return f"{start} {last}".strip()


def amount(number: int, name: str) -> str:
    """ "one dog", "three dogs"."""
    return f"{NUMBERS[number]} {name if number == 1 else plural(name)}"


def relation(one: Thing, other: Thing) -> str:
    """Where `one` lies, seen from `other`: a word of `RELATIONS`, "" where it is not clear.

    Clear: the middles are at least 36 pixels apart one way, and at most half of that the other way.
    """
    x, y = (a - b for a, b in zip(one.middle, other.middle, strict=True))
    if max(abs(x), abs(y)) < 36 or min(abs(x), abs(y)) > max(abs(x), abs(y)) / 2:
        return ""
    if abs(x) > abs(y):
        return "left" if x < 0 else "right"
    return "above" if y < 0 else "below"


def counted(rng: random.Random, pool: list[Item], split: Side = "train") -> Scene:
    """One or two kinds, one to five of each, in random cells of a 3×3 grid."""
    kinds = _kinds(rng, pool, rng.choice((1, 1, 2)))
    limit = 5 if len(kinds) == 1 else 4
    numbers = [rng.randint(1, limit) for _ in kinds]
    canvas, color, words = _paper(rng, kinds[0], split)
    cells = rng.sample([(c, r) for r in range(3) for c in range(3)], sum(numbers))
    things = []
    for item, number in zip(kinds, numbers, strict=True):
        for _ in range(number):
            things.append(_in_cell(canvas, item, cells.pop(), round(40 * _size(rng)), rng))
    listed = [amount(n, item.text) for item, n in zip(kinds, numbers, strict=True)]
    return Scene(paper.pixels(canvas), f"{' and '.join(listed)} {words}", color, tuple(things))


def related(rng: random.Random, pool: list[Item], split: Side = "train") -> Scene:
    """Two kinds, one left of, right of, above or below the other, a little out of line."""
    first, second = _kinds(rng, pool, 2)
    canvas, color, words = _paper(rng, first, split)
    word = rng.choice(RELATIONS)
    near, far = (rng.uniform(26, 36), rng.uniform(92, 102))
    start, end = (near, far) if word in ("left", "above") else (far, near)
    across = rng.uniform(34, 94)
    things = []
    for item, along in ((first, start), (second, end)):
        side = round(54 * _size(rng))
        out = across + rng.uniform(-10, 10)
        middle = (along, out) if word in ("left", "right") else (out, along)
        corner = paper.corner_near(middle, paper.scaled(paper.cut(item).size, side), rng)
        things.append(paper.paste(canvas, item, corner, side))
    said = _CAPTIONED.get(word, word)
    named = f"{with_article(first.text)} {said} {with_article(second.text)} {words}"
    return Scene(paper.pixels(canvas), plain(named), color, tuple(things))


def single(rng: random.Random, pool: list[Item], split: Side = "train") -> Scene:
    """One thing anywhere, of any size from a third to nearly all of the picture."""
    (item,) = _kinds(rng, pool, 1)
    canvas, color, words = _paper(rng, item, split)
    side = rng.choice((rng.randint(40, 64), rng.randint(64, 112)))
    return _alone(canvas, item, side, color, words, rng)


def colored(rng: random.Random, pool: list[Item], split: Side = "train") -> Scene:
    """One thing of one clear color, on a background of another."""
    for _ in range(40):
        (item,) = _kinds(rng, pool, 1)
        if color := paper.color_named(item):
            canvas, back, words = paper.background(rng, split, without=color, photos=False)
            return _alone(canvas, item, rng.randint(52, 100), back, words, rng)
    return shaped(rng, pool, split)


def shaped(rng: random.Random, pool: list[Item], split: Side = "train") -> Scene:
    """Two or three plain shapes of different colors on a light background; `pool` is not used."""
    names = rng.sample(SHAPES, rng.choice((2, 2, 3)))
    back = rng.choice(("white", "gray"))
    colors = rng.sample([c for c in COLORS if c not in ("white", "gray")], len(names))
    canvas = Image.new("RGB", (SIZE, SIZE), COLORS[back])
    cells = rng.sample([(c, r) for r in range(3) for c in range(3)], len(names))
    things = []
    for name, color, cell in zip(names, colors, cells, strict=True):
        x, y = paper.corner_near(_middle(cell), (36, 36), rng, 3)
        box = (x, y, x + 36, y + 36)
        paper.shape(ImageDraw.Draw(canvas), name, box, COLORS[color])
        shown = (x, y + 13, x + 36, y + 24) if name == "bar" else box
        things.append(Thing(name, shown, color))
    named = [with_article(f"{t.color} {t.name}") for t in things]
    caption = plain(f"{', '.join(named[:-1])} and {named[-1]} on a {back} background")
    return Scene(paper.pixels(canvas), caption, back, tuple(things))


def questions(task: str, scene: Scene, rng: random.Random, phrase: random.Random | None) -> list[
    Question
]:  # fmt: skip
    """All that `task` asks of a scene: (kind of question, its words, the answer)."""
    names = list(dict.fromkeys(thing.name for thing in scene.things))
    alone = [t for t in scene.things if sum(o.name == t.name for o in scene.things) == 1]
    if task == "scene_caption":
        return [("", ask(task, phrase), scene.caption)]
    if task == "scene_relation":
        return _relations(alone, rng, phrase)
    if task == "scene_count":
        numbers = {plural(n): sum(t.name == n for t in scene.things) for n in names}
        pairs = [(name, NUMBERS[count]) for name, count in numbers.items()]
    elif task == "scene_color":
        pairs = [(t.name, t.color) for t in alone if t.color]
        if scene.background != PHOTOGRAPH:
            pairs.append(("background", scene.background))
    elif task == "scene_where":
        pairs = [(t.name, t.place) for t in alone if t.clear_place]
    else:
        pairs = [(t.name, t.corners) for t in alone if fits_grid(t.box)]
    return [("", ask(task, phrase, text=name), answer) for name, answer in pairs]


def _relations(
    things: list[Thing], rng: random.Random, phrase: random.Random | None
) -> list[Question]:
    """For each pair in a clear relation the three kinds of question, yes and no equally often."""
    found = []
    for one in things:
        for other in things:
            word = relation(one, other)
            if not word:
                continue
            task = "scene_relation"
            where = ask(task, phrase, text=one.name, more=other.name)
            found.append(("where", where, word))
            if sum(relation(t, other) == word for t in things) == 1:
                which = ask(f"{task}/what", phrase, text=other.name, more=_SAID[word])
                found.append(("what", which, one.name))
            true = rng.random() < 0.5
            said = _SAID[word if true else _OPPOSITE[word]]
            claim = ask(f"{task}/is", phrase, text=one.name, more=f"{said} the {other.name}")
            found.append(("is", claim, "yes" if true else "no"))
    return found


def _document(
    number: int, rng: random.Random, pool: list[Item], split: Side, seed: int
) -> Document:
    """The number chooses the task, the task a fitting scene; a scene that allows no question goes."""
    phrase = say.phrasing(split, seed, f"{NAME}:{number}")
    task, makers = _TASKS[number % len(_TASKS)]
    name = f"{NAME}/{split}/{seed}/{number:05d}"
    if task == "draw":
        scene = rng.choice(makers)(rng, pool, split)
        wish = say.words(ask(task, phrase, text=with_article(scene.caption)))
        return say.document(name, task, NAME, say.turn([wish], [say.image(scene.image)]))
    found: list[Question] = []
    while not found:
        scene = rng.choice(makers)(rng, pool, split)
        found = questions(task, scene, rng, phrase)
    if task == "scene_relation" and split == "test":
        turn = ("where", "what", "is")[number // len(_TASKS) % 3]
        found = [q for q in found if q[0] == turn] or found
    kept = rng.sample(found, min(len(found), 1 if split == "test" else _TURNS))
    if kept[0][0] and split == "test":
        name = f"{name}/{kept[0][0]}"
    messages: list[say.Message] = []
    for _, text, answer in kept:
        asked = [say.words(text)]
        shown = [] if messages else [say.image(scene.image)]
        messages += say.turn([*shown, *asked], [say.words(answer)])
    return say.document(name, task, NAME, messages)


# In turn, so that the first N documents have the tasks in the same proportions for any N.
_TASKS: tuple[tuple[str, tuple[Maker, ...]], ...] = (
    ("scene_box", (single, single, related)),
    ("scene_count", (counted,)),
    ("scene_relation", (related, related, shaped)),
    ("scene_color", (shaped, colored, colored, single)),
    ("scene_caption", (counted, related, single, shaped)),
    ("scene_box", (single, single, related)),
    ("scene_relation", (related, related, shaped)),
    ("scene_count", (counted,)),
    ("scene_where", (single, related, shaped)),
    ("scene_color", (shaped, colored, colored, single)),
    ("draw", (counted, related, single, shaped)),
    ("scene_box", (single, single, related)),
)


def _kinds(rng: random.Random, pool: list[Item], number: int) -> list[Item]:
    """Items of different names."""
    chosen: list[Item] = []
    while len(chosen) < number:
        item = rng.choice(pool)
        if all(item.text != other.text for other in chosen):
            chosen.append(item)
    return chosen


def _paper(rng: random.Random, item: Item, split: Side) -> tuple[Image.Image, str, str]:
    """A background that is not of the item's own color."""
    return paper.background(rng, split, without=paper.color_named(item))


def _size(rng: random.Random) -> float:
    return rng.uniform(0.85, 1.0)


def _middle(cell: tuple[int, int]) -> tuple[float, float]:
    return (cell[0] + 0.5) * SIZE / 3, (cell[1] + 0.5) * SIZE / 3


def _in_cell(
    canvas: Image.Image, item: Item, cell: tuple[int, int], side: int, rng: random.Random
) -> Thing:
    """Paste a cut-out in a cell of the 3×3 grid, a little shifted where there is room."""
    size = paper.scaled(paper.cut(item).size, side)
    x, y = (max(0.0, SIZE / 3 - length) / 2 for length in size)
    corner = paper.corner_near(_middle(cell), size, rng, min(x, y))
    return paper.paste(canvas, item, corner, side)


def _alone(
    canvas: Image.Image, item: Item, side: int, color: str, words: str, rng: random.Random
) -> Scene:
    """One thing at a random place of the canvas."""
    size = paper.scaled(paper.cut(item).size, side)
    corner = (rng.randint(1, SIZE - 1 - size[0]), rng.randint(1, SIZE - 1 - size[1]))
    thing = paper.paste(canvas, item, corner, side)
    return Scene(paper.pixels(canvas), f"{item.text} {words}", color, (thing,))
