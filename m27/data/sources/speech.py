"""Synthetic speech with exact transcripts: many eSpeak NG voices and four flite voices, at most 3 s an utterance.

Held out: one text in ten (words apart: every word is heard in training, but in other voices), and whole voices. A
training clip has a training text in a training voice; a test clip has a held-out voice, and its text, words apart, is
held out too. `concept` is the text; `meta` names engine and voice.
"""

import random
from collections.abc import Iterator

import numpy as np

from m27.data.sources import espeak, flite, sentences
from m27.data.sources.base import Item
from m27.data.sources.clips import RATE, digest, fade, level, stored, trim

NAME = "speech"
LICENCE = f"espeak-ng {espeak.LICENCE}; flite {flite.LICENCE}"
ORIGIN = "rendered here with eSpeak NG 1.52 and flite 2.2"

ACCENTS = ("en-us", "en-us", "en-us", "en", "en-gb-x-rp", "en-gb-scotland", "en-029", "en-us-nyc")
TRAIN_VARIANTS = (
    " f1 f2 f3 f5 m1 m2 m3 m4 m5 m6 m8 Annie Denis Gene Hugo Jacky Lee Mario Michael Mike Reed adam anika antonio "
    "aunty belinda benjamin boris caleb david ed edward grandma grandpa ian john marcelo max michel miguel norbert "
    "pablo paul pedro quincy rob robert sandro shelby steph travis victor zac klatt klatt2 klatt4"
).split(" ")
TEST_VARIANTS = ("f4", "m7", "linda", "Andy", "Alicia", "steph3")
TRAIN_FLITE = ("kal16", "rms", "slt")
TEST_FLITE = ("awb",)
LONGEST = 3.0
_REVISION = 3


def render(text: str, engine: str, voice: espeak.Voice | str) -> np.ndarray:
    """One utterance at the project's loudness with silence cut from its ends: float32 [T] at 16 kHz."""
    if isinstance(voice, espeak.Voice):
        wave = espeak.speak(text, voice)
    else:
        wave = flite.speak(text, voice)
    return fade(level(trim(wave)))


def _voices(text: str, split: str, copies: int) -> Iterator[tuple[str, espeak.Voice | str, str]]:
    """Engine, voice and its label for each copy of a text, drawn by the text so that a new text moves no old one."""
    draw = random.Random(f"{split}:{text}")
    variants = TRAIN_VARIANTS if split == "train" else TEST_VARIANTS
    recorded = TRAIN_FLITE if split == "train" else TEST_FLITE
    for _ in range(copies):
        if draw.random() < 0.3:
            name = draw.choice(recorded)
            yield "flite", name, name
        else:
            voice = espeak.Voice(
                draw.choice(ACCENTS),
                draw.choice(variants),
                rate=draw.randrange(140, 200),
                pitch=draw.randrange(25, 75),
                spread=draw.randrange(30, 80),
            )
            yield "espeak", voice, voice.name


def _make() -> Iterator[Item]:
    """Render everything, in a fixed order."""
    words = sentences.phrases()
    spoken = sentences.everyday()
    aloud = sentences.read_aloud()
    sides = sentences.sides(spoken) | sentences.sides(aloud)
    plan = [(text, "train", 4, "word") for text in words] + [
        (text, "test", 1, "word") for text in words[::3]
    ]
    plan += [(text, sides[text], 3 if sides[text] == "train" else 1, "everyday") for text in spoken]
    plan += [(text, sides[text], 1, "read") for text in aloud if text not in set(spoken)]
    for text, split, copies, kind in plan:
        for copy, (engine, voice, label) in enumerate(_voices(text, split, copies)):
            wave = render(text, engine, voice)
            if wave.size > LONGEST * RATE:
                continue
            meta = {"split": split, "engine": engine, "voice": label, "kind": kind}
            yield Item(
                key=f"{NAME}/{split}/{kind}/{text}/{copy}",
                concept=text,
                text=text,
                audio=wave,
                meta=meta,
            )


def items() -> Iterator[Item]:
    """Every utterance, both sides; rendered at the first call, read from disk afterwards."""
    spec = [
        _REVISION,
        ACCENTS,
        TRAIN_VARIANTS,
        TEST_VARIANTS,
        TRAIN_FLITE,
        TEST_FLITE,
        sentences.phrases(),
        sentences.everyday(),
    ]
    yield from stored(NAME, digest(spec), _make)
