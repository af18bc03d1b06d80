"""Notes and short phrases of 24 General MIDI instruments, rendered from two public soundfonts.

Held out: a fifth of the instrument-and-pitch pairs of the Fluid bank, and the TimGM6mb bank
entirely. A phrase (three notes one after another) uses pairs of the training side only. The concept
of a note is "cello 48"; its text is the bare name.
"""

import random
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from m27.data.messages import document, phrasing, shuffled, sound, turn, words
from m27.data.prompts import ask
from m27.data.registry import fetch
from m27.data.sources.base import Document, Item, Side, with_article
from m27.data.sources.clips import RATE, Samples, digest, fade, level, lowest, on_side, stored, warp
from m27.data.sources.soundfont import SoundFont, SoundFontError

NAME = "instruments"
LICENCE = "FluidR3 GM: MIT; TimGM6mb: GPL-2 (rendered notes are used, the banks are not shipped)"
ORIGIN = "Debian packages fluid-soundfont-gm 3.1 and timgm6mb-soundfont 1.3"

# Name → General MIDI program (from 0), lowest and highest key (60 = middle C): the register that
# each is known by.
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
# Name → family, by the groups of General MIDI: keyboard is its pianos and organs (programs 0–7 and
# 16–23), guitar its guitars and basses (24–39), strings 40–46, brass 56–63, woodwind its reeds and
# pipes (64–79), percussion its tuned percussion (8–15). Three stand elsewhere than in its groups:
# timpani (47) with percussion, the choir (52) alone as voice, the banjo (105) with the guitars.
FAMILIES: dict[str, str] = {
    **dict.fromkeys(("piano", "harpsichord", "organ", "accordion"), "keyboard"),
    **dict.fromkeys(("music box", "vibraphone", "xylophone", "bells", "timpani"), "percussion"),
    **dict.fromkeys(("guitar", "electric guitar", "bass", "banjo"), "guitar"),
    **dict.fromkeys(("violin", "cello", "harp"), "strings"),
    **dict.fromkeys(("choir",), "voice"),
    **dict.fromkeys(("trumpet", "trombone", "tuba"), "brass"),
    **dict.fromkeys(("saxophone", "oboe", "clarinet", "flute"), "woodwind"),
}
FLUID, OTHER = "fluid-soundfont-gm", "timgm6mb-soundfont"
VELOCITIES = (64, 100)
SECONDS = 1.2
NOTE_SECONDS = 0.8
PHRASES = 16
COPIES = 4  # of what is named, in training
_REVISION = 3


def bank(package: str) -> SoundFont:
    """The one bank inside a pinned Debian package. SoundFontError naming the folder if none is."""
    folder = fetch(package)
    found = sorted(folder.rglob("*.sf2"))
    if not found:
        raise SoundFontError(f"{folder}: no .sf2 file")
    return SoundFont(found[0])


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


def _note(font: SoundFont, label: str, name: str, key: int, velocity: int, side: Side) -> Item:
    """One note of 1.2 s, let go after 0.5 or 0.9 s."""
    held = 0.9 if (key + velocity) % 3 else 0.5
    wave = font.note(INSTRUMENTS[name][0], key, velocity, held, SECONDS)
    wave = fade(level(wave, rms=0.05 + velocity / 1500), 0.005)
    meta = {"split": side, "font": label, "instrument": name, "key": key, "kind": "note"}
    concept = f"{name} {key}"
    return Item(f"{NAME}/{label}/{name}/{key}/{velocity}", concept, name, audio=wave, meta=meta)


def _phrase(font: SoundFont, name: str, keys: list[int], number: int) -> Item:
    """Three notes 0.45 s apart, ringing on: 2 s."""
    out = np.zeros(2 * RATE, dtype=np.float32)
    for place, key in enumerate(keys):
        at = int(place * 0.45 * RATE)
        note = font.note(INSTRUMENTS[name][0], key, 90, 0.42, SECONDS)[: out.size - at]
        out[at : at + note.size] += note
    meta = {"split": "train", "font": FLUID, "instrument": name, "keys": keys, "kind": "phrase"}
    key_ = f"{NAME}/{FLUID}/{name}/phrase/{number}"
    return Item(key_, f"{name} phrase", name, audio=fade(level(out)), meta=meta)


def _make() -> Iterator[Item]:
    """Render everything, in a fixed order."""
    fluid, other = bank(FLUID), bank(OTHER)
    held = held_pairs()
    for name, (_, low, high) in INSTRUMENTS.items():
        keys = range(low, high + 1)
        for key in keys:
            if f"{name} {key}" in held:
                yield _note(fluid, FLUID, name, key, VELOCITIES[1], "test")
            else:
                for velocity in VELOCITIES:
                    yield _note(fluid, FLUID, name, key, velocity, "train")
        for key in keys[::3]:
            yield _note(other, OTHER, name, key, 90, "test")
        draw = random.Random(f"m27-phrase-{name}")
        known = [key for key in keys if f"{name} {key}" not in held]
        for number in range(PHRASES):
            start = draw.randrange(len(known) - 5)
            chosen = [known[start + draw.randrange(6)] for _ in range(3)]
            yield _phrase(fluid, name, chosen, number)


def items() -> Iterator[Item]:
    """Every note (its first 0.8 s, faded) and phrase (2 s), both sides.

    Rendered at the first call, read from disk afterwards.
    """
    for item in stored(NAME, digest([_REVISION, INSTRUMENTS, VELOCITIES, SECONDS]), _make):
        if item.meta["kind"] == "note" and item.audio is not None:
            item = replace(item, audio=fade(item.audio[: int(NOTE_SECONDS * RATE)], 0.02))
        yield item


def with_name(name: str) -> str:
    """An instrument as a request names it: "a cello", "bells", "timpani"."""
    return name if name == "timpani" else with_article(name)


def register(name: str, key: int) -> str:
    """Which third of its register a key of an instrument lies in: "low", "" or "high"."""
    _, low, high = INSTRUMENTS[name]
    third = (high - low + 1) / 3
    return "low" if key < low + third else "high" if key >= high + 1 - third else ""


def wanted(item: Item, rng: random.Random | None) -> str:
    """What a request for a note says: "a low note on a cello"; in training also "short" and "soft".

    In training each of the words is left out now and then, so that fewer suffice.
    """
    key, soft = int(item.meta["key"]), item.key.endswith(f"/{VELOCITIES[0]}")
    where = register(item.text, key)
    if rng is None:
        said = [where]
    else:
        # As `_note` chooses how long a key is held.
        velocity = int(item.key.rsplit("/", 1)[1])
        short = "" if (key + velocity) % 3 else "short"
        told = ("soft" if soft else "", short, where)
        said = [word for word in told if rng.random() < 0.7]
    words_ = " ".join(word for word in said if word)
    name = with_name(item.text)
    return f"a {words_} note on {name}" if words_ else name


def played_again(samples_T: Samples, rng: random.Random) -> Samples:
    """The same note somewhat softer or louder, begun up to 40 ms later: another example of it."""
    start = rng.randrange(int(0.04 * RATE))
    return fade((samples_T[start:] * rng.uniform(0.55, 1.15)).clip(-1, 1), 0.005)


def elsewhere(samples_T: Samples, rng: random.Random) -> Samples:
    """The note as another bank might have it: up to half a semitone off, duller or brighter."""
    wave = warp(played_again(samples_T, rng), rng.uniform(0.972, 1.028))
    tilt, loudness = rng.uniform(-0.6, 0.6), float(np.abs(wave).max())
    tilted = wave.copy()
    tilted[1:] += np.float32(tilt) * wave[:-1]
    peak = max(float(np.abs(tilted).max()), 1e-6)
    return fade((tilted * np.float32(loudness / peak)).astype(np.float32), 0.005)


def documents(split: Side, seed: int = 0) -> Iterator[Document]:
    """`name_instrument` and `name_family` of every note, and `sound_for_text` of those of Fluid.

    The test side is both the held-out pairs and the held-out bank; the key in the id names it.
    Phrases are named as well, in training, and everything again as another bank might have it.
    """
    yield from _documents(split, seed, 0)
    for copy in range(1, COPIES if split == "train" else 1):
        yield from _documents(split, seed + copy, copy)


def _documents(split: Side, seed: int, copy: int) -> Iterator[Document]:
    for item in shuffled(on_side(items(), split), seed):
        if item.audio is None:
            continue
        rng = phrasing(split, seed, item.key)
        if copy and rng is not None:
            name = f"{item.key}/{copy}"
            heard = sound(elsewhere(item.audio, rng))
            for task, answer in (("name_instrument", item.text), ("name_family", FAMILIES[item.text])):
                yield document(name, task, NAME, turn([heard, words(ask(task, rng))], [words(answer)]))
            continue
        heard = sound(item.audio)
        messages = turn([heard, words(ask("name_instrument", rng))], [words(item.text)])
        yield document(item.key, "name_instrument", NAME, messages)
        again = heard if rng is None else sound(played_again(item.audio, rng))
        family = words(FAMILIES[item.text])
        messages = turn([again, words(ask("name_family", rng))], [family])
        yield document(item.key, "name_family", NAME, messages)
        if item.meta["kind"] == "note" and item.meta["font"] == FLUID:
            request = words(ask("sound_for_text", rng, text=wanted(item, rng)))
            yield document(item.key, "sound_for_text", NAME, turn([request], [heard]))
