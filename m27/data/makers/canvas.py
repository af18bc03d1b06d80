"""Cut-outs pasted on backgrounds: a made picture, and the name, box and color of all that is in it.

Cut-outs are stamps, emoji and clip art of one side of the hold-out; backgrounds are plain, graded,
or a pale photograph of the same side. Knows no task; `scenes` asks the questions.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from m27.codec import media
from m27.data.boxes import Box, spelled
from m27.data.sources import emoji, fluent, openclipart, stamps, tiny_imagenet
from m27.data.sources.base import Item, Side, of_split, with_article

SIZE = 128
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
PHOTOGRAPH = "photograph"
SHAPES = ("circle", "square", "triangle", "diamond", "bar")
_FOLDERS = ("animals", "food", "vehicles", "household", "clothes", "hobbies", "plants", "sports")
_GROUPS = ("animals-nature", "food-drink", "objects", "activities", "travel-places")
_CLIP_ART = ("animals", "food", "tools", "plants", "transportation", "buildings", "decorations")
_NO_THING = ("foggy", "sunrise", "sunset", "timer clock")
# Hue in degrees below which a color's band ends, in order; beyond the last it is red again.
_HUES = ((14, "red"), (40, "orange"), (68, "yellow"), (165, "green"), (255, "blue"))
_MORE_HUES = ((292, "purple"), (342, "pink"), (361, "red"))
_PURE = 0.72  # share of one color from which on a thing has that color
_LARGE_FILE = 150_000  # bytes of clip art that is slow to decode


@dataclass(frozen=True)
class Thing:
    """One pasted thing: its name and its box in pixels, x0 ≤ x < x1, y0 ≤ y < y1."""

    name: str
    box: Box
    color: str = ""

    @property
    def middle(self) -> tuple[float, float]:
        """x and y of the middle of its box, in pixels."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    @property
    def place(self) -> str:
        """The third of the picture that holds its middle: "top left", "middle", "right" …"""
        x, y = (value / SIZE for value in self.middle)
        row = "top" if y < 1 / 3 else "bottom" if y > 2 / 3 else ""
        column = "left" if x < 1 / 3 else "right" if x > 2 / 3 else ""
        return f"{row} {column}".strip() or "middle"

    @property
    def clear_place(self) -> bool:
        """Whether its middle keeps three pixels from the lines between the thirds."""
        lines = (SIZE / 3, 2 * SIZE / 3)
        return all(abs(value - line) >= 3 for value in self.middle for line in lines)

    @property
    def corners(self) -> str:
        """ "left top right bottom" in whole units of the grid, 0 … 8."""
        return spelled(self.box)


@dataclass(frozen=True)
class Scene:
    """A made picture uint8 [128, 128, 3] and what is known of it."""

    image: NDArray[np.uint8]
    caption: str
    background: str
    things: tuple[Thing, ...]


def cutouts(split: Side) -> list[Item]:
    """Stamps, emoji and clip art of one side whose name is one or two words and can be counted."""
    chosen = [
        item
        for item in of_split(stamps.items(), split)
        if item.key.split("/")[1] in _FOLDERS and "/alphabets/" not in item.key
    ]
    for items in (emoji.items(), fluent.items(("color",))):
        for item in of_split(items, split):
            if item.meta["group"] in _GROUPS and not item.meta["tone"]:
                chosen.append(item)
    for item in of_split(openclipart.items(_CLIP_ART), split):
        if item.text and item.image is not None and len(item.image) < _LARGE_FILE:
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


@lru_cache(maxsize=2)
def photographs(split: Side, count: int = 240) -> list[Image.Image]:
    """Some photographs of a side as 128×128 backgrounds, paled so that what lies on them stands out."""
    items = [item for item in of_split(tiny_imagenet.items(), split) if item.image]
    chosen = random.Random(f"backgrounds:{split}").sample(items, min(count, len(items)))
    canvases = []
    for item in chosen:
        rgb = media.fit_image(media.read_image(item.image or b""), SIZE, SIZE)
        canvases.append(Image.fromarray((rgb * 0.6 + 255 * 0.4).astype(np.uint8)))
    return canvases


def background(
    rng: random.Random, split: Side, without: str = "", photos: bool = True
) -> tuple[Image.Image, str, str]:
    """A canvas, its color (or "photograph") and the words for it; never of the color `without`.

    Two in ten are photographs, three graded from the color to a paler one.
    """
    kind = rng.random()
    if photos and kind < 0.2:
        return rng.choice(photographs(split)).copy(), PHOTOGRAPH, "on a photograph"
    name = rng.choice([color for color in COLORS if color != without])
    return colored_paper(rng, name, graded=kind < 0.5), name, f"on {with_article(name)} background"


def colored_paper(rng: random.Random, name: str, graded: bool = False) -> Image.Image:
    """A canvas of a color of `COLORS`, or one graded from it to a paler one."""
    color = np.array(COLORS[name], np.float32)
    if graded:
        paler = color + (255 - color) * 0.45
        ramp = np.linspace(0, 1, SIZE, dtype=np.float32)[:, None, None]
        rows = color * (1 - ramp) + paler * ramp
        pixels = np.broadcast_to(rows, (SIZE, SIZE, 3)).astype(np.uint8)
        if rng.random() < 0.5:
            pixels = pixels.swapaxes(0, 1)
        return Image.fromarray(np.ascontiguousarray(pixels))
    return Image.new("RGB", (SIZE, SIZE), (int(color[0]), int(color[1]), int(color[2])))


@lru_cache(maxsize=6000)
def _cut(key: str, data: bytes) -> tuple[Image.Image, str]:
    """A cut-out with its margin off, its longer side 96 pixels, RGBA; and the color it has, or ""."""
    try:
        whole = Image.fromarray(media.read_cutout(data))
    except media.MediaError as error:
        raise media.MediaError(f"{key}: {error}") from error
    box = whole.getchannel("A").point(lambda v: 255 if v > 16 else 0).getbbox()
    cut = whole.crop(box) if box else whole
    scale = 96 / max(cut.size)
    size = (max(1, round(cut.width * scale)), max(1, round(cut.height * scale)))
    small = cut.resize(size, Image.Resampling.LANCZOS)
    return small, color_of(np.asarray(small))


def cut(item: Item) -> Image.Image:
    """An item's cut-out with its transparent margin off, its longer side 96 pixels, RGBA."""
    return _cut(item.key, item.image or b"")[0]


def color_named(item: Item) -> str:
    """The one color of `COLORS` that an item's picture has, "" where none rules."""
    return _cut(item.key, item.image or b"")[1]


def color_of(rgba: NDArray[np.uint8]) -> str:
    """The color of at least 72 % of the opaque pixels of uint8 [H, W, 4], or "".

    Dark lines are left out where they are under a third: cartoons have black outlines.
    """
    opaque = rgba[rgba[..., 3] > 128][:, :3].astype(np.float32) / 255
    if len(opaque) < 64:
        return ""
    high, low = opaque.max(1), opaque.min(1)
    spread = np.maximum(high - low, 1e-6)
    r, g, b = opaque.T
    hue = np.where(
        high == r, (g - b) / spread, np.where(high == g, 2 + (b - r) / spread, 4 + (r - g) / spread)
    )
    hue = hue * 60 % 360
    saturation = (high - low) / np.maximum(high, 1e-6)
    names = np.empty(len(opaque), dtype="<U7")
    for limit, name in reversed((*_HUES, *_MORE_HUES)):
        names[hue < limit] = name
    warm = np.isin(names, ("red", "orange"))
    names[warm & (high < 0.62) & ((names == "orange") | (saturation < 0.6))] = "brown"
    names[(names == "red") & (saturation < 0.5) & (high > 0.8)] = "pink"
    faint = np.isin(names, ("orange", "yellow", "red")) & (saturation < 0.5)
    names[faint] = "skin"  # beige, tan and the like, for which there is no word here
    plain = saturation < 0.14
    names[plain] = np.where(high[plain] > 0.86, "white", "gray")
    names[high < 0.22] = "black"
    dark = names == "black"
    if 0 < dark.sum() < len(names) / 3:
        names = names[~dark]
    found, counts = np.unique(names, return_counts=True)
    best = int(counts.argmax())
    rules = found[best] != "skin" and counts[best] >= _PURE * len(names)
    return str(found[best]) if rules else ""


def paste(canvas: Image.Image, item: Item, corner: tuple[int, int], side: int) -> Thing:
    """Paste a cut-out, its longer side `side` pixels, with its left top at `corner`."""
    whole = cut(item)
    size = scaled(whole.size, side)
    small = whole.resize(size, Image.Resampling.BICUBIC)
    canvas.paste(small, corner, small)
    x, y = corner
    return Thing(item.text, (x, y, x + size[0], y + size[1]), color_named(item))


def scaled(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Width and height in the same proportions, the longer one `side`, none under four."""
    scale = side / max(size)
    return max(4, round(size[0] * scale)), max(4, round(size[1] * scale))


def corner_near(
    middle: tuple[float, float], size: tuple[int, int], rng: random.Random, slack: float = 0.0
) -> tuple[int, int]:
    """The left top that puts `size` about `middle`, shifted by up to `slack`, inside the frame."""
    corner = []
    for centre, length in zip(middle, size, strict=True):
        start = centre - length / 2 + rng.uniform(-slack, slack)
        corner.append(round(min(max(1.0, start), SIZE - 1.0 - length)))
    return corner[0], corner[1]


def shape(draw: ImageDraw.ImageDraw, name: str, box: Box, color: tuple[int, int, int]) -> None:
    """Draw one of `SHAPES` into a box of pixels; a bar is ten pixels high, across its middle."""
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


def pixels(canvas: Image.Image) -> NDArray[np.uint8]:
    """The canvas as uint8 [128, 128, 3], its own copy."""
    return np.asarray(canvas, dtype=np.uint8).copy()
