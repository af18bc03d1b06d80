"""568 telephone prompts of one real English voice (8 kHz), held out entirely; no transcript comes
with them.

`text` is empty: file names such as `vm-goodbye` are not what is said. A few names leave no doubt
though, as "digits/7" or "one-moment-please": `SAID` has what is said there, for a word error rate.
"""

from collections.abc import Iterator
from dataclasses import replace

from m27.codec.media import Limits, read_audio
from m27.data.registry import fetch, pinned
from m27.data.sources.base import Item, SourceError
from m27.data.sources.clips import RATE, fade, level, stored, trim

NAME = "asterisk"
LICENCE = "CC-BY-SA 3.0"
ORIGIN = "Debian package asterisk-core-sounds-en-wav 1.6.1"
LONGEST = 6.0

_DIGITS = "zero one two three four five six seven eight nine ten".split()
_DAYS = "sunday monday tuesday wednesday thursday friday saturday".split()
_MONTHS = (
    "january february march april may june july august september october november december".split()
)
_PLAIN = (
    *("activated", "added", "calling", "cancelled", "disabled", "enabled", "goodbye", "hello"),
    *("hello-world", "hours", "location", "minutes", "number", "one-moment-please", "removed"),
    *("please-try-again", "seconds", "sorry", "telephone-number", "time", "do-not-disturb"),
    *("digits/today", "digits/tomorrow", "digits/yesterday", "digits/hundred", "digits/thousand"),
    *("digits/million", "digits/dollars", "digits/star", "letters/dot", "letters/space"),
)
SAID: dict[str, str] = {
    **{name: name.rpartition("/")[2].replace("-", " ") for name in _PLAIN},
    **{f"digits/{number}": word for number, word in enumerate(_DIGITS)},
    **{f"digits/day-{number}": word for number, word in enumerate(_DAYS)},
    **{f"digits/mon-{number}": word for number, word in enumerate(_MONTHS)},
}
"""Stem of a prompt → what is said, for those whose name tells."""


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


def tests() -> list[Item]:
    """The prompts of `SAID` with `text` what is said: words and very short phrases, for reports."""
    known = {item.concept: item for item in items() if item.concept in SAID}
    return [replace(known[stem], text=said) for stem, said in SAID.items() if stem in known]
