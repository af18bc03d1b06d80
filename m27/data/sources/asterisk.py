"""568 telephone prompts of one real English voice (8 kHz), held out entirely; no transcript comes
with them.

`text` is empty: file names such as `vm-goodbye` are not what is said.
"""

from collections.abc import Iterator

from m27.codec.media import Limits, read_audio
from m27.data.registry import fetch, pinned
from m27.data.sources.base import Item, SourceError
from m27.data.sources.clips import RATE, fade, level, stored, trim

NAME = "asterisk"
LICENCE = "CC-BY-SA 3.0"
ORIGIN = "Debian package asterisk-core-sounds-en-wav 1.6.1"
LONGEST = 6.0


def _make() -> Iterator[Item]:
    folder = fetch(pinned("asterisk-core-sounds-en-wav"))
    paths = sorted(folder.rglob("*.wav"))
    if not paths:
        raise SourceError(f"{folder}: no prompts")
    for path in paths:
        wave = trim(read_audio(path, Limits(max_seconds=120)))
        if wave.size < 0.2 * RATE or not wave.any():
            continue  # some prompts are silence on purpose
        stem = path.relative_to(folder).with_suffix("").as_posix().split("en_US_f_Allison/")[-1]
        audio = fade(level(wave[: int(LONGEST * RATE)]))
        yield Item(f"{NAME}/{stem}", stem, "", audio=audio, meta={"split": "test"})


def items() -> Iterator[Item]:
    """Every prompt that is not silent, cut to 6 s; all on the test side."""
    yield from stored(NAME, "1", _make)
