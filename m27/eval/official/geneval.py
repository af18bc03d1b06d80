"""GenEval's prompts (djghosh13/geneval, prompts/evaluation_metadata.jsonl) → samples to draw."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from m27.eval.official.sample import ask, need, read_lines, sample
from m27.eval.samples import Sample


def samples(path: str | Path) -> Iterator[Sample]:
    """One a prompt, asked as it stands. `about` is the request that `scorers.geneval.judge`
    takes."""
    for number, (where, row) in enumerate(read_lines(Path(path))):
        prompt, _, _ = need(row, ("prompt", "tag", "include"), where)
        yield sample(f"{number:05d}", ask(prompt), None, row)
