"""TextVQA's JSON files (textvqa.org, version 0.5.1) with the pictures' folder beside → samples.

There is no official prompt; the question is followed by the line that LLaVA-1.5 made usual.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from m27.eval.official.sample import ask, need, picture, read_json, sample
from m27.eval.official.vqav2 import SHORT
from m27.eval.samples import Sample


def samples(path: str | Path, images: str | Path | None = None) -> Iterator[Sample]:
    """One a question. `images`: the folder of pictures (beside the file, `test_images` for the test
    split, else `train_images`). The answer is the list of ten people's answers, None in the test
    split."""
    file = Path(path)
    (data,) = need(read_json(file), ("data",), str(file))
    for number, row in enumerate(data):
        where = f"{file}, question {number}"
        key, image, question = need(row, ("question_id", "image_id", "question"), where)
        split = "test_images" if row.get("set_name") == "test" else "train_images"
        shown = picture((Path(images) if images else file.parent / split) / f"{image}.jpg")
        yield sample(str(key), ask(shown, f"{question}\n{SHORT}"), row.get("answers") or None)
