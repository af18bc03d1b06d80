"""Free Spoken Digit Dataset: 3,000 recordings of ten digits by six speakers; two are held out."""

from collections.abc import Iterator
from dataclasses import replace

from m27.codec.media import read_audio
from m27.data import pairs
from m27.data.messages import shuffled
from m27.data.sources import parquet
from m27.data.sources.base import Document, Item, Side, shared_file
from m27.data.sources.clips import fade, hashed, level, loudest, on_side, stored, trim
from m27.data.sources.speech import spoken_documents

NAME = "spoken-digits"
LICENCE = "CC-BY-SA 4.0"
ORIGIN = "github.com/Jakobovski/free-spoken-digit-dataset"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
HELD_OUT = ("theo", "yweweler")


def _make() -> Iterator[Item]:
    for row in parquet.rows(shared_file("spoken-digits/fsdd.parquet", ORIGIN)):
        word, speaker = WORDS[row["label"]], row["speaker"]
        meta = {"split": "test" if speaker in HELD_OUT else "train", "speaker": speaker}
        audio = fade(level(trim(read_audio(row["audio"]))))
        key = f"{NAME}/{speaker}/{word}/{row['index']}"
        yield Item(key, word, word, audio=audio, meta=meta)


def items() -> Iterator[Item]:
    """Every recording (8 kHz, brought to 16 kHz), at most 1.2 s; text is the digit's name."""
    for item in stored(NAME, "1", _make):
        if item.audio is not None:
            yield replace(item, audio=loudest(item.audio, 1.2))


def documents(split: Side, seed: int = 0) -> Iterator[Document]:
    """`name_word`: a spoken digit → its name; in training also `transcribe` of some."""
    found = list(on_side(items(), split))
    made = list(pairs.spoken(found, split, seed, NAME))
    if split == "train":
        some = [item for item in found if hashed(item.key, "transcribe") < 0.25]
        # One order for both, so that the first N are a fair sample of the tasks as well.
        made = shuffled([*made, *spoken_documents(NAME, some, split, seed)], seed)
    yield from made
