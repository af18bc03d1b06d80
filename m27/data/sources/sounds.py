"""Every sound of every source, one side at a time: what the audio codec learns from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain

from m27.data.sources import (
    asterisk,
    environment,
    instruments,
    sonic_pi,
    speech,
    spoken_digits,
    spoken_orders,
    spoken_words,
    stamps,
)
from m27.data.sources.base import Document, Item, Side
from m27.data.sources.clips import stored


def stamp_sounds() -> Iterator[Item]:
    """Sound effects and spoken captions of the stamps, as `stamps` yields them, decoded once."""
    yield from stored("stamps", "1", lambda: chain(stamps.sounds(), stamps.spoken()))


# Name → items. Evaluation and training of the codec go through them in this order.
SOURCES: dict[str, Callable[[], Iterator[Item]]] = {
    environment.NAME: environment.items,
    sonic_pi.NAME: sonic_pi.items,
    stamps.NAME: stamp_sounds,
    spoken_words.NAME: spoken_words.items,
    spoken_digits.NAME: spoken_digits.items,
    spoken_orders.NAME: spoken_orders.items,
    instruments.NAME: instruments.items,
    speech.NAME: speech.items,
    asterisk.NAME: asterisk.items,
}

TASKS = (environment, spoken_words, spoken_digits, instruments, speech)


def sounds(split: Side) -> Iterator[Item]:
    """Items with float32 [T] mono 16 kHz audio in −1..1, source after source in a fixed order.

    The first pass prepares the clips (minutes); later ones read them from disk (seconds). Clips of
    one source have one loudness (`clips.level`), so a user of them need not normalise.
    """
    for items in SOURCES.values():
        yield from (item for item in items() if item.meta["split"] == split)


def documents(split: Side, seed: int = 0) -> Iterator[Document]:
    """Documents of every source that has tasks, one of each in turn, until all are used up.

    For looking and for small mixtures: a build that takes the sources one by one has them already.
    """
    streams = [module.documents(split, seed) for module in TASKS]
    while streams:
        for stream in list(streams):
            made = next(stream, None)
            if made is None:
                streams.remove(stream)
            else:
                yield made
