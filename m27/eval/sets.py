"""The sets of questions that `m27 eval` and `m27 compare` know by name (`--form NAME`): how each is read and scored.

A new one is a reader, a metric and a line here; docs/evaluate.md shows it in twenty lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from m27.eval import benchmarks
from m27.eval.metrics import METRICS, Metric
from m27.eval.samples import Sample, records


@dataclass(frozen=True)
class Set:
    """One form of data. `samples(path)` yields its questions, raising ValueError that names file and line; `metric`
    is its own way of scoring, None where the caller names one."""

    name: str
    samples: Callable[[Path], Iterator[Sample]]
    metric: Metric | None = None


SETS: dict[str, Set] = {
    one.name: one
    for one in (
        Set("records", records),
        Set("captions", records, METRICS["cider"]),
        Set("transcripts", records, METRICS["wer"]),
        *(Set(name, benchmarks.samples(reader), metric) for name, (reader, metric) in benchmarks.BENCHMARKS.items()),
    )
}
