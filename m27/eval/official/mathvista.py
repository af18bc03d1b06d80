"""MathVista, from parquet (huggingface.co/datasets/AI4Math/MathVista) or the repository's JSON.

The prompt is the official query of each problem: the column `query`, or for `testmini.json` the
`query.json` beside it (lupantech/MathVista at 53d5258). Pictures of the JSON form lie beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from m27.eval.official.sample import ask, need, picture, read_json, rows, sample
from m27.eval.samples import Sample


def problems(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file and problem, problem) of either form."""
    if path.suffix != ".json":
        yield from rows(path)
        return
    queries = path.with_name("query.json")
    asked = read_json(queries) if queries.is_file() else {}
    for pid, problem in read_json(path).items():
        query = {"query": asked[pid]} if pid in asked else {}
        yield f"{path}, problem {pid}", {"pid": pid, **problem, **query}


def samples(path: str | Path) -> Iterator[Sample]:
    """One a problem. `about`: `question_type`, `answer_type`, `choices` and `precision`; the
    answer is None where the split keeps it back."""
    top = Path(path)
    for where, row in problems(top):
        pid, query, image = need(row, ("pid", "query", "image"), where)
        about = {
            name: row.get(name) for name in ("question_type", "answer_type", "choices", "precision")
        }
        stored = (row.get("decoded_image") or {}).get("bytes")
        shown = picture(stored or top.parent / image)
        yield sample(pid, ask(shown, query), row.get("answer") or None, about)
