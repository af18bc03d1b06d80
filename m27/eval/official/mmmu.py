"""MMMU's parquet files (huggingface.co/datasets/MMMU/MMMU, a folder a subject) → samples.

The prompts are those of the official repository: mmmu/configs/llava1.5.yaml at bb0b95a, options as
its `construct_prompt` spells them. Pictures stand where the question or an option names them.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from m27.eval.official.sample import FormatError, Part, ask, lettered, need, picture, rows, sample
from m27.eval.samples import Sample

CHOOSE = "Answer with the option's letter from the given choices directly."
SHORT = "Answer the question using a single word or phrase."
MARK = re.compile(r"<image (\d+)>")


def literal(text: Any, where: str) -> list[str]:
    """A list written as text, as the columns `options` and `answer` hold it. Raises FormatError."""
    try:
        value = ast.literal_eval(text) if isinstance(text, str) else list(text)
    except (ValueError, SyntaxError) as error:
        raise FormatError(f"{where}: options are not a list: {str(text)[:60]!r}") from error
    return [str(one) for one in value]


def placed(text: str, row: dict[str, Any], where: str) -> list[Part | str]:
    """Text and pictures in turn: each `<image n>` becomes the picture of column `image_n`."""
    parts: list[Part | str] = []
    for place, piece in enumerate(MARK.split(text)):
        if place % 2 == 0:
            parts.append(piece)
            continue
        stored = row.get(f"image_{piece}")
        if not stored or not stored.get("bytes"):
            raise FormatError(f"{where}: <image {piece}> has no picture in image_{piece}")
        parts.append(picture(stored["bytes"]))
    return parts


def samples(path: str | Path) -> Iterator[Sample]:
    """One a row. `about`: `question_type` and, of multiple choice, `options` by letter."""
    for where, row in rows(path):
        name, question, answer, kind = need(
            row, ("id", "question", "answer", "question_type"), where
        )
        options = lettered(literal(row.get("options") or "[]", where))
        about = {"question_type": kind, "subject": "_".join(name.split("_")[1:-1])}
        if kind == "multiple-choice":
            spelled = "".join(f"({letter}) {text}\n" for letter, text in options.items())
            text = f"{question}\n\n{spelled}\n\n{CHOOSE}"
            about["options"] = options
        else:
            text = f"{question}\n\n{SHORT}"
            answer = literal(answer, where) if answer.startswith("[") else answer
        yield sample(name, ask(*placed(text, row, where)), answer, about)
