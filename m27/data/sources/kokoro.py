"""Kokoro-82M: natural speech of short everyday sentences in 16 English voices, two held out.

The model (Apache-2.0) comes as shards of one ONNX file from npm, its voices with `kokoro-js`; it
reads IPA, which eSpeak NG writes. It costs more than a second of processor time a second of speech,
so utterances are made apart (`python -m recipes.speech`), each kept as FLAC under
`generated/kokoro` by the hash of voice and text; a reader takes those that are there. Making them
needs `onnxruntime` and `soundfile` (extra `data`).

Shapes: N tokens, T samples at 16 kHz.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import os
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from m27.codec.media import read_audio, resample
from m27.data.progress import track
from m27.data.registry import Package, cache_folder, fetch
from m27.data.sources import espeak, sentences
from m27.data.sources.base import Document, Item, Side, SourceError
from m27.data.sources.clips import RATE, Samples, fade, level, on_side, trim, warp
from m27.data.sources.speech import LONGEST, spoken_documents

NAME = "kokoro"
LICENCE = "Apache-2.0 (model and voices)"
ORIGIN = "Kokoro-82M 1.0 (hexgrad), rendered here"

_SHA256 = {
    "a": "3865cf44462777e1dfc30aebf268bd57f09949b1d69204c7dd8b6d511cb3c18b",
    "b": "8fe7242dc2d2135eec6497e996b5efbb1b33163ddd9682107dc6e473fb2505fc",
    "c": "21091855eab91d5d9fbdbbc6fb8c69e08b1f42eb707891aae5d01cd2ce34c1db",
}
SHARDS = tuple(
    Package("npm", f"kokoro-fp32{part}-shards", "1.0.0", sha256) for part, sha256 in _SHA256.items()
)
VOICE_PACKAGE = Package(
    "npm",
    "kokoro-js",
    "1.2.1",
    "1f0d0383ef0349af0bd9440d81dc12abbea3a5392eb645283eda876f537f5860",
)
TRAIN_VOICES = (
    *("af_heart", "am_michael", "bf_emma", "bm_george", "af_bella", "am_puck", "af_sarah"),
    *("bm_fable", "af_nova", "am_fenrir", "bf_isabella", "af_sky", "am_eric", "bm_daniel"),
)
TEST_VOICES = ("af_kore", "bm_lewis")
TESTS, COUNT = 200, 8000
COPIES = 4  # of a clip in training, all but the first warped
_MODEL_RATE = 24_000

# The model's symbol table: a symbol's id is its place, 0 is the pad at both ends (of StyleTTS 2).
_MARKS = ';:,.!?¡¿—…"«»“” '
_LATIN = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_IPA = "ɑɐɒæɓʙβɔɕçɗɖðʤəɘɚɛɜɝɞɟʄɡɠɢʛɦɧħɥʜɨɪʝɭɬɫɮʟɱɯɰŋɳɲɴøɵɸθœɶʘɹɺɾɻʀʁɽʂʃʈʧʉʊʋⱱʌɣɤʍχʎʏʑʐʒʔ"
SYMBOLS = {symbol: 1 + place for place, symbol in enumerate(_MARKS + _LATIN + _IPA)}
SYMBOLS |= {"ˈ": 156, "ˌ": 157, "ː": 158, "ᵻ": 177}
SYMBOLS["A"] = 24  # version 1.0 put the sound of "day" here, the other capitals stayed

# eSpeak's spelling of a sound → the model's, in this order.
_RESPELL = (
    *(("tʃ", "ʧ"), ("dʒ", "ʤ"), ("eɪ", "A"), ("aɪ", "I"), ("aʊ", "W"), ("ɔɪ", "Y")),
    *(("əʊ", "Q"), ("oʊ", "O"), ("ɚ", "əɹ"), ("ɐ", "ə"), ("r", "ɹ"), ("x", "k")),
)
_RESPELL_AMERICAN = (("ɜː", "ɜɹ"), ("ɹɹ", "ɹ"), ("ɾ", "T"), ("ː", ""))


@functools.cache
def _session() -> Any:
    """The model, joined from its shards once. SourceError where onnxruntime is not installed."""
    try:
        import onnxruntime
    except ImportError:
        raise SourceError("kokoro: needs onnxruntime (pip install onnxruntime)") from None
    whole = cache_folder() / "generated" / "kokoro-82m.onnx"
    if not whole.is_file():
        parts = [
            path for shard in SHARDS for path in (fetch(shard) / "package").glob("*.part*.bin")
        ]
        parts.sort(key=lambda path: int(path.name.split("part")[1].split(".")[0]))
        whole.parent.mkdir(parents=True, exist_ok=True)
        temporary = whole.with_suffix(f".{os.getpid()}.tmp")
        with temporary.open("wb") as file:
            for part in parts:
                file.write(part.read_bytes())
        os.replace(temporary, whole)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(whole), options, providers=["CPUExecutionProvider"])


@functools.cache
def _styles(voice: str) -> Samples:
    """Style vectors of a voice, float32 [510, 256], one for each number of tokens."""
    path = fetch(VOICE_PACKAGE) / "package" / "voices" / f"{voice}.bin"
    if not path.is_file():
        raise SourceError(f"kokoro: no voice {voice!r} ({path.name} is missing)")
    return np.fromfile(path, dtype=np.float32).reshape(-1, 256)


def tokens(text: str, american: bool = True) -> list[int]:
    """Ids of the symbols that spell a text, without the pads: list [N]. Others are left out."""
    spelled = espeak.phonemes(text, "en-us" if american else "en")
    for old, new in _RESPELL + (_RESPELL_AMERICAN if american else ()):
        spelled = spelled.replace(old, new)
    return [SYMBOLS[symbol] for symbol in spelled if symbol in SYMBOLS]


def speak(text: str, voice: str, speed: float = 1.0) -> Samples:
    """Speech of `text` as float32 [T] at 16 kHz, at the project's loudness, silence cut off."""
    ids = tokens(text, american=voice[0] == "a")
    styles = _styles(voice)
    feeds = {
        "input_ids": np.array([[0, *ids, 0]], dtype=np.int64),
        "style": styles[min(len(ids), len(styles) - 1)][None],
        "speed": np.array([speed], dtype=np.float32),
    }
    wave = _session().run(None, feeds)[0].reshape(-1)
    return fade(level(trim(resample(wave, _MODEL_RATE, RATE))))


def plan() -> list[tuple[str, str, Side]]:
    """Text, voice and side of each utterance, the most wanted first: any beginning is of use.

    First half of the test clips (a held-out sentence in a held-out voice each), then training in
    all voices in turn, every fifth clip a word or phrase; the other test clips after 1,000 clips.
    """
    sides = sentences.sides([text for text in sentences.everyday() if len(text.split()) <= 6])
    tests = [text for text, side in sides.items() if side == "test"][:TESTS]
    heard = itertools.cycle(text for text, side in sides.items() if side == "train")
    short = sorted(text for text in sentences.phrases() if sentences.side_of(text) == "train")
    random.Random("m27-kokoro").shuffle(short)
    parts = itertools.cycle(short)
    texts = (next(parts) if place % 5 == 2 else next(heard) for place in range(COUNT))
    trains: list[tuple[str, str, Side]] = []
    for place, text in enumerate(texts):
        # One step more every round, or a text that comes again would come in its old voice.
        voice = TRAIN_VOICES[(place + place // len(TRAIN_VOICES)) % len(TRAIN_VOICES)]
        trains.append((text, voice, "train"))
    asked: list[tuple[str, str, Side]] = [
        (text, TEST_VOICES[place % len(TEST_VOICES)], "test") for place, text in enumerate(tests)
    ]
    half = TESTS // 2
    return list(dict.fromkeys(asked[:half] + trains[:1000] + asked[half:] + trains[1000:]))


def kept(text: str, voice: str) -> Path:
    """Where the FLAC file of one utterance lies, or would lie."""
    name = hashlib.sha256(f"kokoro-82m-1.0|{voice}|{text}".encode()).hexdigest()[:24]
    return cache_folder() / "generated" / "kokoro" / f"{name}.flac"


def render(part: int = 0, parts: int = 1, seconds: float = math.inf) -> int:
    """Make what is missing of the plan, every `parts`-th from `part` on; how many were made.

    Stops after `seconds`; a later call goes on. Raises SourceError without `onnxruntime`.
    """
    import soundfile

    end, made = time.monotonic() + seconds, 0
    for text, voice, _ in plan()[part::parts]:
        path = kept(text, voice)
        if path.is_file():
            continue
        if time.monotonic() > end:
            break
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        soundfile.write(temporary, speak(text, voice), RATE, format="FLAC", subtype="PCM_16")
        os.replace(temporary, path)
        made += 1
    return made


def items() -> Iterator[Item]:
    """Every utterance made so far of at most 3 s; `concept` and `text` are what is said.

    Raises SourceError where none has been made.
    """
    ready = [line for line in plan() if kept(line[0], line[1]).is_file()]
    if not ready:
        raise SourceError("kokoro: no speech made yet (python -m recipes.speech --minutes 30)")
    for text, voice, side in track(ready, "kokoro speech", len(ready)):
        audio = read_audio(kept(text, voice))
        if audio.size <= LONGEST * RATE:
            kind = "everyday" if len(text.split()) > 2 else "word"
            meta = {"split": side, "voice": voice, "own": False, "kind": kind}
            yield Item(f"{NAME}/{side}/{voice}/{text}", text, text, audio=audio, meta=meta)


def tests() -> list[Item]:
    """Held-out sentences in held-out voices, in the order of the plan: any beginning is fair."""
    return [item for item in on_side(items(), "test") if item.meta["kind"] == "everyday"]


def documents(split: Side, seed: int = 0) -> Iterator[Document]:
    """`transcribe`: natural speech → lower-case text; in training each clip also comes warped."""
    every: list[Item] = []
    for item in on_side(items(), split):
        every.append(item)
        draw = random.Random(f"warp:{item.key}")
        for copy in range(1, COPIES if split == "train" else 1):
            audio = warp(cast(Samples, item.audio), draw.uniform(0.87, 1.15))
            every.append(replace(item, key=f"{item.key}/{copy}", audio=audio))
    yield from spoken_documents(NAME, every, split, seed)
