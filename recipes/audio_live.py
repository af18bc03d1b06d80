"""The audio codec on a GPU, all at once from carried sounds, in one command.

    python -m recipes.audio_live --corpus corpora --begin weights/m27-nano/audio_codec.safetensors --minutes 4

`--corpus` is the folder that `recipes.codec_corpora` wrote. Goes on where an earlier call of the same `--run` stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from m27.codec.audio import AudioCodec
from m27.train.audio_codec import work
from m27.train.audio_hearing import TEACHER, load_teacher
from m27.train.audio_live import SHARES, LiveCorpus, LiveTrainer, LiveTraining
from recipes import codec_corpora
from recipes.audio_codec import until


def open_trainer(recipe: LiveTraining, workers: int = 8) -> LiveTrainer:
    """The trainer of a recipe over the carried corpus."""
    config = AudioCodec.load(Path(recipe.begin).parent, name=Path(recipe.begin).name).config
    teacher = load_teacher(Path(recipe.teacher), config)
    clips = codec_corpora.read_sounds(Path(recipe.corpus) / "sounds", workers)
    corpus = LiveCorpus(clips, SHARES, recipe.device, recipe.seed)
    return LiveTrainer(recipe, corpus, teacher)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit status comes back."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--corpus", required=True)
    parser.add_argument(
        "--begin", required=True, help="a codec's file: its ear, or with --shape 0 all"
    )
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--until", help="end at this time, HH:MM in UTC, instead")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--codes", type=int, help="codes a crop, 40 a second")
    parser.add_argument("--lr", type=float)
    parser.add_argument("--hearing", type=float, help="weight of what the teacher hears")
    parser.add_argument("--adversary-from", type=float, help="share of the run; 1: no adversary")
    parser.add_argument(
        "--shape", type=int, nargs="*",
        help="widths and depths of encoder, decoder and refiner, six numbers; 0: those of --begin",
    )  # fmt: skip
    parser.add_argument("--device")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--run")
    parser.add_argument("--out")
    given = {k: v for k, v in vars(parser.parse_args(arguments)).items() if v is not None}
    if "until" in given:
        given["minutes"] = until(given.pop("until"))
    if "shape" in given:
        shape = tuple(given["shape"])
        if shape != (0,) and len(shape) != 6:
            parser.error(f"--shape wants six numbers, or 0, not {len(shape)}")
        given["shape"] = () if shape == (0,) else shape
    given["teacher"] = str(Path(given["corpus"]) / TEACHER)
    print(work(open_trainer(LiveTraining(**given))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
