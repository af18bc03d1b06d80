"""165 short samples of Sonic Pi (drums, tabla, ambience, voices of machines); 40 held out.

Held out by name without its number (`tabla_ghe1` to `tabla_ghe8` go together), at most 6 s each.
"""

import re
from collections.abc import Iterator

from m27.codec.media import read_audio
from m27.data.registry import fetch, pinned
from m27.data.sources.base import Item, SourceError
from m27.data.sources.clips import RATE, digest, fade, level, lowest, stored

NAME = "sonic-pi"
LICENCE = "CC0 for most; see the package's copyright file"
ORIGIN = "Debian package sonic-pi-samples 3.2.2"
HELD_OUT = 40
LONGEST = 6.0
_KINDS = {
    "ambi": "ambient",
    "bass": "bass",
    "bd": "bass drum",
    "drum": "drum",
    "elec": "electronic",
    "glitch": "glitch",
    "guit": "guitar",
    "loop": "drum loop",
    "mehackit": "electronic",
    "misc": "",
    "perc": "percussion",
    "sn": "snare drum",
    "tabla": "tabla",
    "vinyl": "vinyl record",
}


def describe(stem: str) -> str:
    """A plain name: `drum_cymbal_open` → "drum cymbal open", `bd_haus` → "bass drum"."""
    kind, _, rest = stem.partition("_")
    rest = re.sub(r"\d+$", "", rest).replace("_", " ").strip()
    if kind in ("bd", "sn", "tabla", "loop", "glitch"):
        rest = ""
    return f"{_KINDS.get(kind, kind)} {rest}".strip()


def _held(stems: list[str]) -> set[str]:
    """Exactly 40 samples: whole groups in the order of their hashes, as long as they fit."""
    groups: dict[str, list[str]] = {}
    for stem in stems:
        groups.setdefault(re.sub(r"\d+$", "", stem), []).append(stem)
    held: set[str] = set()
    for count in range(1, len(groups) + 1):
        for group in lowest(groups, count, NAME) - {re.sub(r"\d+$", "", stem) for stem in held}:
            if len(held) + len(groups[group]) <= HELD_OUT:
                held.update(groups[group])
    return held


def _make() -> Iterator[Item]:
    folder = fetch(pinned("sonic-pi-samples"))
    paths = sorted(folder.rglob("*.flac"))
    if not paths:
        raise SourceError(f"{folder}: no samples")
    held = _held([path.stem for path in paths])
    for path in paths:
        wave = read_audio(path)
        audio = fade(level(wave[: int(LONGEST * RATE)]), 0.005)
        concept = re.sub(r"\d+$", "", path.stem)
        meta = {"split": "test" if path.stem in held else "train"}
        yield Item(f"{NAME}/{path.stem}", concept, describe(path.stem), audio=audio, meta=meta)


def items() -> Iterator[Item]:
    """Every sample, cut to 6 s; concept is the name without its number."""
    yield from stored(NAME, digest([1, HELD_OUT, LONGEST, _KINDS]), _make)
