"""MMMU-Pro's parquet files (huggingface.co/datasets/MMMU/MMMU_Pro, one folder a setting) → samples.

The prompts are those of the official repository: mmmu-pro/prompts.yaml at bb0b95a. In the vision
setting the question is in the picture, so only the instruction is asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from m27.eval.official.mmmu import literal, placed
from m27.eval.official.sample import ask, lettered, need, picture, rows, sample
from m27.eval.samples import Sample

_LAST = (
    "The last line of your response should be of the following format: 'Answer: $LETTER' "
    "(without quotes) where LETTER is one of options."
)
_DIRECT = "Answer with the option letter from the given choices directly."
_STEPS = "Think step by step before answering."
PROMPTS = {
    ("standard", "direct"): _DIRECT,
    ("vision", "direct"): f"{_DIRECT} {_LAST}",
    ("standard", "cot"): f"Answer the preceding multiple choice question. {_LAST} {_STEPS}",
    ("vision", "cot"): "Write out the multiple-choice question in the image and then solve it. "
    f"{_LAST} {_STEPS}",
}


def samples(path: str | Path, method: str = "direct") -> Iterator[Sample]:
    """One a row; `method` is `direct` or `cot`. Rows without a question are of the vision setting.
    `about["options"]`: texts by letter."""
    for where, row in rows(path):
        name, listed, answer = need(row, ("id", "options", "answer"), where)
        options = lettered(literal(listed, where))
        if row.get("question"):
            spelled = "\n".join(f"{letter}. {text}" for letter, text in options.items())
            text = f"{row['question']}\n{spelled}\n{PROMPTS['standard', method]}"
            messages = ask(*placed(text, row, where))
        else:
            (stored,) = need(row, ("image",), where)
            messages = ask(picture(stored["bytes"]), PROMPTS["vision", method])
        yield sample(name, messages, answer, {"options": options, "subject": row.get("subject")})
