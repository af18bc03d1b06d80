"""Measures an audio codec on held-out sounds: ``python -m recipes.audio_report [--codec DIR]
[--out FILE]`` → JSON.

Log-mel distance and codebook use by source, linear probes on frozen codes against the same on
mel, Whisper-base's word error rate on originals and reconstructions, speed. It lives here and
not in ``train``, which may not import ``eval``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from m27.codec.audio import FILE, AudioCodec
from m27.codec.media import write_wav
from m27.codec.mel import acoustic_log_mel, pitch_hz, pitch_salience, pitch_track
from m27.data.sources.base import Item
from m27.eval.whisper import transcribe, word_error_rate
from m27.train.audio_losses import perplexity
from recipes.audio_probes import chosen, probes, wave_of

SPOKEN = ("speech", "asterisk", "spoken-orders", "spoken-words", "spoken-digits")


def distance(one_BT: Tensor, two_BT: Tensor) -> float:
    """Mean difference of log-mel in dB (96 bands, 12.5 ms, floor -70 dB of full scale)."""
    return float((acoustic_log_mel(one_BT) - acoustic_log_mel(two_BT)).abs().mean()) / 0.75 * 30


def pitch_agreement(one_BT: Tensor, two_BT: Tensor) -> tuple[int, int]:
    """Frames voiced in both, and those of them whose pitch agrees within half a semitone."""
    tracks = [pitch_track(pitch_salience(wave)) for wave in (one_BT, two_BT)]
    both = tracks[0][1] & tracks[1][1]
    near = (pitch_hz(tracks[0][0]) / pitch_hz(tracks[1][0])).log2().abs() < 1 / 24
    return int(both.sum()), int((both & near).sum())


def timbre(one_BT: Tensor, two_BT: Tensor) -> float:
    """Difference in dB of the two sounds' mean spectra (96 mel bands, those within 60 dB of the
    loudest of the first), loudness set aside: what is left when time and level do not count."""
    one, two = (
        (10 ** ((acoustic_log_mel(wave)[0] / 0.75 - 1) * 3)).mean(0) for wave in (one_BT, two_BT)
    )
    heard = one > one.max() * 1e-6
    apart = 10 * (one / two.clamp_min(1e-9)).log10()[heard]
    return float((apart - apart.median()).abs().mean())


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
        tone: list[float] = []
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
            tone.append(timbre(wave, back))
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
            "log_mel_distance_error": round(float(np.std(mel) / len(mel) ** 0.5), 3),
            "timbre_error_db": round(float(np.mean(tone)), 3),
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
    file: Path,
    count: int,
    hear: int,
    probed: int,
    samples: Path | None = None,
    sources: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The whole report on a codec's file as one JSON-able dictionary; without probes where
    ``probed`` is 0."""
    codec = AudioCodec.load(file.parent, name=file.name)
    made = reconstruction(codec, chosen("test", count, sources), hear, samples)
    return {
        "revision": codec.revision,
        "codes_revision": codec.codes_revision,
        "vocoder": codec.config.vocoder,
        "bytes": file.stat().st_size,
        "parameters": sum(p.numel() for p in codec.parameters()),
        "threads": torch.get_num_threads(),
        **made,
        "probe": probes(codec, probed) if probed else {},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, write the report, print it."""
    parser = argparse.ArgumentParser(description="Measure the audio codec on held-out sounds.")
    parser.add_argument("--codec", type=Path, default=Path(".cache/codecs"), help="file or folder")
    parser.add_argument("--sources", nargs="*", help="of these alone")
    parser.add_argument("--out", type=Path, default=Path("runs/audio-codec/report.json"))
    parser.add_argument("--count", type=int, default=80, help="sounds a source")
    parser.add_argument("--hear", type=int, default=60, help="of them transcribed")
    parser.add_argument(
        "--probed", type=int, default=1000, help="sounds a side for probes; 0: none"
    )
    parser.add_argument("--samples", type=Path, help="folder for some sounds, original and decoded")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    if given.samples is not None:
        given.samples.mkdir(parents=True, exist_ok=True)
    file = given.codec / FILE if given.codec.is_dir() else given.codec
    made = report(file, given.count, given.hear, given.probed, given.samples, given.sources)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    partial = given.out.with_suffix(".partial")
    partial.write_text(json.dumps(made, indent=1))
    os.replace(partial, given.out)
    print(json.dumps(made))


if __name__ == "__main__":
    main()
