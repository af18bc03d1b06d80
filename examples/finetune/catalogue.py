"""A catalogue: shop photographs to JSON records, from one LLaVA-style file.

    python -m examples.finetune.catalogue
    m27 finetune out/catalogue/train.json --val out/catalogue/test.json --epochs 2 \
        --answers 120 --out out/finetune/catalogue

The photographs are the Grocery Store data set (MIT; Klasson et al. 2019): six of each of 81 products to train
on, and 120 of its test file. A record is {"kind", "aisle", "product"}. `m27 finetune` says itself how many records
are JSON and how many fields are right; `--measure` adds what the base knows when it is asked in its own way, and
what always writing the commonest value gives.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

from m27.codec import media
from m27.data.messages import shuffled
from m27.data.sources import grocery
from m27.data.sources.base import split
from m27.eval.score import normalise, wilson

OUT = Path("out/catalogue")
EACH, TEST = 6, 120
QUESTION = "What is this? Write the catalogue entry."
FRUIT = set(
    "apple avocado banana kiwi lemon lime mango melon nectarine orange papaya peach pear pineapple plum "
    "pomegranate satsuma".split()
) | {"passion fruit", "red grapefruit"}
SHELF = {"juice": "juice", "soy milk": "plant-based", "oat milk": "plant-based",
         "soyghurt": "plant-based", "oatghurt": "plant-based", "milk": "dairy", "yoghurt": "dairy",
         "sour cream": "dairy", "sour milk": "dairy"}  # fmt: skip


def entry(item) -> dict[str, str]:
    """The catalogue's entry of a photograph."""
    kind = item.text
    aisle = SHELF.get(kind, "fruit" if kind in FRUIT else "vegetables")
    # From what is plain to see to what is not: a field is written with those before it in view, so an error
    # in the product would carry over into the kind.
    return {"kind": kind, "aisle": aisle, "product": item.meta["name"]}


def make(out: Path) -> None:
    """Write train.json, test.json and the photographs that they name."""
    sides = {"train": [], "test": []}
    seen: Counter[str] = Counter()
    for item in shuffled(grocery.items(), 0):
        side = split(item)
        if side not in sides:
            continue
        if side == "train" and seen[item.meta["name"]] == EACH:
            continue
        if side == "test" and len(sides["test"]) == TEST:
            continue
        seen[item.meta["name"]] += side == "train"
        name = f"photos/{item.key.replace('/', '-')}.png"
        rgb = media.fit_image(media.middle(media.read_image(item.image)), 128, 128)
        (out / "photos").mkdir(parents=True, exist_ok=True)
        media.write_png(out / name, rgb)
        turns = [
            {"from": "human", "value": f"<image>\n{QUESTION}"},
            {"from": "gpt", "value": json.dumps(entry(item))},
        ]
        sides[side].append({"id": item.key, "image": name, "conversations": turns})
    for side, records in sides.items():
        (out / f"{side}.json").write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    print(f"{out}: {len(sides['train'])} photographs to train on, {len(sides['test'])} held out")


def measure(folder: Path, out: Path, model: str) -> None:
    """How often the base names the kind when it is asked "What is this?"; write measured.json."""
    from m27.eval.tuned import Question, answers
    from m27.infer.engine import Engine

    records = json.loads((out / "test.json").read_text(encoding="utf-8"))
    kinds = [json.loads(r["conversations"][1]["value"])["kind"] for r in records]
    questions = [
        Question(
            record["id"],
            [{"role": "user", "content": [{"type": "image", "path": str(out / record["image"])},
                                          {"type": "text", "text": "What is this?"}]}],
            kind,
        )
        for record, kind in zip(records, kinds, strict=True)
    ]  # fmt: skip
    engine = Engine.load(model)
    given = answers(engine, questions, None, 16)
    engine.close()
    right = sum(normalise(a) == normalise(k) for a, k in zip(given, kinds, strict=True))
    low, high = wilson(right, len(kinds))
    print(f"the base, asked what this is, names the kind of {right} of {len(kinds)} ({low:.1%} to {high:.1%})")
    measured = {"kind named by the base": {"right": right, "n": len(kinds), "interval": [low, high]}}
    entries = {
        side: [
            json.loads(r["conversations"][1]["value"])
            for r in json.loads((out / f"{side}.json").read_text(encoding="utf-8"))
        ]
        for side in ("train", "test")
    }
    for field in ("kind", "aisle", "product"):
        always = Counter(entry[field] for entry in entries["train"]).most_common(1)[0][0]
        right = sum(entry[field] == always for entry in entries["test"])
        low, high = wilson(right, len(kinds))
        print(f"{field}: always {always!r} is right in {right} of {len(kinds)} ({low:.1%} to {high:.1%})")
        measured[f"{field}, always the commonest"] = {"right": right, "n": len(kinds), "interval": [low, high]}
    (folder / "measured.json").write_text(json.dumps(measured, indent=2) + "\n")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--measure", type=Path, help="the adapter's folder")
    parser.add_argument("--model", default="weights/m27-nano")
    given = parser.parse_args()
    if given.measure is not None:
        measure(given.measure, given.out, given.model)
    else:
        make(given.out)


if __name__ == "__main__":
    main()
