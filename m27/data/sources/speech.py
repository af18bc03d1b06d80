"""Synthetic speech with exact transcripts: eSpeak NG and flite, 3 s at most.

Held out: texts by their hash, and whole voices. A training clip has a training text in a training
voice. A test clip has a held-out text (or a single word, all of which training has heard) in a
held-out voice. One voice is what the model itself speaks with: it says every short text, and a
held-out text in it is the reference of the task `speak`.

What the model learns from is easy on purpose: words, then sentences of a small vocabulary, in few
clear voices, each warped a little. Clauses of two books in over fifty voices are there for the
audio codec alone, which is to carry any speech.
"""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from m27.data.messages import document, phrasing, shuffled, sound, turn, words
from m27.data.prompts import ask
from m27.data.sources import espeak, flite, sentences
from m27.data.sources.base import Document, Item, Side
from m27.data.sources.clips import (
    RATE,
    Samples,
    digest,
    fade,
    hashed,
    level,
    on_side,
    stored,
    trim,
    warp,
)

NAME = "speech"
LICENCE = f"espeak-ng {espeak.LICENCE}; flite {flite.LICENCE}"
ORIGIN = "rendered here with eSpeak NG 1.52 and flite 2.2"

ACCENTS = ("en-us", "en-us", "en-us", "en", "en-gb-x-rp", "en-gb-scotland", "en-029", "en-us-nyc")
TRAIN_VARIANTS: tuple[str, ...] = (
    "",
    *("f1", "f2", "f3", "f5", "m1", "m2", "m3", "m4", "m5", "m6", "m8"),
    *("Annie", "Denis", "Gene", "Hugo", "Jacky", "Lee", "Mario", "Michael", "Mike", "Reed"),
    *("adam", "anika", "antonio", "aunty", "belinda", "benjamin", "boris", "caleb", "david"),
    *("ed", "edward", "grandma", "grandpa", "ian", "john", "klatt", "klatt2", "klatt4"),
    *("marcelo", "max", "michel", "miguel", "norbert", "pablo", "paul", "pedro", "quincy"),
    *("rob", "robert", "sandro", "shelby", "steph", "travis", "victor", "zac"),
)
TEST_VARIANTS = ("f4", "m7", "linda", "Andy", "Alicia", "steph3")
CLEAR_ACCENTS = ("en-us", "en-us", "en-gb-x-rp")
CLEAR_VARIANTS = ("", "f2", "f5", "m1", "m3", "Annie", "Michael", "max")
TRAIN_FLITE = ("rms", "slt")
TEST_FLITE = ("awb",)
LONGEST = 3.0
_REVISION = 5


@dataclass(frozen=True)
class Reader:
    """A voice of eSpeak or (by name) of flite, and how much faster and higher it is played."""

    voice: espeak.Voice | str
    warp: float = 1.0

    @property
    def name(self) -> str:
        """The voice's name, without the warp."""
        return self.voice.name if isinstance(self.voice, espeak.Voice) else self.voice


OWN = Reader("kal16")


def render(text: str, reader: Reader) -> Samples:
    """One utterance at the project's loudness, without silence at its ends: float32 [T].

    Raises SourceError for an unknown voice.
    """
    if isinstance(reader.voice, espeak.Voice):
        wave = espeak.speak(text, reader.voice)
    else:
        wave = flite.speak(text, reader.voice)
    wave = fade(level(trim(wave)))
    return wave if reader.warp == 1.0 else warp(wave, reader.warp)


def readers(text: str, side: Side, copies: int, clear: bool = True) -> Iterator[Reader]:
    """Readers of the copies of a text, drawn by the text, so that a new text moves no old one."""
    draw = random.Random(f"{side}:{text}")
    accents = CLEAR_ACCENTS if clear else ACCENTS
    variants = CLEAR_VARIANTS if clear else TRAIN_VARIANTS
    if side == "test":
        variants = TEST_VARIANTS
    for _ in range(copies):
        if draw.random() < 0.2:
            recorded = draw.choice(TRAIN_FLITE if side == "train" else TEST_FLITE)
            yield Reader(recorded, round(draw.uniform(0.87, 1.17), 2) if side == "train" else 1.0)
        else:
            low, high = (140, 175) if clear else (140, 200)
            voice = espeak.Voice(
                draw.choice(accents),
                draw.choice(variants),
                rate=draw.randrange(low, high),
                pitch=draw.randrange(25, 75),
                spread=draw.randrange(30, 80),
            )
            yield Reader(voice)


def plan() -> Iterator[tuple[str, Side, str, list[Reader]]]:
    """What is said: text, side, kind ("word", "everyday" or "read") and readers, each text once.

    A single word is on both sides, in voices of the side.
    """
    seen = set[str]()
    for kind, copies, texts in (
        ("word", 2, sentences.phrases()),
        ("everyday", 1, sentences.everyday()),
        ("read", 1, sentences.read_aloud()),
    ):
        fresh = [text for text in texts if text not in seen]
        seen.update(fresh)
        for text, side in sentences.sides(fresh).items():
            clear = kind != "read"
            heard = list(readers(text, side, copies if side == "train" else 1, clear))
            yield text, side, kind, [OWN, *heard] if clear else heard
            if side == "train" and " " not in text:
                yield text, "test", kind, list(readers(text, "test", 1))


def _make() -> Iterator[Item]:
    """Render the plan."""
    for text, side, kind, readers in plan():
        for copy, reader in enumerate(readers):
            wave = render(text, reader)
            if wave.size > LONGEST * RATE:
                continue
            meta = {"split": side, "voice": reader.name, "own": reader == OWN, "kind": kind}
            yield Item(f"{NAME}/{side}/{kind}/{text}/{copy}", text, text, audio=wave, meta=meta)


def items() -> Iterator[Item]:
    """Every utterance, both sides; rendered at the first call, read from disk afterwards."""
    voices: list[object] = [ACCENTS, TRAIN_VARIANTS, TEST_VARIANTS, CLEAR_ACCENTS, CLEAR_VARIANTS]
    voices += [TRAIN_FLITE, TEST_FLITE, (OWN.name, OWN.warp)]
    texts = [sentences.phrases(), sentences.everyday(), sentences.read_aloud()]
    yield from stored(NAME, digest([_REVISION, voices, texts]), _make)


def tests() -> list[Item]:
    """Held-out sentences in voices never trained on, in a fixed order, fair from the start."""
    found = (i for i in on_side(items(), "test") if i.meta["kind"] == "everyday")
    return shuffled((item for item in found if not item.meta["own"]), 27)


def say_tests(count: int = 100) -> list[Item]:
    """`count` held-out sentences to be said; `audio` is the own voice saying each."""
    found = (i for i in on_side(items(), "test") if i.meta["kind"] == "everyday")
    return shuffled((item for item in found if item.meta["own"]), 27)[:count]


def spoken_documents(
    name: str, items_: Iterable[Item], side: Side, seed: int
) -> Iterator[Document]:
    """`transcribe` for every clip, and `speak` for clips in the model's own voice.

    The own voice is to be said more than heard: one clip in four of it is for `transcribe` too. On
    the test side none is, as its voice has been heard.
    """
    for item in shuffled(items_, seed):
        if item.audio is None:
            continue
        rng = phrasing(side, seed, item.key)
        own = bool(item.meta.get("own"))
        if not own or (side == "train" and hashed(item.key, "heard") < 0.25):
            heard = [sound(item.audio), words(ask("transcribe", rng))]
            yield document(item.key, "transcribe", name, turn(heard, [words(item.text)]))
        if own:
            request = words(ask("speak", rng, text=item.text))
            yield document(item.key, "speak", name, turn([request], [sound(item.audio)]))


def documents(split: Side, seed: int = 0) -> Iterator[Document]:
    """`transcribe` and `speak`: lower-case words and short sentences, 3 s at most, clear."""
    clear = (item for item in on_side(items(), split) if item.meta["kind"] != "read")
    yield from spoken_documents(NAME, clear, split, seed)
