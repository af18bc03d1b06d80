"""Every sound of every source, one side at a time: what the audio codec learns from."""

from collections.abc import Callable, Iterator

from m27.data.sources import (
    asterisk,
    environment,
    instruments,
    sonic_pi,
    speech,
    spoken_digits,
    spoken_orders,
    spoken_words,
)
from m27.data.sources.base import Document, Item, Side

SOURCES: dict[str, Callable[[], Iterator[Item]]] = {
    module.NAME: module.items
    for module in (
        environment,
        sonic_pi,
        spoken_words,
        spoken_digits,
        spoken_orders,
        instruments,
        speech,
        asterisk,
    )
}


def sounds(split: Side) -> Iterator[Item]:
    """Items with float32 [T] mono 16 kHz audio in −1..1, source after source in a fixed order.

    The first pass prepares the clips (minutes); later ones read them from disk (seconds). The
    loudness of every clip is the same (`clips.level`), so a user of them need not normalise.
    """
    for items in SOURCES.values():
        yield from (item for item in items() if item.meta["split"] == split)


def documents(split: Side, seed: int = 0) -> Iterator[Document]:
    """Documents of every source that has tasks, source after source; shuffled within a source."""
    for module in (environment, spoken_words, spoken_digits, instruments, speech):
        yield from module.documents(split, seed)
