"""A new picture style: pictograms in black on white, from captioned pictures in a folder.

    python -m examples.finetune.pictograms
    m27 finetune out/pictograms/train --direction draw --prompt "Draw a pictogram of {text}." \
        --val out/pictograms/test --epochs 2 --out out/finetune/pictograms
    python -m examples.finetune.pictograms --measure out/finetune/pictograms

The pictures are the high-contrast set of Microsoft's Fluent emoji (MIT; npm fluentui-emoji), of which the model
never saw one; it knows the things from emoji in colour. `--measure` draws things that were trained on, and as many
of which no pictogram was, with the base and with the adapter. The teacher of the picture codec says which of the
real pictograms a drawing is most like; a small classifier, whether it is made as a pictogram or as the base draws.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from m27.codec import media
from m27.data import registry
from m27.data.sources import emoji, fluent, rendered
from m27.data.sources.base import Item, SourceError, split, with_article
from m27.eval.score import wilson

THINGS = (
    "anchor", "trophy", "bicycle", "bus", "cactus", "camera", "carrot", "castle", "cherries", "crab", "crown",
    "whale", "elephant", "fish", "hammer", "house", "tent", "light bulb", "parrot", "pizza", "rocket",
    "snail", "sunflower", "violin",
)  # fmt: skip
# Things that the base draws in colour and of which no pictogram is trained on: is the manner learned, or a set?
NEW = (
    "airplane", "pineapple", "honeybee", "candle", "cat face", "dog face", "drum", "duck", "frog", "saxophone", "key",
    "lemon", "mushroom", "pear", "penguin", "rose", "sailboat", "scissors", "skateboard", "star", "strawberry",
    "trumpet", "shark", "umbrella",
)  # fmt: skip
GROUPS = ("activities", "animals-nature", "food-drink", "objects", "travel-places")
OUT = Path("out/pictograms")
PROMPT = "Draw a pictogram of {text}."


def items():
    """Every pictogram of a thing, as an `Item` whose picture is PNG bytes of 128 pixels on white."""
    folder = registry.fetch(fluent.PACKAGE) / "package/icons/high-contrast"
    known = {fluent.slug(str(entry["label"])): entry for entry in emoji.names().values()}
    for path in sorted(folder.glob("*.svg")):
        entry = known.get(path.stem.removesuffix("-default"))
        if entry is not None and entry["group"] in GROUPS:
            image = rendered.raster(path.read_text(encoding="utf-8"), 128, path.stem)
            name = str(entry["name"])
            meta = {"source": emoji.NAME}  # held out where the emoji is
            yield Item(f"pictograms/{path.stem}", emoji.concept_of(name), name, image, meta=meta)


def make(out: Path) -> None:
    """Write train/ and test/: a PNG and a .txt with its caption for each pictogram."""
    counts: Counter[str] = Counter()
    for item in items():
        side = split(item)
        if side == "dropped" or item.text in NEW:
            continue
        folder = out / side
        folder.mkdir(parents=True, exist_ok=True)
        name = item.key.rsplit("/", 1)[1]
        media.write_png(folder / f"{name}.png", media.read_image(item.image))
        (folder / f"{name}.txt").write_text(with_article(item.text) + "\n", encoding="utf-8")
        counts[side] += 1
    print(f"{out}: {counts['train']} pictograms to train on, {counts['test']} held out")


def manner(rgb: np.ndarray) -> np.ndarray:
    """How a picture is made, whatever it shows: colour, white, black, the greys between, and edges."""
    x = media.fit_image(rgb, 64, 64).astype(np.float32) / 255
    colour, light = x.max(2) - x.min(2), x.mean(2)
    steps = np.abs(np.diff(light, axis=0)).mean() + np.abs(np.diff(light, axis=1)).mean()
    shares = [(light > 0.9).mean(), (light < 0.3).mean(), ((light >= 0.3) & (light <= 0.9)).mean()]
    return np.array([colour.mean(), (colour > 0.15).mean(), *shares, 4 * steps], np.float32)


class Judge:
    """Which of the real pictograms `real` (one a thing) a drawing is most like, and whether it is made as they are.

    The first by the mean direction of a vision network's features, as `m27 eval` finds drawings again; the second
    is learned from `made`, pictograms, against `plain`, what the base draws when nobody asks for a pictogram.
    """

    def __init__(self, teacher, real: dict[str, np.ndarray], made: list[np.ndarray], plain: list[np.ndarray]) -> None:
        import torch

        self.teacher, self.names = teacher, list(real)
        self.real = teacher.features(list(real.values()))
        x = torch.tensor(np.array([*map(manner, made), *map(manner, plain)]))
        y = torch.tensor([1.0] * len(made) + [0.0] * len(plain))
        torch.manual_seed(0)
        self.made = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
        optimiser = torch.optim.AdamW(self.made.parameters(), lr=1e-2)
        for _ in range(300):
            optimiser.zero_grad()
            torch.nn.functional.binary_cross_entropy_with_logits(self.made(x)[:, 0], y).backward()
            optimiser.step()

    def marks(self, thing: str, pictures: list[np.ndarray]) -> list[tuple[bool, bool]]:
        """(it shows the thing, it is made as a pictogram) of each picture."""
        import torch

        from m27.eval.tasks.draw import nearest

        seen = self.teacher.features(pictures)
        found = nearest(seen, self.real, self.names, [self.names] * len(pictures))
        made = self.made(torch.tensor(np.array([*map(manner, pictures)])))[:, 0] > 0
        return [(name == thing, bool(as_one)) for name, as_one in zip(found, made, strict=True)]


def measure(folder: Path, model: str, each: int) -> None:
    """Draw `each` pictures of every thing before and after; write sheet.png and measured.json."""
    from m27.eval.teacher import Teacher
    from m27.infer.adapters import read_adapter
    from m27.infer.engine import Engine
    from m27.infer.request import Request

    engine = Engine.load(model)
    engine.add_adapter("pictograms", read_adapter(folder))

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

    pictograms = {item.text: media.read_image(item.image) for item in items()}
    real = {thing: pictograms[thing] for thing in (*THINGS, *NEW)}
    plain = drawn("Draw {text}.", None, first=1000)
    others = [rgb for thing, rgb in pictograms.items() if thing not in real]
    teacher = Teacher(engine.processor.image_codec)
    coded = teacher.reconstructed(list(real.values()))
    made = [*others, *teacher.reconstructed(others)]
    judge = Judge(teacher, real, made, [rgb for some in plain.values() for rgb in some])
    before, after = drawn(PROMPT, None), drawn(PROMPT, "pictograms")
    given = {
        "real pictograms, through the codec": {thing: [rgb] for thing, rgb in zip(real, coded, strict=True)},
        "base, asked for a drawing": plain,
        "base, asked for a pictogram": before,
        "with the adapter": after,
    }
    engine.close()
    rows = [np.concatenate([of[thing][0] for thing in things[:12]], axis=1)
            for things in (THINGS, NEW)
            for of in ({thing: [rgb] for thing, rgb in real.items()}, before, after)]  # fmt: skip
    media.write_png(folder / "sheet.png", np.concatenate(rows))
    measured = {}
    for name, pictures in given.items():
        for of, things in (("trained on", THINGS), ("not trained on", NEW)):
            marks = [mark for thing in things for mark in judge.marks(thing, pictures[thing])]
            for what, right in zip(("shows it", "as a pictogram"), zip(*marks, strict=True), strict=True):
                low, high = wilson(sum(right), len(right))
                measured[f"{name}, things {of}: {what}"] = {
                    "right": sum(right), "n": len(right), "interval": [round(low, 4), round(high, 4)],
                }  # fmt: skip
                print(f"{name}, things {of}: {what} {sum(right)} of {len(right)} ({low:.1%} to {high:.1%})")
    (folder / "measured.json").write_text(json.dumps(measured, indent=2) + "\n")


def main() -> int:
    """The command line; the exit status comes back."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--measure", type=Path, help="the adapter's folder")
    parser.add_argument("--model", default="weights/m27-nano")
    parser.add_argument("--each", type=int, default=4, help="pictures of each thing")
    given = parser.parse_args()
    try:
        if given.measure is not None:
            measure(given.measure, given.model, given.each)
        else:
            make(given.out)
    except (SourceError, registry.RegistryError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
