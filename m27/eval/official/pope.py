"""POPE's question files (AoiDragon/POPE, output/coco/*.json: an object a line) → samples.

The question is asked as it stands, as in the official repository.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from m27.eval.official.sample import FormatError, ask, need, picture, read_lines, sample
from m27.eval.samples import Sample


def samples(path: str | Path, images: str | Path | None = None) -> Iterator[Sample]:
    """One a question; the answer is `yes` or `no`. `images`: COCO's folder `val2014` (beside the
    file if not given)."""
    file = Path(path)
    folder = Path(images) if images else file.parent / "val2014"
    for where, row in read_lines(file):
        number, image, text, label = need(row, ("question_id", "image", "text", "label"), where)
        if label not in ("yes", "no"):
            raise FormatError(f"{where}: label must be yes or no, not {label!r}")
        yield sample(f"{file.stem}:{number}", ask(picture(folder / image), text), label)
