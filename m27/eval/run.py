"""`m27 eval nano`: every task on one folder of weights → a table, and JSON rows that say where
from.

Writes `rows.jsonl` (a row a task) and `answers.jsonl` (a line a sample) under the output folder,
and prints the table of the model card. Tasks may run in several processes, one thread each, which
on few cores is faster than several threads; the figures are the same.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from m27.eval.bench import Bench, Records, Task
from m27.eval.report import Origin, Row, origin, table, write_jsonl
from m27.eval.tasks import MORE, TASKS
from m27.infer.engine import Engine
from m27.infer.scheduler import Limits

FAILED = "failed: "


class EvalError(ValueError):
    """An evaluation that cannot be run; the message is one line that says why."""


def chosen(only: Sequence[str]) -> list[Task]:
    """The tasks by name, in the order of the table; all of the table if none is named. Raises EvalError."""
    unknown = [name for name in only if name not in _known()]
    if unknown:
        raise EvalError(f"no task is called {unknown[0]!r}; there are {', '.join(_known())}")
    return [task for name, task in _known().items() if name in (only or TASKS)]


def _known() -> dict[str, Task]:
    """Every task: those of the table, then those that are asked by name alone."""
    return {**TASKS, **MORE}


@dataclass(frozen=True)
class _Setting:
    """What a process needs to make the bench."""

    folder: Path
    origin: Origin
    samples: int
    validity: int
    batch: int
    out: Path
    precision: str = "auto"
    threads: int = 0
    adapter: Path | None = None

    def bench(self) -> Bench:
        engine = Engine.load(
            self.folder, precision=self.precision, threads=self.threads,
            limits=Limits(sequences=self.batch), adapter=self.adapter,
        )  # fmt: skip
        return Bench(engine, self.folder, self.origin, self.samples, self.validity, self.out)


def evaluate(
    folder: str | Path,
    *,
    only: Sequence[str] = (),
    samples: int = 500,
    validity: int = 500,
    seed: int = 0,
    batch: int = 32,
    jobs: int = 1,
    resume: bool = False,
    out: str | Path = "out/eval",
    precision: str = "auto",
    threads: int = 0,
    adapter: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> list[Row]:
    """Run tasks on the weights in `folder`; the rows come back, and are in `out` as JSON lines.

    `samples` a task, `validity` random prompts for the structure task, `batch` rows at a time in
    each of `jobs` processes, in the `precision` and with the `threads` of `Engine.load` (of several
    processes each has one thread), with the `adapter` of a folder that PEFT wrote or
    as they are; `say` is told the table at the end, and a line a task on standard error as it is
    done. A task that fails has a row whose note begins with `FAILED`, and the others go on. With
    `resume`, rows in `out` of the same origin and settings are kept, failed ones not.
    Raises EvalError for an unknown task or numbers below 1.
    """
    tasks = chosen(only)
    numbers = {"samples": samples, "validity": validity, "batch": batch, "jobs": jobs}
    for label, value in numbers.items():
        if value < 1:
            raise EvalError(f"{label} must be at least 1, not {value}")
    folder, out = Path(folder), Path(out)
    adapter = None if adapter is None else Path(adapter)
    own = origin(folder, seed, adapter)
    setting = _Setting(folder, own, samples, validity, batch, out, precision, threads, adapter)
    rows, records = _kept(setting) if resume else ({}, {})
    todo = [task.name for task in tasks if task.name not in rows]
    _write_settings(setting)
    for row, answered in _measured(setting, todo, jobs):
        rows[row.task], records[row.task] = row, answered
        order = [name for name in _known() if name in rows]
        write_jsonl(out / "rows.jsonl", (rows[name].to_json() for name in order))
        lines = [{"task": name, **record} for name in order for record in records[name]]
        write_jsonl(out / "answers.jsonl", lines)
        print(f"{row.task}: {row.score:.3f} in {row.seconds:.0f} s; {row.note}", file=sys.stderr)
    found = [rows[task.name] for task in tasks]
    say(table(found))
    return found


def _measured(setting: _Setting, names: list[str], jobs: int) -> Iterator[tuple[Row, Records]]:
    """Rows and records of the tasks `names`, as they are done."""
    if jobs == 1 or len(names) < 2:
        bench = setting.bench() if names else None
        for name in names:
            assert bench is not None
            yield measure(_known()[name], bench)
        return
    # Not forked: the threads of torch do not survive that.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, _begin, (setting,)) as pool:
        for future in as_completed([pool.submit(_measure, name) for name in names]):
            yield future.result()


_bench: Bench | None = None  # of this process; a worker has one engine for all its tasks


def _begin(setting: _Setting) -> None:
    global _bench
    torch.set_num_threads(1)
    _bench = replace(setting, threads=1).bench()


def _measure(name: str) -> tuple[Row, Records]:
    assert _bench is not None
    return measure(_known()[name], _bench)


def measure(task: Task, bench: Bench) -> tuple[Row, Records]:
    """The row of one task, with its seconds; of one that fails, a row that says why."""
    began = time.perf_counter()
    try:
        row, records = task.run(bench)
    except Exception as error:  # whatever it is, hours of other results must not be lost to it
        traceback.print_exc()
        why = f"{FAILED}{type(error).__name__}: {error}".split("\n", 1)[0]
        row = Row(
            task=task.name, n=0, score=0.0, low=0.0, high=1.0, chance=None, frequent=None,
            by_kind=None, passed=False, bar="–", data="", seconds=0.0, origin=bench.origin,
            note=why,
        )  # fmt: skip
        records = []
    decodes = getattr(task, "decodes", "")
    seconds = round(time.perf_counter() - began, 1)
    return replace(row, seconds=seconds, decodes=decodes), records


def _write_settings(setting: _Setting) -> None:
    write_jsonl(setting.out / "settings.jsonl", [_settings(setting)])


def _settings(setting: _Setting) -> dict[str, Any]:
    return {
        **asdict(setting.origin), "samples": setting.samples, "validity": setting.validity,
        "precision": setting.precision,
    }  # fmt: skip


def _kept(setting: _Setting) -> tuple[dict[str, Row], dict[str, Records]]:
    """Rows and records of an earlier run into the same folder, if it was of the same origin."""
    lines = {name: _read(setting.out / f"{name}.jsonl") for name in ("settings", "rows", "answers")}
    if lines["settings"] != [_settings(setting)]:
        return {}, {}
    own = asdict(setting.origin)
    rows: dict[str, Row] = {}
    for line in lines["rows"]:
        fields = {name: value for name, value in line.items() if name not in own}
        same = all(line.get(name) == value for name, value in own.items())
        if same and not str(line["note"]).startswith(FAILED):
            rows[line["task"]] = Row(**fields, origin=setting.origin)
    records: dict[str, Records] = {name: [] for name in rows}
    for line in lines["answers"]:
        if (name := line.pop("task")) in records:
            records[name].append(line)
    return rows, records


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    # Not splitlines: an answer may hold other characters that end lines.
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]
