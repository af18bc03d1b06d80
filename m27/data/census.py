"""What a mixture holds: documents and tokens by medium, of each source and each task of its shards.

    python -m m27.data.census .cache/shards/nano/*

prints it as the Markdown table of the model card. It reads shards; of a run it knows the epochs
that it is given.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from m27.data.mixture import Corpus

MEDIA = ("text", "image", "audio")


@dataclass(frozen=True)
class Row:
    """One source's documents of one task: how many, and their tokens by medium.

    `text` are words and the few control tokens between media, `targets` those that are learned.
    `epochs` is how often a run went through the task, None where no run is given.
    """

    source: str
    task: str
    documents: int
    text: int
    image: int
    audio: int
    targets: int
    epochs: float | None = None

    @property
    def tokens(self) -> int:
        """Tokens of all media."""
        return self.text + self.image + self.audio


def census(folders: Sequence[str | Path], epochs: Mapping[str, float] | None = None) -> list[Row]:
    """A row for every source (a shard's folder) and task, in the order of the folders.

    `epochs` gives task → times, as `Mixture.epochs` does. Raises ShardError for a broken shard.
    """
    rows = []
    for folder in map(Path, folders):
        corpus = Corpus([folder])
        v = corpus.meta["vocabulary"]
        ids = np.memmap(folder / "tokens.bin", dtype=np.uint32, mode="r")
        loss = np.memmap(folder / "loss.bin", dtype=np.uint8, mode="r")
        starts = np.load(folder / "index.npy")
        image, audio, targets = (
            _sums(flags, starts)
            for flags in (_between(ids, *v["image"]), _between(ids, *v["audio"]), loss)
        )
        for number, task in enumerate(corpus.tasks):
            chosen = corpus.task_of == number
            seen, heard = int(image[chosen].sum()), int(audio[chosen].sum())
            row = Row(
                source=folder.name, task=task, documents=int(chosen.sum()),
                text=int(corpus.lengths[chosen].sum()) - seen - heard, image=seen, audio=heard,
                targets=int(targets[chosen].sum()), epochs=(epochs or {}).get(task),
            )  # fmt: skip
            rows.append(row)
    return rows


def _between(ids: np.ndarray, begin: int, end: int) -> np.ndarray:
    return (ids >= begin) & (ids < end)


def _sums(flags: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Of each document, how many of its flags are set: int64 [documents]."""
    total = np.concatenate([[0], np.cumsum(flags, dtype=np.int64)])
    return np.diff(total[starts])


def by_task(rows: Sequence[Row]) -> list[Row]:
    """The rows with the sources of a task together, the largest task first."""
    found: dict[str, Row] = {}
    for row in rows:
        if row.task not in found:
            found[row.task] = row
            continue
        old = found[row.task]
        names = [*old.source.split(", "), row.source]
        sums = {
            key: getattr(old, key) + getattr(row, key) for key in ("documents", *MEDIA, "targets")
        }
        found[row.task] = replace(old, source=", ".join(dict.fromkeys(names)), **sums)
    return sorted(found.values(), key=lambda row: -row.tokens)


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table with their sum below; numbers in thousands of tokens."""
    head = ["task", "sources", "documents", "text", "image", "audio", "targets", "epochs"]
    lines = [head, ["---", "---", *["---:"] * 6]]
    for row in rows:
        counts = (row.text, row.image, row.audio, row.targets)
        epochs = "" if row.epochs is None else f"{row.epochs:.2f}"
        thousands = [_thousands(count) for count in counts]
        lines.append([row.task, row.source, f"{row.documents:,}", *thousands, epochs])
    sums = [sum(getattr(row, key) for row in rows) for key in ("text", "image", "audio", "targets")]
    documents = sum(row.documents for row in rows)
    lines.append(["all", "", f"{documents:,}", *map(_thousands, sums), ""])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _thousands(count: int) -> str:
    return f"{count / 1000:,.0f}k" if count >= 950 else str(count)


if __name__ == "__main__":
    print(markdown(by_task(census(sys.argv[1:]))))
