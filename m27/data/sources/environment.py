"""ESC-10: 400 real environmental sounds of 5 s in ten classes (Piczak 2015). Fold 5 is held out."""

from collections.abc import Iterator

from m27.codec.media import read_audio
from m27.data.sources import parquet
from m27.data.sources.base import Item, shared_file
from m27.data.sources.clips import level, stored

NAME = "esc10"
LICENCE = "CC-BY 3.0 (Piczak 2015; the clips' authors are listed by ESC-50)"
ORIGIN = "ESC-10 of github.com/karolpiczak/ESC-50"
CLASSES = (
    "baby cry",
    "chainsaw",
    "clock tick",
    "dog bark",
    "fire crackling",
    "helicopter",
    "person sneeze",
    "rain",
    "rooster",
    "sea waves",
)


def _make() -> Iterator[Item]:
    for row in parquet.rows(shared_file("esc10/esc10.parquet", ORIGIN), batch=32):
        meta = {"split": "test" if row["fold"] == 5 else "train", "fold": row["fold"]}
        audio = level(read_audio(row["audio"]))
        name = row["category"]
        yield Item(f"{NAME}/{row['filename']}", name, name, audio=audio, meta=meta)


def items() -> Iterator[Item]:
    """Every clip whole; concept and text are the class, `meta["split"]` follows the fold."""
    yield from stored(NAME, "1", _make)
