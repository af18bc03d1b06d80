"""What the shards of a run hold and how often it went through them, as JSON for the model card.

    python -m recipes.census --out out/census.json

Counts documents and tokens by medium of every source and task (`m27.data.census`), adds each source's licence,
and the epochs that the runs of the stages drew of each task, together.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from m27.codec.media import write_atomic
from m27.data import catalogue
from m27.data.build import ShardError
from m27.data.census import Row, by_task, census
from m27.train import checkpoint
from recipes.lease_day import FIRST_COPY
from recipes.stages import STAGES, joint

ALTERED = ", altered"

# Sources whose documents are made of other sources' items.
MADE = {
    "scenes": "as its cut-outs: emoji, fluent, stamps, openclipart",
    "asked": "as easy_vqa, scenes and instruments",
    "books": "CC-BY 3.0, credits a story (African Storybook)",
    "triples": "as stamps",
    "made_books": "as its cut-outs, see scenes",
    "languages": "names of emojibase MIT, of stamps GPL-2; pictures as emoji and stamps",
    "heard_pictures": "as environment and its pictures",
    "soundscapes": "as its sounds",
    "replay": "made by the base itself, Apache-2.0",
}


def source_of(folder: str) -> str:
    """The source of a shard: parts (emoji-1) are the source's, altered copies (emoji-100) stand by themselves."""
    name, _, number = folder.rpartition("-")
    if not number.isdigit():
        return folder
    return name if int(number) < FIRST_COPY else name + ALTERED


def licence(source: str) -> str:
    """A source's licence as its module says it; "–" where none does."""
    source = source.removesuffix(ALTERED)
    if source in MADE:
        return MADE[source]
    module = catalogue.EVERY.get(source)
    found = getattr(importlib.import_module(module), "LICENCE", None) if module else None
    return str(found or "–")


def by_source(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One record a source, its tasks summed, with its licence."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        source = source_of(row.source)
        sums = found.setdefault(source, defaultdict(int, source=source))
        for key in ("documents", "text", "image", "audio", "targets"):
            sums[key] += getattr(row, key)
    return [dict(sums) | {"licence": licence(name)} for name, sums in found.items()]


def drawn(runs: Path, names: Sequence[str]) -> dict[str, int]:
    """Tokens of each task that the newest snapshots of some runs had drawn, together."""
    tokens: dict[str, int] = defaultdict(int)
    for name in names:
        steps = checkpoint.steps(runs / name)
        if steps:
            state = json.loads((steps[-1][1] / "state.json").read_text(encoding="utf-8"))
            for task, count in state["loader"]["mixture"]["drawn"].items():
                tokens[task] += int(count)
    return dict(tokens)


def report(shards: Path, tokens: Mapping[str, int]) -> dict[str, Any]:
    """The whole census of the shards below a folder, given how many tokens of each task were drawn."""
    folders = sorted(path.parent for path in shards.glob("*/meta.json"))
    rows = census(folders)
    tasks = [
        asdict(row) | {"epochs": round(tokens.get(row.task, 0) / max(row.tokens, 1), 3)}
        for row in by_task(rows)
    ]
    return {"sources": by_source(rows), "tasks": tasks, "drawn": sum(tokens.values())}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit status comes back: 2 with one line where there are no whole shards."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    recipe = joint()
    parser.add_argument("--shards", type=Path, default=recipe.shards)
    parser.add_argument("--runs", type=Path, default=recipe.runs)
    parser.add_argument("--out", type=Path, default=Path("out/census.json"))
    given = parser.parse_args(arguments)
    names = [stage().train.name for stage in STAGES.values()]
    try:
        if not any(given.shards.glob("*/meta.json")):
            raise ShardError(f"{given.shards}: no shards; `python -m recipes.nano --stage build`")
        made = report(given.shards, drawn(given.runs, names))
    except (ShardError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(given.out, (json.dumps(made, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
