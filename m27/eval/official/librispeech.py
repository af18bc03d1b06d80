"""LibriSpeech's folders (openslr.org/12: speaker/chapter/*.flac and *.trans.txt) → samples.

There is no official prompt; `PROMPT` is ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from m27.eval.official.sample import FormatError, ask, sample, sound
from m27.eval.samples import Sample

PROMPT = "Write down what is said."


def samples(path: str | Path, prompt: str = PROMPT) -> Iterator[Sample]:
    """One an utterance of a split's folder (`test-clean`); the answer is its transcript."""
    top = Path(path)
    files = sorted(top.rglob("*.trans.txt"))
    if not files:
        raise FormatError(f"{top}: no *.trans.txt here")
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            name, _, text = line.strip().partition(" ")
            if not name:
                continue
            audio = file.with_name(f"{name}.flac")
            if not text or not audio.is_file():
                lack = f"no {audio.name} beside it" if text else "no text"
                raise FormatError(f"{file}:{number}: {name}: {lack}")
            yield sample(name, ask(sound(audio), prompt), text, {"speaker": name.split("-")[0]})
