"""Documents of the stamps that have a picture, a caption and a sound: every way between the three.

The test side also has the spoken captions, all held out, to transcribe.
"""

from __future__ import annotations

from collections.abc import Iterator

from m27.data import messages as say
from m27.data.prompts import ask
from m27.data.sources import stamps
from m27.data.sources.base import Document, Item, Side, of_split, with_article

NAME = "triples"


def documents(split: Side, seed: int) -> Iterator[Document]:
    """sound_for_picture, picture_for_sound, name_sound and sound_for_text of every triple."""
    for item in say.shuffled(of_split(stamps.sounds(), split), seed):
        if _nameable(item):
            yield from _triple(item, split, seed)
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


def _triple(item: Item, split: Side, seed: int) -> Iterator[Document]:
    if item.audio is None:
        return
    rng = say.phrasing(split, seed, item.key)
    shown, heard, name = say.picture(item), say.sound(item.audio), say.words(item.text)

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
        yield say.document(item.key, task, NAME, messages)
