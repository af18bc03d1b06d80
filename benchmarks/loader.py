"""What the data side costs: packing on the nano mixture, the loader, and a user's records, by how many there are.

    python -m benchmarks.loader [--shards .cache/shards/whole]

Packing efficiency and the loader's tokens a second for each stage of `recipes.stages`, on the shards that it
trains on; opening shards and one epoch through them at 1, 4 and 16 times the documents; `check` and `split` on
1,000, 4,000 and 16,000 records of several formats. All in seconds of processor time of one thread, so that
other work on the machine counts little; costs are the best of their rounds, rates
the median of five. The slope is that of
cost against size on logarithmic axes: 1 is linear.
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import describe
from m27.codec import media
from m27.data import check
from m27.data.mixture import Corpus
from m27.data.split import split
from m27.train import feed
from recipes.stages import STAGES

# What the CPU trainer eats, tokens a second on two cores (issue of this benchmark), and how often the
# loader is to be able to feed it.
TRAINERS = {"full training": 300, "LoRA": 700}
TIMES, EFFICIENCY, SLOPE = 10, 0.98, 1.1
SIZES = (1, 4, 16)


def seconds(work: Callable[[], Any], rounds: int = 3) -> float:
    """The best of some rounds, in seconds of processor time."""
    spent = []
    for _ in range(rounds):
        begun = time.process_time()
        work()
        spent.append(time.process_time() - begun)
    return min(spent)


def slope(costs: dict[int, float]) -> float:
    """Of cost against size on logarithmic axes, over all sizes."""
    x, y = np.log(list(costs)), np.log(list(costs.values()))
    return float(np.polyfit(x, y, 1)[0])


def stage(name: str, corpus: Corpus, tokens: int) -> dict[str, float]:
    """Packing and speed of one stage's mixture over at least `tokens` tokens of rows."""
    config = STAGES[name]().train
    data = config.data
    rows = max(math.ceil(tokens / data.row), 200)
    packer = feed.packer(corpus, config, None)
    batches = iter(feed.loader(packer, config))
    rates, filled, places = [], 0, 0
    each = max(1, rows // (5 * data.rows * data.accumulate))
    for _ in range(5):
        begun = time.process_time()
        made = [batch for step, _ in islice(batches, each) for batch in step]
        spent = time.process_time() - begun
        tokens = sum(int((batch.documents_BT >= 0).sum()) for batch in made)
        filled, places = filled + tokens, places + sum(batch.ids_BT.numel() for batch in made)
        rates.append(tokens / spent)
    return {
        "row": data.row, "rows": packer.rows, "efficiency": filled / places,
        "tokens_s": sorted(rates)[2],
    }  # fmt: skip


def write_shard(folder: Path, documents: int, lengths: np.ndarray[Any, Any], meta: dict[str, Any]) -> None:
    """A shard of made-up ids, whose lengths are drawn from those of the real ones."""
    rng = np.random.default_rng(documents)
    index = np.concatenate([[0], np.cumsum(rng.choice(lengths, documents))]).astype(np.int64)
    folder.mkdir(parents=True)
    rng.integers(0, 40_000, index[-1], dtype=np.uint32).tofile(folder / "tokens.bin")
    (rng.random(index[-1]) < 0.3).astype(np.uint8).tofile(folder / "loss.bin")
    np.save(folder / "index.npy", index)
    np.save(folder / "tasks.npy", rng.integers(0, 4, documents).astype(np.uint16))
    tasks = {"tasks": ["a", "b", "c", "d"], "documents": documents, "tokens": int(index[-1])}
    (folder / "meta.json").write_text(json.dumps({**meta, **tasks}))


def growth(folder: Path, corpus: Corpus, documents: int) -> dict[str, Any]:
    """Seconds to open shards and to go once through them, by how many documents there are."""
    config = STAGES["joint"]().train
    data = replace(config.data, tasks=None, drop_prompt=(), row=1024)
    config = replace(config, data=data)
    given = json.loads((corpus.folders[0] / "meta.json").read_text())
    lengths = corpus.lengths[corpus.lengths <= data.row]
    opened, epoch = {}, {}
    for times in SIZES:
        count = times * documents
        where = folder / f"shard-{count}"
        write_shard(where, count, lengths, given)
        opened[count] = seconds(lambda where=where: feed.packer(Corpus([where]), config, None))

        def once(where: Path = where) -> None:
            packer = feed.packer(Corpus([where]), config, None)
            total = int(packer.mixture.corpus.lengths.sum())
            for _ in feed.loader(packer, config):
                if packer.filled >= total:
                    return

        epoch[count] = seconds(once, 2)
    return {"open": opened, "epoch": epoch, "slope": {"open": slope(opened), "epoch": slope(epoch)}}


def picture(number: int) -> bytes:
    """A small picture, another for each number."""
    rng = np.random.default_rng(number)
    return media.png_bytes(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8))


def write_messages(folder: Path, count: int) -> Path:
    """OpenAI's records, each with a picture in it."""
    path = folder / "messages.jsonl"
    with path.open("w") as file:
        for n in range(count):
            url = "data:image/png;base64," + base64.b64encode(picture(n)).decode()
            parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
            messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": f"thing {n}"}]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


def write_llava(folder: Path, count: int) -> Path:
    """One long JSON list, each record with a picture's path."""
    records = []
    for n in range(count):
        (folder / f"{n}.png").write_bytes(picture(n))
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": f"thing {n}"}]
        records.append({"id": n, "image": f"{n}.png", "conversations": turns})
    (folder / "llava.json").write_text(json.dumps(records, indent=1))
    return folder / "llava.json"


def write_pairs(folder: Path, count: int) -> Path:
    """A folder of pictures, a text beside each."""
    for n in range(count):
        (folder / f"{n}.png").write_bytes(picture(n))
        (folder / f"{n}.txt").write_text(f"A thing {n}.")
    return folder


def write_sounds(folder: Path, count: int) -> Path:
    """LJSpeech's table with a tenth of a second of sound a row."""
    (folder / "wavs").mkdir()
    sound = media.wav_bytes(np.linspace(-0.5, 0.5, 1600, dtype=np.float32))
    for n in range(count):
        (folder / "wavs" / f"{n}.wav").write_bytes(sound + n.to_bytes(8, "little"))
    rows = "".join(f"{n}|Number {n}|Number {n}\n" for n in range(count))
    (folder / "metadata.csv").write_text(rows)
    return folder / "metadata.csv"


FORMS: dict[str, Callable[[Path, int], Path]] = {
    "messages": write_messages, "llava": write_llava, "pictures": write_pairs, "sounds": write_sounds,
}  # fmt: skip


def records(folder: Path, base: int) -> dict[str, Any]:
    """Seconds of `check` (media opened) and of `split`, by format and by how many records there are."""
    out: dict[str, Any] = {}
    for form, write in FORMS.items():
        checked, parted = {}, {}
        for times in SIZES:
            count = times * base
            where = folder / f"{form}-{count}"
            where.mkdir(parents=True)
            path = write(where, count)
            checked[count] = seconds(lambda path=path: check.check(path), 2)
            documents, _ = check.usable(path, open_media=False)
            parted[count] = seconds(lambda documents=documents: split(documents), 2)
        out[form] = {
            "check": checked, "split": parted,
            "slope": {"check": slope(checked), "split": slope(parted)},
        }  # fmt: skip
    return out


def report(found: dict[str, Any]) -> bool:
    """Print the tables; whether every bar is met."""
    met = True

    def bar(value: bool) -> str:
        nonlocal met
        met = met and value
        return "" if value else "  MISSED"

    print(f"{'stage':<12}{'row':>6}{'packed':>9}{'tokens/s':>12}" + "".join(f"{t:>20}" for t in TRAINERS))
    for name, row in found["stages"].items():
        times = {t: row["tokens_s"] / rate for t, rate in TRAINERS.items()}
        good = row["efficiency"] >= EFFICIENCY and min(times.values()) >= TIMES
        print(
            f"{name:<12}{row['row']:>6}{row['efficiency']:>9.2%}{row['tokens_s']:>12,.0f}"
            + "".join(f"{f'{x:,.0f} x':>20}" for x in times.values()) + bar(good)
        )  # fmt: skip
    lines = {f"loader: {k}": (found["growth"][k], s) for k, s in found["growth"]["slope"].items()}
    for form, costs in found["records"].items():
        lines |= {f"{form}: {k}": (costs[k], s) for k, s in costs["slope"].items()}
    print(f"\n{'milliseconds per 1,000':<24}" + "".join(f"{f'{n} x':>10}" for n in SIZES) + f"{'slope':>9}")
    for name, (costs, exponent) in lines.items():
        cells = "".join(f"{1e6 * cost / int(count):>10,.1f}" for count, cost in costs.items())
        print(f"{name:<24}{cells}{exponent:>9.2f}" + bar(exponent <= SLOPE))
    return met


def main() -> None:
    """Measure, write the results and print them; exit status 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shards", type=Path, default=Path(".cache/shards/whole"))
    parser.add_argument("--tokens", type=int, default=1_000_000, help="of each stage's mixture")
    parser.add_argument("--documents", type=int, default=2_000, help="of the smallest shard that is made")
    parser.add_argument("--records", type=int, default=1_000, help="of the smallest file that is made")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/loader.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    folders = sorted(path.parent for path in options.shards.glob("*/meta.json"))
    corpus = Corpus(folders)
    with tempfile.TemporaryDirectory() as made:
        found = {
            "date": time.strftime("%Y-%m-%d"), "machine": describe(1),
            "shards": {"documents": len(corpus), "tokens": int(corpus.lengths.sum())},
            "stages": {name: stage(name, corpus, options.tokens) for name in STAGES},
            "growth": growth(Path(made) / "shards", corpus, options.documents),
            "records": records(Path(made) / "records", options.records),
        }  # fmt: skip
        media.write_atomic(options.out, (json.dumps(found, indent=2) + "\n").encode())
    print(f"{len(corpus):,} documents of {os.fspath(options.shards)}; one thread of {found['machine']['processor']}\n")
    raise SystemExit(0 if report(found) else 1)


if __name__ == "__main__":
    main()
