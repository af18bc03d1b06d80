"""`m27 eval nano`: every task on one folder of weights → a table, and JSON rows that say where
from.

Writes `rows.jsonl` (a row a task) and `answers.jsonl` (a line a sample) under the output folder,
and prints the table of the model card.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from m27.eval.bench import Bench, Task
from m27.eval.report import Origin, Row, commit, table, weights_revision, write_jsonl
from m27.eval.tasks import TASKS
from m27.infer.engine import Engine


class EvalError(ValueError):
    """An evaluation that cannot be run; the message is one line that says why."""


def chosen(only: Sequence[str]) -> list[Task]:
    """The tasks by name, in the order of the table; all if none is named. Raises EvalError."""
    unknown = [name for name in only if name not in TASKS]
    if unknown:
        raise EvalError(f"no task is called {unknown[0]!r}; there are {', '.join(TASKS)}")
    return [task for name, task in TASKS.items() if not only or name in only]


def evaluate(
    folder: str | Path,
    *,
    only: Sequence[str] = (),
    samples: int = 200,
    validity: int = 500,
    seed: int = 0,
    batch: int = 16,
    out: str | Path = "out/eval",
    say: Callable[[str], None] = print,
) -> list[Row]:
    """Run tasks on the weights in `folder`; the rows come back, and are in `out` as JSON lines.

    `samples` a task, `validity` random prompts for the structure task, `batch` rows at a time;
    `say` is told the table at the end, and a line a task on standard error as it is done. The rows
    so far are kept if a later task fails. Raises EvalError for an unknown task or numbers below 1.
    """
    tasks = chosen(only)
    for label, value in (("samples", samples), ("validity", validity), ("batch", batch)):
        if value < 1:
            raise EvalError(f"{label} must be at least 1, not {value}")
    folder, out = Path(folder), Path(out)
    engine = Engine.load(folder)
    origin = Origin(seed=seed, commit=commit(), weights=weights_revision(folder))
    bench = Bench(engine, folder, origin, samples, validity, batch)
    rows: list[Row] = []
    records: list[dict[str, Any]] = []
    for task in tasks:
        began = time.perf_counter()
        row, answered = task.run(bench)
        row = replace(row, seconds=round(time.perf_counter() - began, 1))
        rows.append(row)
        records += [{"task": task.name, **record} for record in answered]
        write_jsonl(out / "rows.jsonl", (r.to_json() for r in rows))
        write_jsonl(out / "answers.jsonl", records)
        print(f"{task.name}: {row.score:.3f} in {row.seconds:.0f} s; {row.note}", file=sys.stderr)
    say(table(rows))
    return rows
