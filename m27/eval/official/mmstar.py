"""MMStar's parquet file (huggingface.co/datasets/Lin-Chen/MMStar) → samples.

The question holds its options and is asked as it stands, as in the paper's repository.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from m27.eval.official.sample import ask, need, picture, rows, sample
from m27.eval.samples import Sample


def samples(path: str | Path) -> Iterator[Sample]:
    """One a row. `about`: `category` and `l2_category`."""
    for where, row in rows(path):
        index, question, image, answer = need(row, ("index", "question", "image", "answer"), where)
        stored = image["bytes"] if isinstance(image, dict) else image
        about = {name: row.get(name) for name in ("category", "l2_category")}
        yield sample(str(index), ask(picture(stored), question), answer, about)
