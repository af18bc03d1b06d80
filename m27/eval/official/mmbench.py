"""MMBench's TSV files (opencompass.openxlab.space/utils/VLMEval) → samples.

The prompt is VLMEvalKit's for it (`ImageMCQDataset.build_prompt` at e8e78f0). In the files for
circular evaluation a rotation's picture is the index of the row that carries it.
"""

from __future__ import annotations

import csv
import string
import sys
from collections.abc import Iterator
from pathlib import Path

from m27.eval.official.sample import FormatError, ask, decoded, need, picture, sample
from m27.eval.samples import Sample

REFERENCE = 64  # characters up to which a picture is another row's index
_MISSING = frozenset({"", "nan", "NaN", "NA", "N/A", "None", "null"})


def samples(path: str | Path) -> Iterator[Sample]:
    """One a row. `about`: `index`, `options` by letter, `category` and `l2-category`; circular scores
    need the index. The answer is None where the split keeps it back."""
    csv.field_size_limit(sys.maxsize)
    with Path(path).open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file, delimiter="\t"))
    pictures = {row.get("index"): row.get("image") or "" for row in table}
    for number, row in enumerate(table, 2):
        where = f"{path}:{number}"
        index, question, image = need(row, ("index", "question", "image"), where)
        options = {k: row[k] for k in string.ascii_uppercase if row.get(k, "") not in _MISSING}
        if len(image) <= REFERENCE:
            if image not in pictures:
                raise FormatError(
                    f"{where}: the picture is that of row {image!r}, which is not here"
                )
            image = pictures[image]
        hint = row.get("hint") or ""
        text = f"Hint: {hint}\n" if hint not in _MISSING else ""
        text += f"Question: {question}\n"
        if options:
            text += "Options:\n" + "".join(f"{k}. {v}\n" for k, v in options.items())
            text += "Please select the correct answer from the options above. \n"
        about = {"index": int(index), "options": options}
        about |= {key: row.get(key) or "" for key in ("category", "l2-category")}
        shown = picture(decoded(image, where))
        yield sample(index, ask(shown, text), row.get("answer") or None, about)
