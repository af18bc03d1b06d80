"""The documents that several sources make alike: a medium and its name, asked for in both directions.

Knows no source; each gives its items and, where it has one, the words for its style.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from m27.data import messages as say
from m27.data.prompts import ask
from m27.data.sources.base import Document, Item, Side, with_article


def named_photographs(
    items: Iterable[Item], split: Side, seed: int, source: str, style: str = "a photo of"
) -> Iterator[Document]:
    """name_picture for every photograph, answered by the bare name; draw for every fourth.

    `style` is how a request to draw one calls it.
    """
    for number, item in enumerate(say.shuffled(items, seed)):
        rng = say.phrasing(split, seed, item.key)
        photograph = say.picture(item)
        question = say.words(ask("name_picture", rng))
        messages = say.turn([photograph, question], [say.words(item.text)])
        yield say.document(item.key, "name_picture", source, messages)
        if number % 4 == 0:
            wish = say.words(ask("draw", rng, text=f"{style} {with_article(item.text)}"))
            yield say.document(item.key, "draw", source, say.turn([wish], [photograph]))


def captioned(
    item: Item, split: Side, seed: int, source: str, style: str = ""
) -> Iterator[Document]:
    """caption_picture and draw of one drawing; `style` ("an emoji of") is said in half of training."""
    rng = say.phrasing(split, seed, item.key)
    shown = say.picture(item)
    question = say.words(ask("caption_picture", rng))
    messages = say.turn([shown, question], [say.words(item.text)])
    yield say.document(item.key, "caption_picture", source, messages)
    named = with_article(item.text)
    if style and rng is not None and rng.random() < 0.5:
        named = f"{style} {named}"
    wish = say.words(ask("draw", rng, text=named))
    yield say.document(item.key, "draw", source, say.turn([wish], [shown]))


def spoken(items: Iterable[Item], split: Side, seed: int, source: str) -> Iterator[Document]:
    """`name_word` of every item with sound: a spoken word → the bare word."""
    for item in say.shuffled(items, seed):
        if item.audio is not None:
            question = say.words(ask("name_word", say.phrasing(split, seed, item.key)))
            messages = say.turn([say.sound(item.audio), question], [say.words(item.text)])
            yield say.document(item.key, "name_word", source, messages)
