"""Clotho's CSV files (zenodo.org/record/4783391) with the clips' folder beside → samples.

There is no official prompt; `PROMPT` is AudioCaps's one here.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from m27.eval.official.audiocaps import PROMPT
from m27.eval.official.sample import FormatError, ask, need, sample, sound
from m27.eval.samples import Sample

CAPTIONS = tuple(f"caption_{n}" for n in range(1, 6))


def samples(
    path: str | Path, audio: str | Path | None = None, prompt: str = PROMPT
) -> Iterator[Sample]:
    """One a clip; the answer is the list of its five captions. `audio`: the folder of clips, if not
    given that beside the file, named as the split (`evaluation`)."""
    file = Path(path)
    folder = Path(audio) if audio else file.parent / file.stem.rpartition("_")[2]
    with file.open(encoding="utf-8", newline="") as lines:
        for number, row in enumerate(csv.DictReader(lines), 2):
            name, *captions = need(row, ("file_name", *CAPTIONS), f"{file}:{number}")
            if not (folder / name).is_file():
                raise FormatError(f"{file}:{number}: no clip {name} in {folder}")
            yield sample(name, ask(sound(folder / name), prompt), captions)
