"""619 spoken coffee orders by over 50 people, with intent and slots but no transcript; 120 held
out.

`text` is the order as its slots say it ("mocha, single shot"); it is not a transcript.
"""

import json
from collections.abc import Iterator

from m27.codec.media import read_audio
from m27.data.holdout import content_hash
from m27.data.sources import parquet
from m27.data.sources.base import Item, shared_file
from m27.data.sources.clips import fade, level, lowest, stored, trim

NAME = "spoken-orders"
LICENCE = "Apache-2.0"
ORIGIN = "github.com/Picovoice/speech-to-intent-benchmark"
HELD_OUT = 120


def _make() -> Iterator[Item]:
    rows = list(parquet.rows(shared_file("spoken-orders/orders.parquet", ORIGIN)))
    hashes = [content_hash(row["audio"]) for row in rows]
    held = lowest(hashes, HELD_OUT, NAME)
    for row, digest in zip(rows, hashes, strict=True):
        slots = {key: " ".join(value.split()) for key, value in json.loads(row["slots"]).items()}
        meta = {"split": "test" if digest in held else "train", "slots": slots}
        audio = fade(level(trim(read_audio(row["audio"]))))
        yield Item(f"{NAME}/{digest}", digest, ", ".join(slots.values()), audio=audio, meta=meta)


def items() -> Iterator[Item]:
    """Every order with silence cut from its ends; `meta["slots"]` is what was ordered."""
    yield from stored(NAME, "1", _make)
