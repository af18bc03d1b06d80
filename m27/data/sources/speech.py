"""Synthetic speech with exact transcripts: many eSpeak NG voices and four of flite, 3 s at most.

Held out: one text in ten, and whole voices. A training clip has a training text in a training
voice. A test clip has a held-out text (or a single word or phrase, all of which training has heard)
in a held-out voice. One voice, flite's `slt`, is what the model itself speaks with: it reads every
text, and a held-out text in it is the reference of the task `speak`.
"""

import random
from collections.abc import Iterator

from m27.data.messages import document, phrasing, shuffled, sound, turn, words
from m27.data.prompts import ask
from m27.data.sources import espeak, flite, sentences
from m27.data.sources.base import Document, Item, Side
from m27.data.sources.clips import RATE, Samples, digest, fade, level, on_side, stored, trim

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
CLEAR = ("en-us", "en", "en-gb-x-rp")
OWN_VOICE = "slt"
TRAIN_FLITE = ("kal16", "rms", OWN_VOICE)
TEST_FLITE = ("awb",)
LONGEST = 3.0
_REVISION = 4


def render(text: str, voice: espeak.Voice | str) -> Samples:
    """One utterance at the project's loudness, without silence at its ends: float32 [T].

    A name is a voice of flite. Raises SourceError for an unknown voice.
    """
    if isinstance(voice, espeak.Voice):
        wave = espeak.speak(text, voice)
    else:
        wave = flite.speak(text, voice)
    return fade(level(trim(wave)))


def _voices(text: str, side: Side, copies: int) -> Iterator[espeak.Voice | str]:
    """Voices for the copies of a text, drawn by the text, so that a new text moves no old one."""
    draw = random.Random(f"{side}:{text}")
    variants = TRAIN_VARIANTS if side == "train" else TEST_VARIANTS
    recorded = TRAIN_FLITE if side == "train" else TEST_FLITE
    for _ in range(copies):
        if draw.random() < 0.2:
            yield draw.choice(recorded)
        else:
            yield espeak.Voice(
                draw.choice(ACCENTS),
                draw.choice(variants),
                rate=draw.randrange(140, 200),
                pitch=draw.randrange(25, 75),
                spread=draw.randrange(30, 80),
            )


def plan() -> Iterator[tuple[str, Side, str, list[espeak.Voice | str]]]:
    """What is said: text, side, kind ("word", "everyday" or "read") and voices, each text once."""
    phrases = sentences.phrases()
    for text in phrases:
        yield text, "train", "word", [OWN_VOICE, *_voices(text, "train", 3)]
    for text in phrases[::3]:
        yield text, "test", "word", list(_voices(text, "test", 1))
    seen = set(phrases)
    for kind, copies, texts in (
        ("everyday", 2, sentences.everyday()),
        ("read", 1, sentences.read_aloud()),
    ):
        fresh = [text for text in texts if text not in seen]
        seen.update(fresh)
        for text, side in sentences.sides(fresh).items():
            voices = list(_voices(text, side, copies if side == "train" else 1))
            yield text, side, kind, [OWN_VOICE, *voices]


def _make() -> Iterator[Item]:
    """Render the plan."""
    for text, side, kind, voices in plan():
        for copy, voice in enumerate(voices):
            wave = render(text, voice)
            if wave.size > LONGEST * RATE:
                continue
            label = voice.name if isinstance(voice, espeak.Voice) else voice
            meta = {"split": side, "voice": label, "own": label == OWN_VOICE, "kind": kind}
            yield Item(f"{NAME}/{side}/{kind}/{text}/{copy}", text, text, audio=wave, meta=meta)


def items() -> Iterator[Item]:
    """Every utterance, both sides; rendered at the first call, read from disk afterwards."""
    voices = [ACCENTS, TRAIN_VARIANTS, TEST_VARIANTS, TRAIN_FLITE, TEST_FLITE, OWN_VOICE]
    texts = [sentences.phrases(), sentences.everyday(), sentences.read_aloud()]
    yield from stored(NAME, digest([_REVISION, voices, texts]), _make)


def is_clear(voice: str) -> bool:
    """Whether a voice is one of flite, or eSpeak's in an accent that people follow easily."""
    return voice in (*TRAIN_FLITE, *TEST_FLITE) or voice.partition("+")[0] in CLEAR


def spoken_documents(name: str, items_: list[Item], side: Side, seed: int) -> Iterator[Document]:
    """`transcribe` for every clip, and `speak` for clips in the model's own voice.

    On the test side a clip in the own voice is for `speak` alone: its voice has been heard.
    """
    for item in shuffled(items_, seed):
        if item.audio is None:
            continue
        rng = phrasing(side, seed, item.key)
        if side == "train" or not item.meta["own"]:
            heard = [sound(item.audio), words(ask("transcribe", rng))]
            yield document(item.key, "transcribe", name, turn(heard, [words(item.text)]))
        if item.meta["own"]:
            request = words(ask("speak", rng, text=item.text))
            yield document(item.key, "speak", name, turn([request], [sound(item.audio)]))


def documents(split: Side, seed: int = 0) -> Iterator[Document]:
    """`transcribe` and `speak`, lower-case text of 1 to 8 words, at most 3 s of speech.

    Only clear voices: the accents outside `CLEAR` are for the codec, which is to carry any voice.
    """
    clear = [item for item in on_side(items(), split) if is_clear(item.meta["voice"])]
    yield from spoken_documents(NAME, clear, split, seed)
