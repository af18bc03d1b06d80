"""GenEval's prompts → pictures of our model, in the official folder that `m27.eval.drawn` scores.

Pictures that are there already are not drawn again, so a run goes on where it was ended.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from m27.data.media_parts import as_file
from m27.data.progress import Progress
from m27.eval.official import geneval
from m27.infer.engine import Engine
from m27.infer.request import Request

ROUND = 64  # pictures between two looks at the disk


def draw(prompts: Path, engine: Engine, folder: Path, each: int = 4, seed: int = 0, most: int | None = None) -> None:
    """Draw `each` pictures of every prompt (of the first `most`), asked as it stands, with a seed of its own."""
    todo: list[tuple[Path, Request]] = []
    for number, sample in enumerate(geneval.samples(prompts)):
        if number == most:
            break
        place = folder / sample.id
        (place / "samples").mkdir(parents=True, exist_ok=True)
        _write(place / "metadata.jsonl", (json.dumps(sample.meta) + "\n").encode())
        for k in range(each):
            path = place / "samples" / f"{k:04d}.png"
            if not path.is_file():
                own = seed * 1_000_003 + number * 1_009 + k
                todo.append((path, Request(sample.messages, modalities=("image",), plan=("image",), seed=own)))
    with Progress(f"{prompts.name}: drawing", len(todo)) as bar:
        for start in range(0, len(todo), ROUND):
            some = todo[start : start + ROUND]
            for (path, _), response in zip(some, engine.answer([asked for _, asked in some], bar.add), strict=True):
                (part,) = [part for part in response.content if part["type"] == "image"]
                _write(path, as_file(part)[1])


def _write(path: Path, data: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    os.replace(partial, path)
