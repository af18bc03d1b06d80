"""Measures an audio codec on held-out sounds: ``python -m recipes.audio_report [--codec DIR]
[--out FILE]`` → JSON.

Log-mel distance and codebook use by source, linear probes on frozen codes against the same on
mel, Whisper-base's word error rate on originals and reconstructions, speed. It lives here and
not in ``train``, which may not import ``eval``.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from m27.codec.audio import FILE, HOP, AudioCodec
from m27.codec.media import write_wav
from m27.codec.mel import acoustic_log_mel, pitch_hz, pitch_salience, pitch_track
from m27.data.sources.base import Item, Side
from m27.data.sources.sounds import sounds
from m27.eval.whisper import transcribe, word_error_rate
from m27.train.audio_codec import perplexity

SPOKEN = ("speech", "asterisk", "spoken-orders", "spoken-words", "spoken-digits")


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


def distance(one_BT: Tensor, two_BT: Tensor) -> float:
    """Mean difference of log-mel in dB (96 bands, 12.5 ms, floor -70 dB of full scale)."""
    return float((acoustic_log_mel(one_BT) - acoustic_log_mel(two_BT)).abs().mean()) / 0.75 * 30


def pitch_agreement(one_BT: Tensor, two_BT: Tensor) -> tuple[int, int]:
    """Frames voiced in both, and those of them whose pitch agrees within half a semitone."""
    tracks = [pitch_track(pitch_salience(wave)) for wave in (one_BT, two_BT)]
    both = tracks[0][1] & tracks[1][1]
    near = (pitch_hz(tracks[0][0]) / pitch_hz(tracks[1][0])).log2().abs() < 1 / 24
    return int(both.sum()), int((both & near).sum())


def segments(features_ND: Tensor, parts: int = 8) -> Tensor:
    """Means over ``parts`` equal stretches of time, side by side: ``[parts * D]``."""
    return F.adaptive_avg_pool1d(features_ND.T[None], parts)[0].T.flatten()


def probe(train_X: Tensor, train_y: Tensor, test_X: Tensor, test_y: Tensor) -> float:
    """Accuracy of multinomial logistic regression on standardised features (L2 1e-2, LBFGS)."""
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
    return float(((test_X @ weight + bias).argmax(-1) == test_y).float().mean().detach())


def label(item: Item) -> str:
    """What a probe must tell: the word, or the instrument's name without its pitch."""
    return str(item.meta.get("instrument", item.concept))


def probes(codec: AudioCodec, source: str, count: int) -> dict[str, float]:
    """Linear probe accuracy on codes (one-hot digits) and on mel, both as means over eighths of
    the sound."""
    features: dict[str, Tensor] = {}
    labels: dict[str, list[str]] = {}
    sides: tuple[Side, Side] = ("train", "test")
    for side in sides:
        codes_X: list[Tensor] = []
        mel_X: list[Tensor] = []
        labels[side] = []
        for item in chosen(side, count, [source]):
            wave = wave_of(item, 2.0)
            digits = codec.quantizer.digits(codec.encode(wave)[0])
            hot = torch.cat([F.one_hot(digits[:, i], n) for i, n in enumerate(codec.levels)], -1)
            codes_X.append(segments(hot.float()))
            mel_X.append(segments(acoustic_log_mel(wave)[0]))
            labels[side].append(label(item))
        features[side + "codes"], features[side + "mel"] = torch.stack(codes_X), torch.stack(mel_X)
    names = sorted(set(labels["train"]))
    kept = [i for i, name in enumerate(labels["test"]) if name in names]
    y = [torch.tensor([names.index(n) for n in labels["train"]])]
    y.append(torch.tensor([names.index(labels["test"][i]) for i in kept]))
    common = collections.Counter(labels["test"]).most_common(1)[0][1] / len(labels["test"])
    rows = {
        kind: round(probe(features["train" + kind], y[0], features["test" + kind][kept], y[1]), 4)
        for kind in ("codes", "mel")
    }
    return {**rows, "classes": len(names), "tested": len(kept), "most_frequent": round(common, 4)}


@torch.no_grad()
def reconstruction(
    codec: AudioCodec, items: list[Item], hear: int, folder: Path | None
) -> dict[str, Any]:
    """Distances, pitch, code use and word error rates by source, from one pass over the items."""
    rows: dict[str, dict[str, Any]] = {}
    every: list[Tensor] = []
    spent = {"encode": 0.0, "decode": 0.0}
    seconds = 0.0
    for source, group in itertools.groupby(items, key=lambda item: item.source):
        mel: list[float] = []
        codes: list[Tensor] = []
        pitch = [0, 0]
        words: dict[str, list[tuple[str, str]]] = {"original": [], "codec": []}
        for number, item in enumerate(group):
            wave = wave_of(item)
            began = time.perf_counter()
            found = codec.encode(wave)
            middle = time.perf_counter()
            back = codec.decode(found)
            spent["encode"] += middle - began
            spent["decode"] += time.perf_counter() - middle
            seconds += wave.shape[1] / 16_000
            mel.append(distance(wave, back))
            codes.append(found.flatten())
            both, near = pitch_agreement(wave, back)
            pitch = [pitch[0] + both, pitch[1] + near]
            if folder is not None and number < 3:
                stem = f"{source}-{number}"
                write_wav(folder / f"{stem}-original.wav", wave[0].numpy())
                write_wav(folder / f"{stem}-codec.wav", back[0].numpy())
            if source in SPOKEN and number < hear:
                heard = transcribe(wave[0].numpy())
                # orders and prompts have no transcript: what Whisper hears in the original stands in
                truth = item.text if source not in ("spoken-orders", "asterisk") else heard
                words["original"].append((truth, heard))
                words["codec"].append((truth, transcribe(back[0].numpy())))
        joined = torch.cat(codes)
        every.append(joined)
        rows[source] = {
            "sounds": len(mel),
            "log_mel_distance_db": round(float(np.mean(mel)), 3),
            "perplexity": round(perplexity(joined, codec.codebook_size), 1),
            "pitch_within_half_semitone": round(pitch[1] / max(pitch[0], 1), 4),
        }
        if words["codec"]:
            rows[source]["wer"] = {k: round(word_error_rate(v), 4) for k, v in words.items()}
            rows[source]["heard"] = [(t, h) for t, h in words["codec"][:6]]
        print(source, json.dumps(rows[source]), file=sys.stderr, flush=True)
    joined = torch.cat(every)
    return {
        "by_source": rows,
        "codes": len(joined),
        "perplexity": round(perplexity(joined, codec.codebook_size), 1),
        "codes_used": int(joined.unique().numel()),
        "times_real_time": {k: round(seconds / v, 1) for k, v in spent.items()},
    }


def report(
    folder: Path, count: int, hear: int, probed: int, samples: Path | None = None
) -> dict[str, Any]:
    """The whole report on the codec in ``folder`` as one JSON-able dictionary."""
    codec = AudioCodec.load(folder)
    made = reconstruction(codec, chosen("test", count), hear, samples)
    return {
        "revision": codec.revision,
        "bytes": (folder / FILE).stat().st_size,
        "parameters": sum(p.numel() for p in codec.parameters()),
        "threads": torch.get_num_threads(),
        **made,
        "probe": {name: probes(codec, name, probed) for name in ("spoken-words", "instruments")},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, write the report, print it."""
    parser = argparse.ArgumentParser(description="Measure the audio codec on held-out sounds.")
    parser.add_argument("--codec", type=Path, default=Path(".cache/codecs"))
    parser.add_argument("--out", type=Path, default=Path("runs/audio-codec/report.json"))
    parser.add_argument("--count", type=int, default=80, help="sounds a source")
    parser.add_argument("--hear", type=int, default=60, help="of them transcribed")
    parser.add_argument("--probed", type=int, default=1000, help="sounds a side for the probes")
    parser.add_argument("--samples", type=Path, help="folder for some sounds, original and decoded")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    if given.samples is not None:
        given.samples.mkdir(parents=True, exist_ok=True)
    made = report(given.codec, given.count, given.hear, given.probed, given.samples)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    partial = given.out.with_suffix(".partial")
    partial.write_text(json.dumps(made, indent=1))
    os.replace(partial, given.out)
    print(json.dumps(made))


if __name__ == "__main__":
    main()
