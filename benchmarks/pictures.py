"""Seconds a picture and codes a step, by how many codes are tried at once.

    python -m benchmarks.pictures --precision int8

Rounds interleave the windows: each round every window draws the same picture of another prompt, guided as by default.
Medians over rounds, the machine's and the runner's facts beside them; whether the codes are those of one code a step is
checked and told. Prints a Markdown table and writes JSON.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

from m27.codec.media import write_atomic
from m27.infer.engine import Engine
from m27.infer.inline import Inline
from m27.infer.request import Request
from m27.infer.scheduler import Limits
from m27.language.processor import Processor

THINGS = ("airplane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def ask(thing: str, seed: int, grid: int, guidance: float, window: int) -> Request:
    """The request for one picture."""
    messages = [{"role": "user", "content": f"Draw a picture of a {thing}."}]
    return Request(
        messages, plan=("image",), image_grid=(grid, grid), max_tokens=grid * grid + 8,
        guidance=guidance, seed=seed, picture_window=window,
    )  # fmt: skip


def draw(engine: Engine, requests: list[Request]) -> dict[str, Any]:
    """Wall-clock seconds, steps, seconds of a step and codes of the requests, answered together."""
    before, begun = engine.metrics(), time.perf_counter()
    answers = engine.answer(requests)
    seconds = time.perf_counter() - begun
    after = engine.metrics()
    steps = after["steps"] - before["steps"]  # the first one reads the prompt and draws one code
    ran = after["seconds"]["run"] - before["seconds"]["run"]
    return {
        "seconds": seconds,
        "steps": steps,
        "step": ran / steps,
        "ids": [list(a.ids) for a in answers],
    }


def measure(engine: Engine, given: argparse.Namespace) -> list[dict[str, Any]]:
    """One row of figures by window, "0" the first."""
    windows = list(dict.fromkeys([0, *given.windows]))
    found: dict[int, list[dict[str, Any]]] = {window: [] for window in windows}
    ends = time.perf_counter() + given.seconds
    draw(engine, [ask(THINGS[0], 0, given.grid, given.guidance, windows[-1])])  # warm-up
    for number in range(given.rounds):
        if number and time.perf_counter() > ends:
            break
        turn = number % len(windows)
        for window in windows[turn:] + windows[:turn]:
            things = [THINGS[(number + k) % len(THINGS)] for k in range(given.together)]
            requests = [
                ask(thing, 100 * number + k + 1000, given.grid, given.guidance, window)
                for k, thing in enumerate(things)
            ]
            found[window].append(draw(engine, requests))
    rows = []
    for window in windows:
        runs = found[window]
        same = sum(a["ids"] == b["ids"] for a, b in zip(found[0], runs, strict=True))
        steps = statistics.mean(run["steps"] for run in runs)
        rows.append({
            "window": window,
            "seconds": statistics.median(run["seconds"] for run in runs),
            "least": min(run["seconds"] for run in runs),
            "steps": steps,
            "codes_a_step": given.grid**2 / steps,
            "step_ms": 1000 * statistics.median(run["step"] for run in runs),
            "rounds": len(runs),
            "equal": same,
        })  # fmt: skip
    return rows


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("weights/m27-nano"))
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--windows", type=int, nargs="*", default=[2, 4, 8, 16])
    parser.add_argument("--grid", type=int, default=8, help="codes in a row, and rows")
    parser.add_argument("--guidance", type=float, default=2.5)
    parser.add_argument("--together", type=int, default=1, help="pictures drawn at once")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=140, help="no round begins after that")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/pictures.json"))
    given = parser.parse_args()
    loaded = Processor.load(given.model)
    # Without codecs: what they take is spent beside the step, and the same for every window.
    engine = Engine.load(
        given.model, precision=given.precision, device=given.device, backend=given.backend, threads=given.threads,
        limits=Limits(reuse=False), media=Inline(Processor(loaded._tokenizer, loaded.vocabulary)),
    )  # fmt: skip
    rows = measure(engine, given)
    print(f"| window | s a picture | codes a step | ms a step | as one by one |\n|{'---|' * 5}")
    for row in rows:
        print(
            f"| {row['window']} | {row['seconds']:.3f} | {row['codes_a_step']:.2f} | {row['step_ms']:.1f} "
            f"| {row['equal']}/{row['rounds']} |"
        )
    figures = {
        "date": dt.date.today().isoformat(), "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(), "runner": engine.runner.facts(), "grid": given.grid,
        "guidance": given.guidance, "together": given.together, "windows": rows,
    }  # fmt: skip
    engine.close()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(given.out, (json.dumps(figures, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
