"""COCO's caption annotations (cocodataset.org, captions_val2014.json) → samples.

There is no official prompt; `PROMPT` is ours. Captions are scored over all pictures of a file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from m27.eval.official.sample import FormatError, ask, need, picture, read_json, sample
from m27.eval.samples import Sample

PROMPT = "Describe the picture in one sentence."


def samples(
    path: str | Path, images: str | Path | None = None, prompt: str = PROMPT
) -> Iterator[Sample]:
    """One a picture; the answer is the list of its captions. `images`: the folder of pictures, if
    not given that beside the annotations' folder, named as the split (`val2014`)."""
    file = Path(path)
    pictures, annotations = need(read_json(file), ("images", "annotations"), str(file))
    folder = Path(images) if images else file.parent.parent / file.stem.rpartition("_")[2]
    captions: dict[int, list[str]] = {}
    for row in annotations:
        captions.setdefault(row["image_id"], []).append(row["caption"].strip())
    for number, row in enumerate(pictures):
        where = f"{file}, image {number}"
        key, name = need(row, ("id", "file_name"), where)
        if key not in captions:
            raise FormatError(f"{where}: no caption of image {key}")
        yield sample(str(key), ask(picture(folder / name), prompt), captions[key])
