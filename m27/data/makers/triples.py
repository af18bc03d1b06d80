"""Documents of the stamps that have a picture, a caption and a sound: every way between the three.

In training each triple comes several times: its picture mirrored or on colored paper, its sound
softer, louder or begun later. The test side has each once and as it is, and the spoken captions,
all held out, to transcribe.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from m27.codec import media
from m27.data import messages as say
from m27.data.makers import canvas as paper
from m27.data.prompts import ask
from m27.data.sources import stamps
from m27.data.sources.base import Document, Item, Side, of_split, with_article
from m27.data.sources.clips import RATE, Samples, fade, some_window

NAME = "triples"
VARIANTS = 12  # of each triple, in training
SECONDS = 2.0


def documents(split: Side, seed: int) -> Iterator[Document]:
    """sound_for_picture, picture_for_sound, name_sound and sound_for_text of every triple."""
    named = [item for item in of_split(stamps.sounds(), split) if _nameable(item)]
    variants = VARIANTS if split == "train" else 1
    for variant in range(variants):
        for item in say.shuffled(named, seed + variant):
            yield from _triple(item, split, seed, variant)
    if split == "test":
        for item in stamps.spoken():
            if item.audio is not None and item.audio.size:
                asked = [say.sound(item.audio), say.words(ask("transcribe"))]
                messages = say.turn(asked, [say.words(item.text)])
                yield say.document(item.key, "transcribe", NAME, messages)


def _nameable(item: Item) -> bool:
    """Whether the sound is the thing's own: letters, numbers and road signs are read aloud."""
    short = len(item.text.split()) <= 4 and item.text.replace(" ", "").isalpha()
    return short and item.key.split("/")[1] not in ("symbols", "town")


def varied_picture(item: Item, rng: random.Random) -> NDArray[np.uint8]:
    """A picture again: mirrored half the time, smaller and on colored paper where it is a cut-out.

    uint8 [128, 128, 3].
    """
    image = Image.fromarray(media.read_cutout(item.image or b""))
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    sheet = paper.colored_paper(rng, rng.choice(("white", *paper.COLORS)), rng.random() < 0.5)
    side = round(paper.SIZE * rng.uniform(0.7, 0.95))
    small = image.resize(paper.scaled(image.size, side), Image.Resampling.BICUBIC)
    middle = (paper.SIZE / 2, paper.SIZE / 2)
    sheet.paste(small, paper.corner_near(middle, small.size, rng, 12), small)
    return paper.pixels(sheet)


def varied_sound(samples_T: Samples, rng: random.Random, seconds: float = SECONDS) -> Samples:
    """A sound again: another window of it where it is long, begun later, softer or louder."""
    window = some_window(samples_T, seconds, rng)
    start = rng.randrange(max(1, min(window.size // 8, int(0.08 * RATE))))
    return fade((window[start:] * rng.uniform(0.55, 1.1)).clip(-1, 1), 0.005)


def _triple(item: Item, split: Side, seed: int, variant: int) -> Iterator[Document]:
    if item.audio is None:
        return
    rng = say.phrasing(split, seed, f"{item.key}/{variant}")
    if rng is None or variant == 0:
        shown, heard = say.picture(item), say.sound(item.audio)
    else:
        shown = say.image(varied_picture(item, rng))
        heard = say.sound(varied_sound(item.audio, rng))
    name = say.words(item.text)

    def question(task: str) -> say.Part:
        return say.words(ask(task, rng))

    ways = {
        "sound_for_picture": say.turn([shown, question("sound_for_picture")], [heard]),
        "picture_for_sound": say.turn([heard, question("picture_for_sound")], [shown]),
        "name_sound": say.turn([heard, question("name_sound")], [name]),
        "sound_for_text": say.turn(
            [say.words(ask("sound_for_text", rng, text=with_article(item.text)))], [heard]
        ),
    }
    for task, messages in ways.items():
        yield say.document(f"{item.key}/{variant}", task, NAME, messages)
