"""More notes than the instruments' tasks have, for the audio codec alone, and captions of sounds.

Longer and in more strengths than the tasks' notes, and from the rest of General MIDI, so that
timbre is more than 24 recordings. Only the bank of the training side, and never a held-out pair:
of a program of the same group (its recordings may be shared) not even the same key.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from m27.data.sources import instruments
from m27.data.sources.base import Item
from m27.data.sources.clips import fade, level
from m27.data.sources.soundfont import SoundFontError
from m27.train.audio_corpus import Clip

STRENGTHS = (50, 82, 118)
SECONDS, HELD = 1.5, 1.1
# Programs outside the 24 that have a steady or struck tone (not the effects from 96 on).
OTHERS = tuple(program for program in range(96) if program % 2 == 1 or program in (4, 70, 74))
FAMILIES = {
    "keyboard": ("piano", "harpsichord", "organ", "accordion"),
    "mallet": ("music box", "vibraphone", "xylophone", "bells"),
    "plucked": ("guitar", "electric guitar", "bass", "harp", "banjo"),
    "bowed": ("violin", "cello"),
    "brass": ("trumpet", "trombone", "tuba"),
    "woodwind": ("saxophone", "oboe", "clarinet", "flute"),
    "drum": ("timpani",),
    "voice": ("choir",),
}
FAMILY = {name: family for family, names in FAMILIES.items() for name in names}


def caption(item: Item) -> str:
    """What is heard in an item, in words: of a note its instrument, family and pitch as well."""
    name = item.meta.get("instrument")
    if name is None:
        return item.text
    keys = [item.meta["key"]] if "key" in item.meta else item.meta.get("keys", [])
    return words(str(name), [int(key) for key in keys])


def words(name: str, keys: list[int]) -> str:
    """Caption of notes: "cello cello bowed key48"; the name counts twice in the bag."""
    return " ".join([name, name, FAMILY[name], *(f"key{key}" for key in keys)])


def notes() -> Iterator[Clip]:
    """Notes of 1.5 s, source "notes": the 24 instruments in three strengths, others without a
    caption."""
    font = instruments.bank(instruments.FLUID)
    held = instruments.held_pairs()
    closed: dict[int, set[int]] = {}
    for name, (program, low, high) in instruments.INSTRUMENTS.items():
        for key in range(low, high + 1):
            if f"{name} {key}" in held:
                closed.setdefault(program // 8, set()).add(key)
                continue
            strength = STRENGTHS[(key + program) % 3]
            wave = font.note(program, key, strength, HELD, SECONDS)
            wave = fade(level(wave, rms=0.05 + strength / 1500), 0.01)
            yield Clip("notes", _short(wave), words(name, [key]))
    used = {program for program, _, _ in instruments.INSTRUMENTS.values()}
    for program in OTHERS:
        for key in range(36 + program % 5, 85, 5):
            if program in used or key in closed.get(program // 8, set()):
                continue
            try:
                wave = font.note(program, key, 90, HELD, SECONDS)
            except SoundFontError:
                continue  # this bank has no such program or key
            yield Clip("notes", _short(fade(level(wave), 0.01)), "")


def _short(wave: np.ndarray) -> np.ndarray:
    """float32 in -1..1 → int16."""
    return (np.clip(wave, -1, 1) * 32_767).astype(np.int16)
