"""Linear probes on the audio codec's codes: what a single matrix can read from them, and from mel.

Features are one-hot digits of the codes (or log-mel), averaged over eighths of the sound: what a
small map of each code can give a language model, and no more.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from m27.codec.audio import HOP, AudioCodec
from m27.codec.mel import acoustic_log_mel
from m27.data.sources.base import Item, Side
from m27.data.sources.sounds import sounds
from m27.eval.score import wilson
from recipes.audio_notes import FAMILY


def instrument(item: Item) -> str:
    """The instrument's name without its pitch."""
    return str(item.meta.get("instrument", item.concept))


# Name → source and label of an item.
PROBES: dict[str, tuple[str, Callable[[Item], str]]] = {
    "spoken-words": ("spoken-words", lambda item: item.concept),
    "spoken-digits": ("spoken-digits", lambda item: item.concept),
    "instruments": ("instruments", instrument),
    "families": ("instruments", lambda item: FAMILY[instrument(item)]),
    "esc10": ("esc10", lambda item: item.concept),
}


def chosen(side: Side, count: int, sources: Iterable[str] | None = None) -> list[Item]:
    """Up to ``count`` items of each source, evenly spread over it."""
    by_source: dict[str, list[Item]] = collections.defaultdict(list)
    for item in sounds(side):
        if item.audio is not None and (sources is None or item.source in sources):
            by_source[item.source].append(item)
    return [
        items[i]
        for items in by_source.values()
        for i in np.unique(np.linspace(0, len(items) - 1, count).astype(int))
    ]


def wave_of(item: Item, seconds: float = 10.0) -> Tensor:
    """The item's samples ``[1, T]``, cut to ``seconds`` and padded to whole codes."""
    assert item.audio is not None
    wave = torch.from_numpy(np.array(item.audio[: int(seconds * 16_000)], np.float32))[None]
    return F.pad(wave, (0, -wave.shape[1] % HOP))


class Ear:
    """Codes of sounds, where several codecs share one ear: what it hears of an item is kept."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, float], tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def codes(self, codec: AudioCodec, item: Item, seconds: float = 10.0) -> Tensor:
        """Codes ``[N]`` of an item's first seconds."""
        key = (item.key, seconds)
        if key not in self._kept:
            wave = wave_of(item, seconds).to(next(codec.parameters()).device)
            self._kept[key] = codec.features(wave)
        return codec.quantizer(codec.encoder(*self._kept[key]))[1][0].cpu()


def segments(features_ND: Tensor, parts: int = 8) -> Tensor:
    """Means over ``parts`` equal stretches of time, side by side: ``[parts * D]``."""
    return F.adaptive_avg_pool1d(features_ND.T[None], parts)[0].T.flatten()


def one_hot_digits(codec: AudioCodec, codes_N: Tensor) -> Tensor:
    """Codes → their digits one-hot, side by side: ``[N, sum(levels)]``."""
    digits = codec.quantizer.digits(codes_N.to(codec.quantizer.tops.device)).cpu()
    hot = [F.one_hot(digits[:, i], n) for i, n in enumerate(codec.levels)]
    return torch.cat(hot, -1).float()


def probe(train_X: Tensor, train_y: Tensor, test_X: Tensor) -> Tensor:
    """Classes that multinomial logistic regression on standardised features (L2 1e-2, LBFGS) gives
    the test rows."""
    mean, scale = train_X.mean(0), train_X.std(0) + 1e-3
    train_X, test_X = (train_X - mean) / scale, (test_X - mean) / scale
    classes = int(train_y.max()) + 1
    weight = torch.zeros(train_X.shape[1], classes, requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(train_X @ weight + bias, train_y) + 1e-2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return (test_X @ weight + bias).argmax(-1).detach()


def score(train: list[tuple[str, Tensor]], test: list[tuple[str, Tensor]]) -> dict[str, Any]:
    """Accuracy of a probe with its 95 % interval, over test rows whose label was trained on."""
    names = sorted({name for name, _ in train})
    test = [row for row in test if row[0] in names]
    y = torch.tensor([names.index(name) for name, _ in test])
    guessed = probe(
        torch.stack([x for _, x in train]),
        torch.tensor([names.index(name) for name, _ in train]),
        torch.stack([x for _, x in test]),
    )
    right = int((guessed == y).sum())
    low, high = wilson(right, len(test))
    return {
        "accuracy": round(right / len(test), 4),
        "interval": [round(low, 4), round(high, 4)],
        "tested": len(test),
        "classes": len(names),
    }


def probes(
    codec: AudioCodec,
    count: int,
    names: Iterable[str] = tuple(PROBES),
    mel: bool = True,
    ear: Ear | None = None,
) -> dict[str, Any]:
    """Scores of the named probes on codes and, for comparison, on log-mel; ``count`` sounds of a
    source and side at most. An ``ear`` is given where the next codec shares it."""
    ear = ear or Ear()
    wanted = {name: PROBES[name] for name in names}
    made: dict[str, Any] = {}
    sides: tuple[Side, Side] = ("train", "test")
    for source in dict.fromkeys(source for source, _ in wanted.values()):
        rows: dict[str, dict[Side, list[tuple[Item, Tensor]]]] = {"codes": {}, "mel": {}}
        for side in sides:
            items = chosen(side, count, [source])
            codes = [segments(one_hot_digits(codec, ear.codes(codec, item, 2.0))) for item in items]
            rows["codes"][side] = list(zip(items, codes, strict=True))
            if mel:
                plain = [segments(acoustic_log_mel(wave_of(item, 2.0))[0]) for item in items]
                rows["mel"][side] = list(zip(items, plain, strict=True))
        for name, (its, label) in wanted.items():
            if its == source:
                made[name] = {
                    kind: score(*([(label(item), x) for item, x in found[side]] for side in sides))
                    for kind, found in rows.items()
                    if found
                }
    return made
