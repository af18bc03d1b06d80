"""Linear probes on the image codec's codes: what a single matrix can read from them.

Two kinds of features: one-hot digits at every place and their mean ("codes"), and the mean alone
("single codes"), which is what a small map of each code gives a language model at first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m27.codec.image import ImageCodec
from m27.codec.media import MediaError, fit_image, read_image
from m27.data.sources import cifar10, easy_vqa, emoji
from m27.data.sources.base import Item, Items, Side, of_split
from m27.eval.score import wilson
from m27.train.image_report import code_features, encode_all, pooled_digits, probe

RIDGES = (0.3, 3.0, 30.0, 100.0, 300.0, 1000.0)


def _word(place: int) -> Callable[[Item], str]:
    """The first or the last word of a text of two; "" where one is missing."""
    return lambda item: item.text.split()[place] if item.text.count(" ") == 1 else ""


# Name → the items of a source, the side in pixels at which they are read, and the label of one ("":
# left out).
PROBES: dict[str, tuple[Items, int, Callable[[Item], str]]] = {
    "cifar10": (cifar10.items, 32, lambda i: i.text if i.text in cifar10.CLASSES else ""),
    "easy_vqa colour": (easy_vqa.items, 128, _word(0)),
    "easy_vqa shape": (easy_vqa.items, 128, _word(1)),
    "emoji group": (emoji.items, 128, lambda i: str(i.meta["group"]) if i.image else ""),
}


def labelled(name: str, side: Side, count: int) -> tuple[NDArray[np.uint8], list[str]]:
    """Up to ``count`` pictures of a side and their labels, evenly spread over the source, uint8
    ``[N, S, S, 3]``."""
    items, pixels, label = PROBES[name]
    known = [(i, label(i)) for i in of_split(items(), side) if i.image is not None and label(i)]
    rgb, labels = [], []
    for at in np.unique(np.linspace(0, len(known) - 1, min(count, len(known))).astype(int)):
        item, word = known[at]
        try:
            rgb.append(fit_image(read_image(item.image or b""), pixels, pixels))
        except MediaError:
            continue
        labels.append(word)
    return np.stack(rgb), labels


def probes(codec: ImageCodec, train: int, test: int) -> dict[str, Any]:
    """Name → scores of "codes" and of "single codes": accuracy on held-out pictures, its 95 %
    interval, the number of classes; with the numbers of pictures and the most frequent class."""
    found: dict[str, Any] = {}
    for name in PROBES:
        sides = {"train": labelled(name, "train", train), "test": labelled(name, "test", test)}
        words = sorted({word for _, labels in sides.values() for word in labels})
        y = {s: torch.tensor([words.index(w) for w in labels]) for s, (_, labels) in sides.items()}
        codes = {s: encode_all(codec, rgb) for s, (rgb, _) in sides.items()}
        row: dict[str, Any] = {"train": len(y["train"]), "test": len(y["test"])}
        row["constant"] = round(float((y["test"] == y["train"].mode().values).float().mean()), 4)
        for kind, features in (("codes", code_features), ("single codes", pooled_digits)):
            x: dict[str, Tensor] = {s: features(codec, codes[s]) for s in sides}
            share = probe((x["train"], y["train"]), (x["test"], y["test"]), RIDGES)
            low, high = wilson(round(share * len(y["test"])), len(y["test"]))
            row[kind] = {
                "accuracy": round(share, 4),
                "interval": [round(low, 4), round(high, 4)],
                "classes": len(words),
            }
        found[name] = row
    return found
