"""Many more sentences of the same grammar, rendered as they are asked for: each is heard once.

A voice that is to be spoken with must be heard saying thousands of sentences, or those it was heard saying are
learned by heart (docs/LOG.md, the fourth training). One rendering costs milliseconds, so nothing is kept.
Training only: a text that is held out, or that `sentences.everyday` has, is left out.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from m27.data.messages import document, phrasing, sound, turn, words
from m27.data.prompts import ask
from m27.data.sources import sentences, speech
from m27.data.sources.base import Document, Side
from m27.data.sources.clips import RATE

NAME = "more_speech"
LICENCE = speech.LICENCE
ORIGIN = speech.ORIGIN
COUNT = 40_000  # sentences


def texts(seed: int, count: int = COUNT) -> Iterator[str]:
    """`count` different sentences of the training side that no list has, in the order of the seed."""
    draw = random.Random(f"{NAME}:{seed}")
    seen = set(sentences.everyday())
    while count:
        text = sentences.sentence(draw)
        if text not in seen:
            seen.add(text)
            if sentences.side_of(text) == "train":
                count -= 1
                yield text


def documents(split: Side, seed: int = 0) -> Iterator[Document]:
    """`speak` of each sentence in the model's own voice; `transcribe` of every second in another's."""
    for number, text in enumerate(texts(seed) if split == "train" else ()):
        key = f"{NAME}/{seed}/{number:05d}"
        rng = phrasing(split, seed, key)
        wave = speech.render(text, speech.OWN)
        if wave.size <= speech.LONGEST * RATE:
            request = words(ask("speak", rng, text=text))
            yield document(key, "speak", NAME, turn([request], [sound(wave)]))
        if number % 2 == 0:
            (reader,) = speech.readers(text, split, 1)
            other = speech.render(text, reader)
            if other.size <= speech.LONGEST * RATE:
                heard = [sound(other), words(ask("transcribe", rng))]
                yield document(f"{key}/heard", "transcribe", NAME, turn(heard, [words(text)]))
