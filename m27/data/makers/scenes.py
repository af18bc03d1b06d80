"""Scenes made of cut-outs: pictures whose caption, counts, colors, places and boxes are known.

Stamps and emoji are pasted, without overlap, on a plain or graded background of a named color;
some scenes are of plain colored shapes instead. A scene of one side uses cut-outs of that side
only. Places are words for the third of the picture that holds the middle of the thing; a box is
"left top right bottom" in hundredths of the side.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from m27.codec import media
from m27.data import messages as say
from m27.data.prompts import ask
from m27.data.sources import emoji, stamps
from m27.data.sources.base import Document, Item, Side, of_split, plain, with_article

NAME = "scenes"
SIZE = 128
COUNT = {"train": 12_000, "test": 600}
NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
COLORS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (25, 25, 25),
    "gray": (150, 150, 150),
    "red": (220, 50, 45),
    "orange": (245, 150, 45),
    "yellow": (250, 220, 70),
    "green": (80, 170, 80),
    "blue": (70, 120, 215),
    "purple": (140, 80, 175),
    "pink": (245, 170, 195),
    "brown": (140, 95, 60),
}
SHAPES = ("circle", "square", "triangle", "diamond", "bar")
_FOLDERS = ("animals", "food", "vehicles", "household", "clothes", "hobbies", "plants", "sports")
_GROUPS = ("animals-nature", "food-drink", "objects", "activities", "travel-places")
_IRREGULAR = {"mouse": "mice", "goose": "geese", "wolf": "wolves", "leaf": "leaves", "ox": "oxen"}
_SAME = ("fish", "sheep", "deer", "bread", "rice", "corn", "fruit", "milk", "broccoli", "garlic")
_NO_THING = ("foggy", "sunrise", "sunset", "timer clock")
# Where two things stand: (words between them, column and row of the first and of the second).
_RELATIONS = (
    ("to the left of", (0, 1), (2, 1)),
    ("to the right of", (2, 1), (0, 1)),
    ("above", (1, 0), (1, 2)),
    ("below", (1, 2), (1, 0)),
)


@dataclass(frozen=True)
class Thing:
    """One pasted thing: its name and its box in pixels, x0 ≤ x < x1, y0 ≤ y < y1."""

    name: str
    box: tuple[int, int, int, int]
    color: str = ""

    @property
    def place(self) -> str:
        """The third of the picture that holds its middle: "top left", "middle", "right" …"""
        x, y = (self.box[0] + self.box[2]) / 2 / SIZE, (self.box[1] + self.box[3]) / 2 / SIZE
        row = "top" if y < 1 / 3 else "bottom" if y > 2 / 3 else ""
        column = "left" if x < 1 / 3 else "right" if x > 2 / 3 else ""
        return f"{row} {column}".strip() or "middle"

    @property
    def corners(self) -> str:
        """ "left top right bottom" in hundredths of the side, 0 … 99."""
        return " ".join(str(min(99, round(100 * v / SIZE))) for v in self.box)


@dataclass(frozen=True)
class Scene:
    """A made picture uint8 [128, 128, 3] and what is known of it."""

    image: NDArray[np.uint8]
    caption: str
    background: str
    things: tuple[Thing, ...]


def documents(split: Side, seed: int) -> Iterator[Document]:
    """12,000 scenes to train on and 600 to test, a document each: six tasks in turn."""
    pool = cutouts(split)
    for number in range(COUNT[split]):
        rng = random.Random(f"{NAME}:{split}:{seed}:{number}")
        yield _document(number, rng, pool, split, seed)


def cutouts(split: Side) -> list[Item]:
    """Stamps and emoji of one side whose name is one or two words and can be counted."""
    chosen = [
        item
        for item in of_split(stamps.items(), split)
        if item.key.split("/")[1] in _FOLDERS and "/alphabets/" not in item.key
    ]
    for item in of_split(emoji.items(), split):
        if item.meta["group"] in _GROUPS and not item.meta["tone"]:
            chosen.append(item)
    return [
        item
        for item in chosen
        if len(item.text.split()) <= 2 and countable(item.text) and item.text not in _NO_THING
    ]


def countable(name: str) -> bool:
    """Whether a name is a thing in the singular, of plain letters: "three …s" can be said."""
    if name.endswith("ing") and not name.endswith(("ring", "wing", "king")):
        return False  # an activity
    return name.replace(" ", "").isalpha() and with_article(name).startswith(("a ", "an "))


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


def counted(rng: random.Random, pool: list[Item]) -> Scene:
    """One or two kinds, one to five of each, in random cells of a 3×3 grid."""
    kinds = _kinds(rng, pool, rng.choice((1, 1, 2)))
    limit = 5 if len(kinds) == 1 else 4
    numbers = [rng.randint(1, limit) for _ in kinds]
    canvas, background, words = _background(rng)
    cells = rng.sample([(c, r) for r in range(3) for c in range(3)], sum(numbers))
    things = []
    for item, number in zip(kinds, numbers, strict=True):
        for _ in range(number):
            things.append(_paste(canvas, item, cells.pop(), 40, rng))
    listed = [amount(n, item.text) for item, n in zip(kinds, numbers, strict=True)]
    return Scene(_pixels(canvas), f"{' and '.join(listed)} {words}", background, tuple(things))


def related(rng: random.Random, pool: list[Item]) -> Scene:
    """Two kinds, one left of, right of, above or below the other."""
    first, second = _kinds(rng, pool, 2)
    canvas, background, words = _background(rng)
    relation, here, there = rng.choice(_RELATIONS)
    things = (_paste(canvas, first, here, 54, rng), _paste(canvas, second, there, 54, rng))
    named = f"{with_article(first.text)} {relation} {with_article(second.text)}"
    return Scene(_pixels(canvas), plain(f"{named} {words}"), background, things)


def single(rng: random.Random, pool: list[Item]) -> Scene:
    """One thing anywhere, in one of three sizes."""
    (item,) = _kinds(rng, pool, 1)
    canvas, background, words = _background(rng)
    cell = (rng.randrange(3), rng.randrange(3))
    thing = _paste(canvas, item, cell, rng.choice((42, 56, 72)), rng)
    return Scene(_pixels(canvas), f"{item.text} {words}", background, (thing,))


def shaped(rng: random.Random, pool: list[Item]) -> Scene:
    """Two or three plain shapes of different colors on a light background; `pool` is not used."""
    names = rng.sample(SHAPES, rng.choice((2, 2, 3)))
    back = rng.choice(("white", "gray"))
    colors = rng.sample([c for c in COLORS if c not in ("white", "gray")], len(names))
    canvas = Image.new("RGB", (SIZE, SIZE), COLORS[back])
    cells = rng.sample([(c, r) for r in range(3) for c in range(3)], len(names))
    things = []
    for name, color, cell in zip(names, colors, cells, strict=True):
        box = _cell_box(cell, (36, 36), rng)
        _shape(ImageDraw.Draw(canvas), name, box, COLORS[color])
        things.append(Thing(name, box, color))
    named = [with_article(f"{t.color} {t.name}") for t in things]
    caption = plain(f"{', '.join(named[:-1])} and {named[-1]} on a {back} background")
    return Scene(_pixels(canvas), caption, back, tuple(things))


def _document(
    number: int, rng: random.Random, pool: list[Item], split: Side, seed: int
) -> Document:
    """The number chooses the task, the task a fitting scene."""
    phrase = say.phrasing(split, seed, f"{NAME}:{number}")
    task, makers = _TASKS[number % len(_TASKS)]
    scene = rng.choice(makers)(rng, pool)
    shown = say.image(scene.image)
    name = f"{NAME}/{split}/{seed}/{number:05d}"
    if task == "draw":
        wish = say.words(ask(task, phrase, text=with_article(scene.caption)))
        return say.document(name, task, NAME, say.turn([wish], [shown]))
    pairs = _questions(task, scene)
    if split == "test":
        pairs = pairs[:1]
    messages: list[say.Message] = []
    for text, answer in pairs:
        asked = [say.words(ask(task, phrase, text=text))]
        messages += say.turn(asked if messages else [shown, *asked], [say.words(answer)])
    return say.document(name, task, NAME, messages)


def _questions(task: str, scene: Scene) -> list[tuple[str, str]]:
    """(what is asked of, answer) pairs, one a thing: the picture is shown once for all."""
    names = list(dict.fromkeys(thing.name for thing in scene.things))
    alone = [t for t in scene.things if sum(o.name == t.name for o in scene.things) == 1]
    if task == "scene_caption":
        return [("", scene.caption)]
    if task == "scene_count":
        numbers = {n: sum(t.name == n for t in scene.things) for n in names}
        return [(plural(name), NUMBERS[count]) for name, count in numbers.items()]
    if task == "scene_color":
        known = [(t.name, t.color) for t in scene.things if t.color]
        return [*known, ("background", scene.background)]
    if task == "scene_where":
        return [(t.name, t.place) for t in alone]
    return [(t.name, t.corners) for t in alone]


# In turn, so that every task has the same number of documents.
_TASKS: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("scene_caption", (counted, related, single, shaped)),
    ("scene_count", (counted,)),
    ("scene_color", (shaped, shaped, single)),
    ("scene_where", (single, related)),
    ("scene_box", (single, related)),
    ("draw", (counted, related, single, shaped)),
)


def _kinds(rng: random.Random, pool: list[Item], number: int) -> list[Item]:
    """Items of different names."""
    chosen: list[Item] = []
    while len(chosen) < number:
        item = rng.choice(pool)
        if all(item.text != other.text for other in chosen):
            chosen.append(item)
    return chosen


def _background(rng: random.Random) -> tuple[Image.Image, str, str]:
    """A canvas, its color and the words for it. Graded ones go from the color to a paler one."""
    name = rng.choice(list(COLORS))
    color = np.array(COLORS[name], np.float32)
    if rng.random() < 0.4:
        paler = color + (255 - color) * 0.45
        ramp = np.linspace(0, 1, SIZE, dtype=np.float32)[:, None, None]
        rows = color * (1 - ramp) + paler * ramp
        pixels = np.broadcast_to(rows, (SIZE, SIZE, 3)).astype(np.uint8)
        graded = Image.fromarray(np.ascontiguousarray(pixels))
        return graded, name, f"on {with_article(name)} background"
    fill = (int(color[0]), int(color[1]), int(color[2]))
    return Image.new("RGB", (SIZE, SIZE), fill), name, f"on {with_article(name)} background"


@lru_cache(maxsize=4096)
def _thumbnail(key: str, data: bytes) -> Image.Image:
    """A cut-out with its transparent margin off, its longer side 96 pixels, RGBA."""
    try:
        whole = Image.fromarray(media.read_cutout(data))
    except media.MediaError as error:
        raise media.MediaError(f"{key}: {error}") from error
    box = whole.getchannel("A").point(lambda v: 255 if v > 16 else 0).getbbox()
    cut = whole.crop(box) if box else whole
    scale = 96 / max(cut.size)
    size = (max(1, round(cut.width * scale)), max(1, round(cut.height * scale)))
    return cut.resize(size, Image.Resampling.LANCZOS)


def _paste(
    canvas: Image.Image, item: Item, cell: tuple[int, int], side: int, rng: random.Random
) -> Thing:
    """Paste a cut-out, its longer side about `side` pixels, in or near a cell of the 3×3 grid."""
    cut = _thumbnail(item.key, item.image or b"")
    scale = side * rng.uniform(0.88, 1.0) / max(cut.size)
    size = (max(4, round(cut.width * scale)), max(4, round(cut.height * scale)))
    box = _cell_box(cell, size, rng)
    small = cut.resize(size, Image.Resampling.BICUBIC)
    canvas.paste(small, box[:2], small)
    return Thing(item.text, box)


def _cell_box(
    cell: tuple[int, int], size: tuple[int, int], rng: random.Random
) -> tuple[int, int, int, int]:
    """A box of `size` (width, height) about a cell's middle, a little shifted, inside the frame."""
    corner = []
    for index, length in zip(cell, size, strict=True):
        middle = (index + 0.5) * SIZE / 3
        slack = max(0.0, SIZE / 3 - length) / 2
        start = middle - length / 2 + rng.uniform(-slack, slack)
        corner.append(round(min(max(1.0, start), SIZE - 1.0 - length)))
    x, y = corner
    return x, y, x + size[0], y + size[1]


def _shape(
    draw: ImageDraw.ImageDraw,
    name: str,
    box: tuple[int, int, int, int],
    color: tuple[int, int, int],
) -> None:
    x0, y0, x1, y1 = box
    mx, my = (x0 + x1) // 2, (y0 + y1) // 2
    if name == "circle":
        draw.ellipse((x0, y0, x1 - 1, y1 - 1), fill=color)
    elif name == "square":
        draw.rectangle((x0, y0, x1 - 1, y1 - 1), fill=color)
    elif name == "triangle":
        draw.polygon(((mx, y0), (x1 - 1, y1 - 1), (x0, y1 - 1)), fill=color)
    elif name == "diamond":
        draw.polygon(((mx, y0), (x1 - 1, my), (mx, y1 - 1), (x0, my)), fill=color)
    else:
        draw.rectangle((x0, my - 5, x1 - 1, my + 5), fill=color)


def _pixels(canvas: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(canvas, dtype=np.uint8).copy()
