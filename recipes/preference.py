"""Preferences on m27-nano, worked: of two drawings of one thing, the style that is wanted.

    python -m recipes.preference --out out/preference.json

Asked to draw an emoji, the model is to draw it as Fluent does and not as Noto does: pairs of pictures, so what is
learnt is on the output side. Everything but fresh adapters is frozen. Trains for some minutes, judges pairs of
held-out emoji before and after, and writes the figures. Other pairs are trained the same way: any shard whose
documents are pairs (see docs/train.md), with `styles()` changed by name.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from m27.codec.media import write_atomic
from m27.data import build as shards
from m27.data import messages as say
from m27.data.mixture import Corpus
from m27.data.prompts import ask
from m27.data.sources import emoji
from m27.data.sources.base import Document, Item, Side, of_split, with_article
from m27.language.processor import Processor
from m27.model import checkpoint
from m27.train.judge import judge, right
from m27.train.loop import Trainer, prepare_machine
from m27.train.lora import LoraConfig
from m27.train.optim import OptimConfig
from m27.train.pairs import PreferenceConfig
from m27.train.rows import FrozenRows
from m27.train.settings import DataConfig, SettingError, TrainConfig, change

CHOSEN, REJECTED = "fluent3d", "google"


def styles() -> TrainConfig:
    """DPO of fresh adapters for three epochs of 160 pairs, some minutes on one core.

    A picture's codes are scored among pictures' codes, as the engine draws them.
    """
    return TrainConfig(
        "preference", steps=60, seed=27, rows="frozen", sample_minutes=0.0, objective="preference",
        preference=PreferenceConfig(beta=0.1), lora=LoraConfig(rank=16, alpha=32),
        optim=OptimConfig(lr=2e-4, schedule="cosine", warmup=0.1),
        data=DataConfig(row=1280, rows=1, accumulate=1, pool=32, full_share=0.0),
    )  # fmt: skip


def documents(side: Side, seed: int, count: int) -> Iterator[Document]:
    """`count` pairs: the same emoji asked for in words, in the style that is wanted and in the other."""
    drawn: dict[str, dict[str, Item]] = {}
    for item in of_split(emoji.items(), side):
        if not item.meta["tone"]:
            drawn.setdefault(item.text, {})[item.meta["style"]] = item
    both = [name for name, found in sorted(drawn.items()) if {CHOSEN, REJECTED} <= found.keys()]
    for name in say.shuffled(both, seed)[:count]:
        rng = random.Random(f"{seed}:{name}") if side == "train" else None
        wish = say.words(ask("draw", rng, text=f"an emoji of {with_article(name)}"))
        one, other = (say.turn([wish], [say.picture(drawn[name][s])]) for s in (CHOSEN, REJECTED))
        yield {**say.document(name, "preference", emoji.NAME, one), "branches": [other]}


def pairs(folder: Path, processor: Processor, side: Side, count: int) -> Corpus:
    """The shard of `count` pairs, built unless it is there. Raises ShardError."""
    if not shards.is_current(folder, processor):
        shards.build(documents(side, 27, count), processor, folder)
    return Corpus([folder])


def run(model: Path, folder: Path, config: TrainConfig, train: int, test: int) -> dict[str, Any]:
    """Train on `train` pairs and judge `test` held-out ones before and after; what is found, as JSON values.

    Where the folder has shards already, of those the first `test`.
    """
    device, dtype = prepare_machine(config)
    processor = Processor.load(model)
    corpus = pairs(folder / "shards" / "train", processor, "train", train)
    held_out = pairs(folder / "shards" / "test", processor, "test", test)
    decoder = checkpoint.load(model, device=device).requires_grad_(False)
    rows = FrozenRows(decoder.model.embed_tokens.weight, dtype)
    trainer = Trainer(config, decoder, rows, corpus, folder / "run")
    figures: dict[str, Any] = {
        "chosen": CHOSEN, "rejected": REJECTED, "train": len(corpus), "held_out": min(len(held_out), test),
        "threads": torch.get_num_threads(), "dtype": str(dtype).removeprefix("torch."),
    }  # fmt: skip
    for when in ("before", "after"):
        if when == "after":
            result = trainer.run()
            figures |= {"steps": result.step, "tokens": result.tokens, "seconds": round(result.seconds, 1)}
        found = judge(trainer, held_out, test)
        reward, likelier = right(found)
        odds = (found[:, 2] - found[:, 3]).mean()
        figures[when] = {
            "accuracy": str(reward), "likelier": str(likelier), "log_odds": round(float(odds), 3),
        }  # fmt: skip
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit status comes back."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=Path("weights/m27-nano"))
    parser.add_argument("--folder", type=Path, default=Path("runs/preference"))
    parser.add_argument("--train", type=int, default=160, help="pairs to learn from")
    parser.add_argument("--test", type=int, default=100, help="held-out pairs to judge")
    parser.add_argument("--out", type=Path, help="where the figures go, as JSON")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="of TrainConfig")
    given = parser.parse_args(arguments)
    try:
        config = change(styles(), dict(part.partition("=")[::2] for part in given.set))
        figures = run(given.model, given.folder, config, given.train, given.test)
    except (SettingError, shards.ShardError, checkpoint.CheckpointError) as error:
        print(error, file=sys.stderr)
        return 2
    text = json.dumps(figures, indent=2) + "\n"
    print(text, end="")
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(given.out, text.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
