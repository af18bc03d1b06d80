"""What the teacher and the captions are worth: ``python -m recipes.audio_ablation --steps 400``.

Three codecs from the same seed on the same batches, trained with reconstruction alone, with the
teacher's units, and with units and captions. Reports what the codes say (linear probes) and what
comes back as sound, with 95 % intervals, as JSON and as a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from m27.codec.audio import AudioCodec
from m27.data.sources.base import Item
from m27.eval.score import wilson
from m27.eval.whisper import transcribe, word_error_rate
from m27.train.audio_codec import AudioTraining, train
from m27.train.audio_losses import LossWeights
from recipes.audio_codec import ready
from recipes.audio_probes import Ear, chosen, probes, wave_of
from recipes.audio_report import distance, pitch_agreement

VARIANTS: dict[str, LossWeights] = {
    "no teacher": LossWeights(semantic=0.0, context=0.0, captions=0.0),
    "teacher": LossWeights(captions=0.0),
    "teacher and captions": LossWeights(),
}
HEARD = ("spoken-orders", "spoken-words", "spoken-digits", "esc10", "instruments", "speech")


@torch.no_grad()
def sound(codec: AudioCodec, items: Sequence[Item], ear: Ear, hear: int) -> dict[str, Any]:
    """Log-mel distance in dB with its interval, agreement in pitch, and the word error rate of the
    first ``hear`` orders against what Whisper hears in the originals."""
    apart: list[float] = []
    both = near = 0
    words: list[tuple[str, str]] = []
    for item in items:
        wave = wave_of(item, 4.0)
        back = codec.decode(ear.codes(codec, item, 4.0)[None])
        apart.append(distance(wave, back))
        voiced, right = pitch_agreement(wave, back)
        both, near = both + voiced, near + right
        if item.source == "spoken-orders" and len(words) < hear:
            words.append((transcribe(wave[0].numpy()), transcribe(back[0].numpy())))
    half = 1.96 * float(np.std(apart)) / max(len(apart), 1) ** 0.5
    mean = float(np.mean(apart))
    made: dict[str, Any] = {
        "sounds": len(apart),
        "log_mel_distance_db": [round(x, 3) for x in (mean, mean - half, mean + half)],
        "pitch_within_half_semitone": [round(near / max(both, 1), 4)]
        + [round(x, 4) for x in wilson(near, both)],
    }
    if words:
        made["wer_orders"] = round(word_error_rate(words), 4)
        made["orders_heard"] = len(words)
    return made


def ablation(recipe: AudioTraining, count: int, probed: int, hear: int) -> dict[str, Any]:
    """Train and measure every variant; its run is ``recipe.run/<variant>`` and resumes."""
    items = chosen("test", count, HEARD)
    ear = Ear()
    results: dict[str, Any] = {}
    for name, weights in VARIANTS.items():
        run = str(Path(recipe.run) / name.replace(" ", "-"))
        file = train(replace(recipe, weights=weights, run=run, out=run))
        codec = AudioCodec.load(file.parent)
        results[name] = {
            "revision": codec.revision,
            **sound(codec, items, ear, hear),
            "probes": probes(codec, probed, mel=False, ear=ear),
        }
        print(json.dumps({name: results[name]}), flush=True)
    return {
        "steps": recipe.steps,
        "batch": recipe.batch,
        "codes": recipe.codes,
        "seed": recipe.seed,
        "variants": results,
    }


def table(made: dict[str, Any]) -> str:
    """The results as a Markdown table, one column a variant, intervals in brackets."""
    variants = made["variants"]
    rows = [["", *variants], ["---"] * (len(variants) + 1)]

    def cell(found: Sequence[float], unit: str) -> str:
        value, low, high = found
        if unit == "%":
            return f"{100 * value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
        return f"{value:.2f} [{low:.2f}, {high:.2f}]"

    for label, key, unit in (
        ("log-mel distance, dB", "log_mel_distance_db", "dB"),
        ("pitch within half a semitone", "pitch_within_half_semitone", "%"),
    ):
        rows.append([label, *(cell(v[key], unit) for v in variants.values())])
    if all("wer_orders" in v for v in variants.values()):
        rows.append(["WER, spoken orders", *(f"{v['wer_orders']:.2f}" for v in variants.values())])
    for name in next(iter(variants.values()))["probes"]:
        scores = [v["probes"][name]["codes"] for v in variants.values()]
        cells = [cell([score["accuracy"], *score["interval"]], "%") for score in scores]
        rows.append([f"probe: {name} of {scores[0]['classes']}", *cells])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, train, measure, write ``<out>.json`` and ``<out>.md``."""
    parser = argparse.ArgumentParser(description="Ablation of the audio codec's training.")
    parser.add_argument("--steps", type=int, default=400, help="of each variant")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--codes", type=int, default=64, help="of a crop")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--corpus", default=AudioTraining.corpus)
    parser.add_argument("--run", default="runs/audio-ablation")
    parser.add_argument("--out", type=Path, default=Path("runs/audio-ablation/result"))
    parser.add_argument("--count", type=int, default=40, help="sounds a source that are decoded")
    parser.add_argument("--probed", type=int, default=600, help="sounds a source and side")
    parser.add_argument("--hear", type=int, default=20, help="orders that are transcribed")
    given = vars(parser.parse_args(arguments))
    out, count, probed, hear = (given.pop(k) for k in ("out", "count", "probed", "hear"))
    recipe = AudioTraining(**given)
    ready(recipe)
    made = ablation(recipe, count, probed, hear)
    out.parent.mkdir(parents=True, exist_ok=True)
    for suffix, text in ((".json", json.dumps(made, indent=1)), (".md", table(made))):
        partial = out.with_suffix(suffix + ".partial")
        partial.write_text(text)
        os.replace(partial, out.with_suffix(suffix))
    print(table(made))


if __name__ == "__main__":
    main()
