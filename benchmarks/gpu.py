"""Our engine on a GPU, against the memory's limit and against transformers' continuous batching.

    python3 -m benchmarks.gpu --out gpu.json                        # about a minute on one GPU
    python3 -m benchmarks.gpu --out gpu.json --device cpu --tiny    # a trial

Random weights, nothing downloaded. Two parts, each in a process and with seconds of its own: one
request at the shape of 1.7 billion parameters (`gpu_one.py`), and 64 requests at once at the shape of
135 million (`gpu_many.py`). What a part has measured is in the file at once, whatever becomes of it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # found from any folder

SECONDS = {"one": 45.0, "many": 60.0}


def run_part(name: str, options: argparse.Namespace) -> int:
    """One part, in this process; it begins when a line comes in."""
    import torch

    from benchmarks.gpu_parts import Report

    if name == "one":
        from benchmarks.gpu_one import one as part
    else:
        from benchmarks.gpu_many import many as part
    said = float(sys.stdin.readline() or time.time())
    report = Report(options.out, began=time.perf_counter() - (time.time() - said))
    report.tell("seconds_to_load", round(report.elapsed, 1))
    try:
        cuda = options.device == "cuda" or (options.device == "auto" and torch.cuda.is_available())
        part(torch.device("cuda" if cuda else "cpu"), options.tiny, report)
    except BaseException as error:
        report.tell("failed", f"{type(error).__name__}: {error}"[:500])
        traceback.print_exc()
        return 1
    report.tell("whole", True)
    return 0


def start(name: str, options: argparse.Namespace) -> subprocess.Popen[str]:
    """The process of a part, which loads what it needs and waits."""
    command = [sys.executable, "-u", "-m", "benchmarks.gpu", "--part", name, "--device"]
    command += [options.device, "--out", str(_path(options.out, name))]
    return subprocess.Popen(
        [*command, *(["--tiny"] if options.tiny else [])],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.PIPE, text=True, cwd=Path(__file__).resolve().parents[1],
    )  # fmt: skip


def _path(out: Path, name: str) -> Path:
    return out.resolve().with_name(f"{out.stem}-{name}.json")


def finish(process: subprocess.Popen[str], seconds: float) -> str:
    """Let a part begin; what became of it after at most so many seconds."""
    assert process.stdin is not None
    try:
        process.stdin.write(f"{time.time()}\n")
        process.stdin.close()
    except OSError:
        return f"ended before it began, with {process.wait()}"
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return f"stopped after {seconds:.0f} s"
    return "done" if code == 0 else f"ended with {code}"


def gather(options: argparse.Namespace, whole: dict[str, Any]) -> None:
    """Put what the parts have written so far into the one file."""
    for name in SECONDS:
        path = _path(options.out, name)
        if path.is_file():
            whole[name] = json.loads(path.read_text())
    temporary = options.out.with_name(f".{options.out.name}.tmp")
    temporary.write_text(json.dumps(whole, indent=1) + "\n")
    temporary.replace(options.out)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    out.add_argument("--out", type=Path, required=True, help="file of the results (JSON)")
    out.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    out.add_argument("--tiny", action="store_true", help="small shapes, for a trial")
    out.add_argument("--parts", default="one,many", help="which parts, by commas")
    out.add_argument(
        "--slack", type=float, default=1.0, help="times the seconds that a part may take"
    )
    out.add_argument("--part", choices=tuple(SECONDS), help=argparse.SUPPRESS)
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; 0 where every part came to its end."""
    options = parser().parse_args(arguments)
    if options.part:
        return run_part(options.part, options)
    names = [name for name in SECONDS if name in options.parts.split(",")]
    for name in SECONDS:
        _path(options.out, name).unlink(missing_ok=True)
    whole: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": f"python3 -m benchmarks.gpu --out {options.out.name} --device {options.device}"
        + (" --tiny" if options.tiny else "")
        + f" --parts {options.parts}",
    }
    began = time.perf_counter()
    processes = {name: start(name, options) for name in names}
    try:
        for name, process in processes.items():
            whole[f"{name} became"] = finish(process, options.slack * SECONDS[name])
            whole["seconds"] = round(time.perf_counter() - began, 1)
            gather(options, whole)
    finally:
        for process in processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()
    for name in SECONDS:
        _path(options.out, name).unlink(missing_ok=True)
    print(json.dumps(whole), flush=True)
    return 0 if all(whole[f"{name} became"] == "done" for name in names) else 1


if __name__ == "__main__":
    sys.exit(main())
