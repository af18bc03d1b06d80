"""Notes and short phrases of 24 General MIDI instruments, rendered from two public soundfonts by our own sampler.

Held out: 20 % of the instrument-and-pitch pairs of the Fluid bank, and the TimGM6mb bank entirely. A phrase (three
notes one after another) uses only pairs of the training side. `concept` is "cello 48"; `text` is the bare name.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from m27.data.registry import fetch, pinned
from m27.data.sources.base import Item
from m27.data.sources.clips import RATE, digest, fade, level, lowest, stored
from m27.data.sources.soundfont import SoundFont, SoundFontError

NAME = "instruments"
LICENCE = "FluidR3 GM: MIT; TimGM6mb: GPL-2 (rendered notes are used, the banks are not shipped)"
ORIGIN = "Debian packages fluid-soundfont-gm 3.1 and timgm6mb-soundfont 1.3"

# Name → General MIDI program (from 0), lowest and highest key used (60 = middle C): the register each is known by.
INSTRUMENTS: dict[str, tuple[int, int, int]] = {
    "piano": (0, 36, 84),
    "harpsichord": (6, 41, 77),
    "music box": (10, 60, 96),
    "vibraphone": (11, 53, 84),
    "xylophone": (13, 65, 96),
    "bells": (14, 60, 77),
    "organ": (19, 36, 84),
    "accordion": (21, 53, 84),
    "guitar": (24, 40, 76),
    "electric guitar": (30, 40, 76),
    "bass": (33, 28, 52),
    "violin": (40, 55, 91),
    "cello": (42, 36, 69),
    "harp": (46, 36, 84),
    "timpani": (47, 36, 57),
    "choir": (52, 48, 76),
    "trumpet": (56, 55, 82),
    "trombone": (57, 40, 67),
    "tuba": (58, 28, 53),
    "saxophone": (66, 44, 75),
    "oboe": (68, 58, 87),
    "clarinet": (71, 50, 86),
    "flute": (73, 60, 94),
    "banjo": (105, 48, 79),
}
VELOCITIES = (64, 100)
SECONDS = 1.2
_REVISION = 2


def bank(package: str) -> SoundFont:
    """The one bank inside a pinned Debian package."""
    folder: Path = fetch(pinned(package))
    return SoundFont(min(folder.rglob("*.sf2")))


def pairs() -> list[str]:
    """Every instrument-and-pitch pair, as its concept."""
    return [
        f"{name} {key}"
        for name, (_, low, high) in INSTRUMENTS.items()
        for key in range(low, high + 1)
    ]


def held_pairs() -> set[str]:
    """The fifth of the pairs that is never trained on."""
    return lowest(pairs(), len(pairs()) // 5, "instrument")


def _single(
    font: SoundFont, label: str, name: str, key: int, velocity: int, held: float, split: str
) -> Item | None:
    """One note; None where the bank has no such key."""
    try:
        wave = font.note(INSTRUMENTS[name][0], key, velocity, held, SECONDS)
    except SoundFontError:
        return None
    meta = {
        "source": NAME,
        "split": split,
        "font": label,
        "instrument": name,
        "key": key,
        "kind": "note",
    }
    wave = fade(level(wave, rms=0.05 + velocity / 1500), 0.005)
    return Item(
        key=f"{NAME}/{label}/{name}/{key}/{velocity}",
        concept=f"{name} {key}",
        text=name,
        audio=wave,
        meta=meta,
    )


def _phrase(font: SoundFont, name: str, keys: list[int]) -> np.ndarray:
    """Notes one after another, 0.45 s apart, ringing on: float32 [2 s]."""
    out = np.zeros(2 * RATE, dtype=np.float32)
    for place, key in enumerate(keys):
        at = int(place * 0.45 * RATE)
        note = font.note(INSTRUMENTS[name][0], key, 90, 0.42, SECONDS)[: out.size - at]
        out[at : at + note.size] += note
    return fade(level(out))


def _make() -> Iterator[Item]:
    """Render everything, in a fixed order."""
    fluid, other = bank("fluid-soundfont-gm"), bank("timgm6mb-soundfont")
    held = held_pairs()
    for name, (_, low, high) in INSTRUMENTS.items():
        for key in range(low, high + 1):
            split = "test" if f"{name} {key}" in held else "train"
            for velocity in VELOCITIES if split == "train" else VELOCITIES[1:]:
                note = _single(
                    fluid, "fluid", name, key, velocity, 0.9 if (key + velocity) % 3 else 0.5, split
                )
                if note is not None:
                    yield note
        for key in range(low, high + 1, 3):
            note = _single(other, "timgm6mb", name, key, 90, 0.8, "test")
            if note is not None:
                yield note
        draw = random.Random(f"m27-phrase-{name}")
        keys = [key for key in range(low, high + 1) if f"{name} {key}" not in held]
        for number in range(16):
            start = draw.randrange(len(keys) - 5)
            chosen = [keys[start + draw.randrange(6)] for _ in range(3)]
            meta = {
                "source": NAME,
                "split": "train",
                "font": "fluid",
                "instrument": name,
                "kind": "phrase",
            }
            meta["keys"] = " ".join(map(str, chosen))
            audio = _phrase(fluid, name, chosen)
            yield Item(
                key=f"{NAME}/fluid/{name}/phrase/{number}",
                concept=f"{name} phrase",
                text=name,
                audio=audio,
                meta=meta,
            )


def items() -> Iterator[Item]:
    """Every note and phrase, both sides; rendered at the first call, read from disk afterwards."""
    yield from stored(NAME, digest([_REVISION, INSTRUMENTS, VELOCITIES, SECONDS]), _make)
