"""How the time of a step grows: with the sequences in it, and with what each of them has behind it.

    python -m benchmarks.scaling --precision int8

Three curves of the runner alone: a step of 1 … 64 sequences (128 tokens behind each), a step of one sequence
with 128 … 8,192 tokens behind it, and a piece of 256 tokens of a prompt at the same depths. Attention reads
what lies behind, so the last two grow in a straight line; a curve that bends upwards is a fault. Writes JSON
and a plot to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # found from any folder

from benchmarks import machine, plot
from m27.codec.media import write_atomic
from m27.infer.engine import Engine
from m27.infer.runner import Batch, Runner, Wanted
from m27.infer.scheduler import Limits

RESULTS = Path(__file__).resolve().parent / "results"
PIECE, BEHIND = 256, 128


class Rows:
    """Sequences that lie one after the other in a runner's cache, each with blocks of its own."""

    def __init__(self, runner: Runner, room: int, vocabulary: int) -> None:
        self.runner, self.vocabulary = runner, vocabulary
        self.blocks_each = -(-room // runner.block_size)
        self.count = runner.blocks // self.blocks_each

    def step(self, rows: Sequence[int], position: int, tokens: int) -> float:
        """Seconds of a step of `tokens` each from `position` on, for the sequences `rows`; logits
        of the last one of each are asked for."""
        size, each = self.runner.block_size, self.blocks_each
        places = np.arange(position, position + tokens, dtype=np.int32)
        first = np.array(rows, np.int32)[:, None] * each
        ids = (np.arange(len(rows) * tokens, dtype=np.int32) * 7919 + position) % self.vocabulary
        batch = Batch(
            ids=ids.astype(np.int32),
            positions=np.tile(places, len(rows)),
            slots=(first * size + places).astype(np.int32).ravel(),
            starts=np.arange(len(rows) + 1, dtype=np.int32) * tokens,
            tables=np.ascontiguousarray(first + np.arange(each, dtype=np.int32)),
            adapters=np.full(len(rows), -1, np.int32),
            wanted=[
                Wanted(((0, self.vocabulary),), [(i + 1) * tokens - 1 for i in range(len(rows))])
            ],
        )
        began = time.perf_counter()
        self.runner.run(batch)
        return time.perf_counter() - began

    def fill(self, rows: Sequence[int], start: int, end: int) -> None:
        """Write what lies behind, in pieces."""
        for position in range(start, end, PIECE):
            self.step(rows, position, min(PIECE, end - position))


def against_batch(rows: Rows, sizes: Sequence[int], repeats: int) -> list[tuple[float, float]]:
    """(sequences, milliseconds of a step) with `BEHIND` tokens behind each."""
    for row in range(max(sizes)):
        rows.fill([row], 0, BEHIND)
    return [
        (size, _median(lambda size=size: rows.step(range(size), BEHIND, 1), repeats))  # type: ignore[misc]
        for size in sizes
    ]


def against_context(
    rows: Rows, depths: Sequence[int], repeats: int
) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """(tokens behind, milliseconds) of a step of one token, and of one of `PIECE`; a depth at the
    end of the room has room for the piece before it."""
    one, piece = [], []
    filled = 0
    room = rows.blocks_each * rows.runner.block_size
    for depth in depths:
        depth = min(depth, room - PIECE)
        rows.fill([0], filled, depth)
        filled = depth
        one.append((float(depth), _median(lambda d=depth: rows.step([0], d, 1), repeats)))  # type: ignore[misc]
        again = max(3, repeats // 3)
        piece.append((float(depth), _median(lambda d=depth: rows.step([0], d, PIECE), again)))  # type: ignore[misc]
    return one, piece


def _median(measure: Any, repeats: int) -> float:
    measure()
    return 1000 * statistics.median(measure() for _ in range(repeats))


def fit(points: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Least squares of a + b·x, and what a square term would add: `bend` is its part of the last
    value (negative where the curve flattens), `error` the largest relative distance from the line."""
    x, y = np.array(points, float).T
    slope, start = np.polyfit(x, y, 1)
    line = start + slope * x
    square = float(np.polyfit(x, y, 2)[0]) if len(x) > 2 else 0.0
    return {
        "start": float(start), "slope": float(slope), "bend": square * float(x[-1]) ** 2 / float(y[-1]),
        "error": float(np.abs(line - y).max() / y.max()),
    }  # fmt: skip


def doublings(low: int, high: int) -> list[int]:
    """low, 2·low, … up to high."""
    found = [low]
    while found[-1] * 2 <= high:
        found.append(found[-1] * 2)
    return found


def measure(
    model: Path, precision: str, threads: int, batch: int, context: int, repeats: int
) -> dict[str, Any]:
    """The three curves with their fits."""
    sizes, depths = doublings(1, batch), doublings(BEHIND, context)
    limits = Limits(reuse=False, cache_bytes=1 << 30)
    engine = Engine.load(model, precision=precision, threads=threads, limits=limits)
    runner, vocabulary = engine.runner, engine.runner.config.vocab_size
    wide = Rows(runner, BEHIND + 1, vocabulary)
    if wide.count < batch:
        raise SystemExit(f"the cache holds {wide.count} sequences, {batch} are wanted")
    curves = {"batch": against_batch(wide, sizes, repeats)}
    deep = Rows(runner, context, vocabulary)
    curves["context"], curves["piece"] = against_context(deep, depths, repeats)
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine.describe(threads), "runner": runner.facts(), "repeats": repeats,
        "milliseconds": curves, "fits": {name: fit(points) for name, points in curves.items()},
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    root = Path(__file__).resolve().parents[1]
    parser.add_argument("--model", type=Path, default=root / "weights/m27-nano")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    found = measure(
        given.model, given.precision, given.threads, given.batch, given.context, given.repeats
    )
    names = {
        "batch": ("sequences in a step", "step"), "context": ("tokens behind one token", "context"),
        "piece": (f"tokens behind {PIECE} tokens of a prompt", "piece"),
    }  # fmt: skip
    given.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=1, default=str) + "\n"
    write_atomic(given.out / f"scaling-{given.precision}.json", text.encode())
    print("| | first, ms | last, ms | start + slope·x, ms | bend at the end |\n|---|---|---|---|---|")
    for name, (axis, stem) in names.items():
        points, line = found["milliseconds"][name], found["fits"][name]
        print(
            f"| {axis} {points[0][0]:g} … {points[-1][0]:g} | {points[0][1]:.2f} | {points[-1][1]:.2f} "
            f"| {line['start']:.2f} + {line['slope']:.4f}·x | {line['bend']:+.1%} |"
        )
        title = f"Time of a step, {given.precision}, {given.threads} threads, {found['date']}"
        drawn = plot.lines(title, axis, "ms", {"measured": points})
        write_atomic(given.out / f"scaling-{given.precision}-{stem}.svg", drawn.encode())


if __name__ == "__main__":
    main()
