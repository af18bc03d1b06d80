"""Spoken words: 1,469 real recordings of 9 words and names by many people.

A fifth is held out: by speaker where one is named, else by file. `text` is the word.
"""

from collections.abc import Iterator
from dataclasses import replace

from m27.codec.media import read_audio
from m27.data import pairs
from m27.data.holdout import content_hash
from m27.data.messages import shuffled
from m27.data.sources import parquet
from m27.data.sources.base import Document, Item, Side, shared_file
from m27.data.sources.clips import fade, hashed, level, loudest, lowest, on_side, stored, trim
from m27.data.sources.speech import spoken_documents

NAME = "spoken-words"
LICENCE = "Speech Commands CC-BY 4.0; wake words Apache-2.0"
ORIGIN = "Speech Commands v2 (Warden 2018) and the wake words of github.com/Picovoice"
WORDS = (
    "alexa",
    "bed",
    "cat",
    "computer",
    "happy",
    "jarvis",
    "smart mirror",
    "snowboy",
    "view glass",
)


def _make() -> Iterator[Item]:
    path = shared_file("spoken-words/words.parquet", ORIGIN)
    rows = list(parquet.rows(path))
    who = [row["speaker"] or content_hash(row["audio"]) for row in rows]
    held = lowest(who, round(len(set(who)) * 0.2), NAME)
    for number, (row, speaker) in enumerate(zip(rows, who, strict=True)):
        meta = {"split": "test" if speaker in held else "train", "speaker": speaker}
        audio = fade(level(trim(read_audio(row["audio"]))))
        word = row["word"]
        yield Item(f"{NAME}/{number:04d}", word, word, audio=audio, meta=meta)


def items() -> Iterator[Item]:
    """Every recording without silence at its ends, at most 1.2 s; concept and text are the word."""
    for item in stored(NAME, "1", _make):
        if item.audio is not None:
            yield replace(item, audio=loudest(item.audio, 1.2))


def documents(split: Side, seed: int = 0) -> Iterator[Document]:
    """`name_word`: a spoken word → the bare word; in training also `transcribe` of some."""
    found = list(on_side(items(), split))
    made = list(pairs.spoken(found, split, seed, NAME))
    if split == "train":
        some = [item for item in found if hashed(item.key, "transcribe") < 0.5]
        # One order for both, so that the first N are a fair sample of the tasks as well.
        made = shuffled([*made, *spoken_documents(NAME, some, split, seed)], seed)
    yield from made
