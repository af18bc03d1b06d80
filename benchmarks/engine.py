"""Our engine beside its peers: the same weights, ids, cores and minutes.

    python -m benchmarks.engine --quality           # likelihoods of every format (once; slow, need not be quiet)
    python -m benchmarks.engine                     # speed, five rounds, on a quiet machine
    python -m benchmarks.engine --contenders "m27,llama.cpp Q8_0" --rounds 3

One request: 512 ids in, 128 out. Many: 16 requests of 256 in and 128 out that arrive together, prefill
included. Greedy, past any end of text, every peer without a prefix cache. What is missing of the peers
is installed first (`benchmarks/peers/install.py`). Writes JSON and a plot to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # found from any folder

from benchmarks import machine, quality, report, texts
from benchmarks.peers import contenders, install
from benchmarks.peers.contenders import Contender
from benchmarks.peers.install import PeerError
from benchmarks.peers.process import PeerFailedError, Process
from benchmarks.race import Result, race

RESULTS = Path(__file__).resolve().parent / "results"
ONE, MANY, OUT, TOGETHER = 512, 256, 128, 16


def start(
    wanted: Sequence[Contender], checkpoint: Path, threads: int, failed: dict[str, str]
) -> dict[str, Process]:
    """A process for each contender that comes up; why the others do not goes to `failed`."""
    found: dict[str, Process] = {}
    for contender in wanted:
        try:
            process = contender.start(checkpoint, threads, install.FOLDER / "logs")
        except (PeerError, PeerFailedError, OSError) as error:
            failed[contender.name] = str(error)
            print(f"{contender.name}: {error}", file=sys.stderr, flush=True)
            continue
        found[contender.name] = process
        print(f"{contender.name}: ready in {process.seconds:.1f} s", file=sys.stderr, flush=True)
    return found


def speed(
    wanted: Sequence[Contender],
    checkpoint: Path,
    threads: int,
    rounds: int,
    scale: int = 1,
    minutes: float = 19.0,
    kinds: Sequence[str] = ("one", "many"),
) -> dict[str, Any]:
    """Every figure of every contender, begun in time to end within `minutes`. `scale` divides all
    lengths, for a trial."""
    until = time.monotonic() + 60 * minutes
    processor = texts.load(checkpoint)
    one, many, out = ONE // scale, MANY // scale, OUT // scale
    singles = [[ids] for ids in texts.prompts(processor, rounds + 1, one)]
    crowd = texts.prompts(processor, TOGETHER * (rounds + 1), many, skip=rounds + 1)
    crowds = [crowd[i : i + TOGETHER] for i in range(0, len(crowd), TOGETHER)]
    before = machine.limits(threads)
    failed: dict[str, str] = {}
    peers = start(wanted, checkpoint, threads, failed)
    results: dict[str, Result] = {}
    try:
        for kind, asked in (("one", singles), ("many", crowds)):
            able = {c.name: peers[c.name] for c in wanted if c.name in peers and kind in c.does}
            if kind not in kinds:
                continue
            race(kind, able, asked, out, results, until=until)
        facts = {name: peer.facts for name, peer in peers.items()}
    finally:
        for peer in peers.values():
            peer.close()
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), "commit": _commit(),
        "checkpoint": checkpoint.name, "machine": machine.describe(threads),
        "limits": machine.faster(before, machine.limits(threads)),
        "shape": {"one": [one, out], "many": [TOGETHER, many, out], "rounds": rounds},
        "prompts": texts.digest([ids for row in (*singles, *crowds) for ids in row]),
        "config": json.loads((checkpoint / "config.json").read_text()),
        "contenders": report.figures(results, facts, texts.not_text(processor)), "failed": failed,
    }  # fmt: skip


def _commit() -> str:
    git = ["git", "-C", str(install.ROOT), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(git, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    out.add_argument("--model", type=Path, default=install.MODEL)
    out.add_argument("--contenders", default="", help="names or their beginnings, by commas, or 'all'")
    out.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    out.add_argument("--rounds", type=int, default=5)
    out.add_argument("--minutes", type=float, default=19.0, help="rounds for which no time is left are left out")
    out.add_argument("--scale", type=int, default=1, help="divide all lengths, for a trial")
    out.add_argument("--kinds", default="one,many", help="a single request, or many, or both")
    out.add_argument("--quality", action="store_true", help="likelihoods instead of speed")
    out.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; 0 where something was measured."""
    options = parser().parse_args(arguments)
    try:
        wanted = contenders.chosen(options.contenders)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    os.chdir(install.ROOT)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    began = time.perf_counter()
    checkpoint = install.export(options.model)
    path = options.out / "engine-quality.json"
    if options.quality:
        quality.measure(wanted, checkpoint, options.threads, path, start)
        print(report.quality_table(report.read(path)))
        return 0
    lengths = (options.rounds, options.scale, options.minutes, options.kinds.split(","))
    found = speed(wanted, checkpoint, options.threads, *lengths)
    found["minutes"] = round((time.perf_counter() - began) / 60, 1)
    known: Mapping[str, Any] = report.read(path)
    same = known.get("checkpoint") == checkpoint.name
    whole = report.complete(found, known.get("formats", {}) if same else {})
    report.write(options.out, whole)
    print(report.table(whole))
    return 0 if whole["contenders"] else 1


if __name__ == "__main__":
    sys.exit(main())
