"""A spoken-command set: coffee orders by over fifty people, from recordings in a folder with a text beside each.

    python -m examples.finetune.orders
    m27 finetune out/orders/train --direction transcribe --prompt "What is ordered?" \
        --val out/orders/test --epochs 2 --answers 120 --out out/finetune/orders
    python -m examples.finetune.orders --measure out/finetune/orders

The recordings are the speech-to-intent benchmark of Picovoice (Apache-2.0), 499 to train on and 120 held out.
The text is what was ordered ("iced mocha, dark roast, double shot"), not a transcript. `--measure` counts how
many orders name the right drink, and how many of all details are right.
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


def measure(folder: Path) -> None:
    """Mark the answers that `m27 finetune` left in answers.jsonl; write measured.json."""
    lines = (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    drinks = Counter(details(row["answer"])[0] for row in rows)
    constant = drinks.most_common(1)[0][1]
    measured = {"best constant drink": {"right": constant, "n": len(rows)}}
    for when in ("before", "after"):
        right = sum(details(row["answer"])[0] == (details(row[when]) or [""])[0] for row in rows)
        shared = sum(
            len(set(details(row["answer"])) & set(details(row[when]))) for row in rows
        )
        asked = sum(len(set(details(row["answer"]))) for row in rows)
        given = sum(len(set(details(row[when]))) for row in rows)
        measured[f"drink {when}"] = {"right": right, "n": len(rows)}
        measured[f"details found {when}"] = {"right": shared, "n": asked}
        measured[f"details right {when}"] = {"right": shared, "n": given}
    for name, row in measured.items():
        low, high = wilson(row["right"], row["n"])
        row["interval"] = [low, high]
        print(f"{name}: {row['right']} of {row['n']} ({low:.1%} to {high:.1%})")
    (folder / "measured.json").write_text(json.dumps(measured, indent=2) + "\n")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--measure", type=Path, help="the adapter's folder")
    given = parser.parse_args()
    if given.measure is not None:
        measure(given.measure)
    else:
        make(given.out)


if __name__ == "__main__":
    main()
