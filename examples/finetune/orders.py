"""A spoken-command set: coffee orders by over fifty people, from recordings in a folder with a text beside each.

    python -m examples.finetune.orders
    m27 finetune out/orders/train --direction transcribe --prompt "What is ordered?" \
        --val out/orders/test --full --lr 1.5e-4 --epochs 3 --answers 120 --out out/finetune/orders
    python -m examples.finetune.orders --measure out/finetune/orders

The recordings are the speech-to-intent benchmark of Picovoice (Apache-2.0), 499 to train on and 120 held out.
The text is what was ordered ("iced mocha, dark roast, double shot"), not a transcript. `--measure` counts how
many orders name the right drink, how many of all details are found and right, and what guessing would give.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

from m27.codec import media
from m27.data.sources import spoken_orders
from m27.eval.score import wilson

OUT = Path("out/orders")
ORDER = ("coffeeDrink", "roast", "size", "numberOfShots", "milkAmount", "sugarAmount")


def make(out: Path) -> None:
    """Write train/ and test/: a WAV and a .txt for each order."""
    counts: Counter[str] = Counter()
    for item in spoken_orders.items():
        side, slots = item.meta["split"], item.meta["slots"]
        folder = out / side
        folder.mkdir(parents=True, exist_ok=True)
        name = item.key.rsplit("/", 1)[1]
        media.write_wav(folder / f"{name}.wav", item.audio)
        text = ", ".join(slots[key] for key in ORDER if key in slots)
        (folder / f"{name}.txt").write_text(text + "\n", encoding="utf-8")
        counts[side] += 1
    print(f"{out}: {counts['train']} orders to train on, {counts['test']} held out")


def details(text: str) -> list[str]:
    """The parts of an order; the first is the drink."""
    return [part.strip() for part in text.lower().split(",") if part.strip()]


def measure(folder: Path, out: Path) -> None:
    """Mark the answers that `m27 finetune` left in answers.jsonl; write measured.json."""
    lines = (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    commonest = common(out / "train")
    measured = {}
    for when in ("always the commonest", "before", "after"):
        given = [commonest if when not in row else details(row[when]) for row in rows]
        asked = [details(row["answer"]) for row in rows]
        pairs = list(zip(asked, given, strict=True))
        shared = sum(len(set(a) & set(g)) for a, g in pairs)
        measured[f"drink, {when}"] = sum(a[0] == (g or [""])[0] for a, g in pairs), len(rows)
        measured[f"whole orders, {when}"] = sum(set(a) == set(g) for a, g in pairs), len(rows)
        measured[f"details found, {when}"] = shared, sum(len(set(a)) for a in asked)
        measured[f"details right, {when}"] = shared, max(1, sum(len(set(g)) for g in given))
    found = {}
    for name, (right, n) in measured.items():
        low, high = wilson(right, n)
        found[name] = {"right": right, "n": n, "interval": [round(low, 4), round(high, 4)]}
        print(f"{name}: {right} of {n} ({low:.1%} to {high:.1%})")
    (folder / "measured.json").write_text(json.dumps(found, indent=2) + "\n")


def common(folder: Path) -> list[str]:
    """The order that guesses best without listening: of drinks and of other details the commonest."""
    orders = [details(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.txt"))]
    drink = Counter(order[0] for order in orders).most_common(1)[0][0]
    return [drink, Counter(part for order in orders for part in order[1:]).most_common(1)[0][0]]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--measure", type=Path, help="the adapter's folder")
    given = parser.parse_args()
    if given.measure is not None:
        measure(given.measure, given.out)
    else:
        make(given.out)


if __name__ == "__main__":
    main()
