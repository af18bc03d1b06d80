"""Environmental sounds and pictures of what makes them: `sound_for_picture`, `picture_for_sound`.

A class of ESC-10 goes with the stamps, emoji, drawings and clip art whose name says the same thing,
and a barking dog also with photographs of dogs. Sounds and pictures are both of the asked side.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from itertools import chain

from m27.data import messages as say
from m27.data.makers.triples import varied_picture
from m27.data.prompts import ask
from m27.data.sources import cifar10, emoji, environment, fluent, openclipart, stamps
from m27.data.sources.base import Document, Item, Side, of_split
from m27.data.sources.clips import loudest, on_side, some_window

NAME = "heard_pictures"
COUNT: dict[Side, int] = {"train": 6_000, "test": 400}
DOGS = 200  # photographs
# Class → what a picture's name must say to show it.
SHOWN: dict[str, str] = {
    "baby cry": r"baby|crying (?:face|child)|infant",
    "chainsaw": r"chain ?saw",
    "clock tick": r"(?:alarm |mantelpiece |wall )?clock|watch|stopwatch|\w+ o'clock",
    "dog bark": r"dog|dog face|guide dog|service dog|poodle|puppy|[\w ]+ dog",
    "fire crackling": r"fire|campfire|bonfire|flames?",
    "helicopter": r"helicopter",
    "person sneeze": r"sneezing face|sneez\w+|person sneezing",
    "rain": r"(?:cloud|sun behind rain cloud|umbrella) with rain(?: drops)?|rain\w*|rain cloud|"
    r"cloud with lightning and rain|sun behind rain cloud",
    "rooster": r"rooster|cock|cockerel|rooster\w*",
    "sea waves": r"water wave|waves?|sea|ocean|beach|beach with umbrella",
}


def documents(split: Side, seed: int) -> Iterator[Document]:
    """6,000 documents to train on and 400 to test, the two tasks in turn, the classes at random.

    In training the window of the sound and the paper of the picture change from one to the next.
    """
    shown = pictures(split)
    heard: dict[str, list[Item]] = {}
    for item in on_side(environment.items(), split):
        heard.setdefault(item.text, []).append(item)
    classes = [name for name in environment.CLASSES if shown.get(name) and heard.get(name)]
    for number in range(COUNT[split] if classes else 0):
        draw = random.Random(f"{NAME}:{split}:{seed}:{number}")
        rng = say.phrasing(split, seed, f"{NAME}:{number}")
        name = classes[number // 2 % len(classes)]
        sound, item = draw.choice(heard[name]), draw.choice(shown[name])
        if sound.audio is None:
            continue
        window = (
            loudest(sound.audio, environment.SECONDS)
            if rng is None or draw.random() < 0.5
            else some_window(sound.audio, environment.SECONDS, draw)
        )
        cutout = bool(item.meta.get("alpha"))
        again = rng is not None and cutout and draw.random() < 0.7
        picture = say.image(varied_picture(item, draw)) if again else say.picture(item)
        task = ("sound_for_picture", "picture_for_sound")[number % 2]
        given, answer = say.sound(window), picture
        if task == "sound_for_picture":
            given, answer = picture, say.sound(window)
        messages = say.turn([given, say.words(ask(task, rng))], [answer])
        yield say.document(
            f"{NAME}/{split}/{number:04d}/{name.replace(' ', '_')}", task, NAME, messages
        )


def pictures(split: Side) -> dict[str, list[Item]]:
    """Class of sound → the pictures of one side that show what makes it."""
    emojis: Iterable[Item] = chain(emoji.items(), fluent.items())
    drawn = (item for item in emojis if not item.meta["tone"])
    found: dict[str, list[Item]] = {}
    for item in of_split(chain(stamps.items(), drawn, openclipart.items()), split):
        for name, words in SHOWN.items():
            if item.text and re.fullmatch(words, item.text):
                found.setdefault(name, []).append(item)
    dogs = (item for item in of_split(cifar10.items(), split) if item.text == "dog")
    for _, item in zip(range(DOGS if split == "train" else DOGS // 10), dogs, strict=False):
        found.setdefault("dog bark", []).append(item)
    return found
