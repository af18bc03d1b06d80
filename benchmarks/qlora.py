"""LoRA over a base in bfloat16 beside QLoRA over the same base in blocks: memory and tokens a second.

    .venv/bin/python -m benchmarks.qlora --json out/qlora.json

Every way is a process of its own that waits while another makes a step; steps interleave and the figures are
medians, also of the processor's own seconds, which other programs on the machine change less. Memory is the
process's peak while it steps, after what loading took has been handed back. 2 x 512 tokens a step, every one a
target, rank 16, frozen rows. Random ids: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine

WAYS: dict[str, dict[str, Any]] = {
    "lora, hand-written pass": {"path": "fused"},
    "lora, autograd": {"path": "plain"},
    "qlora 8 bits": {"path": "plain", "base_bits": 8},
    "qlora 4 bits": {"path": "plain", "base_bits": 4},
}
ROW, ROWS = 512, 2


def shard(folder: Path, vocabulary: int) -> Path:
    """One shard of documents as long as a row."""
    rng, count = np.random.default_rng(0), 64
    folder.mkdir(parents=True)
    ids = rng.integers(5, min(40_000, vocabulary), (count, ROW)).astype(np.uint32)
    ids.tofile(folder / "tokens.bin")
    np.ones(ids.size, np.uint8).tofile(folder / "loss.bin")
    np.save(folder / "index.npy", np.arange(count + 1, dtype=np.int64) * ROW)
    np.save(folder / "tasks.npy", np.zeros(count, np.uint16))
    end = [vocabulary, vocabulary]
    about = {"size": vocabulary, "text": vocabulary, "image": end, "audio": end, "turn_end": 2}
    meta = {
        "format": "m27-shard-1", "tasks": ["text"], "documents": count, "tokens": ids.size,
        "vocabulary": about, "vocabulary_hash": "0", "unconditional": [1], "image_codec": "none",
        "audio_codec": "none",
    }  # fmt: skip
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def memory(name: str) -> int:
    """VmHWM (the peak) or VmRSS of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")


def child(model: Path, folder: Path, way: str, threads: int, compile: bool) -> None:
    """Load, then a step for every line that comes; a line of JSON goes back each time."""
    from m27 import runtime
    from m27.data.mixture import Corpus
    from m27.model import checkpoint
    from m27.train.loop import Trainer, prepare_machine
    from m27.train.lora import LoraConfig
    from m27.train.qlora import open_base
    from m27.train.rows import FrozenRows
    from m27.train.settings import DataConfig, TrainConfig, change

    data = DataConfig(row=ROW, rows=ROWS, accumulate=1, pool=4)
    config = TrainConfig(
        "bench", steps=10_000, threads=threads, device="cpu", rows="frozen", data=data, compile=compile,
        lora=LoraConfig(rank=16, alpha=16),
    )  # fmt: skip
    config = change(config, WAYS[way])
    _, dtype = prepare_machine(config)
    if config.base_bits is None:
        decoder = checkpoint.load(model)
        vocabulary = decoder.model.embed_tokens.weight
        rows = FrozenRows(vocabulary, dtype)
    else:
        decoder, vocabulary = open_base(model, config.base_bits, dtype)
        rows = FrozenRows(vocabulary, dtype)
    loading = memory("VmHWM")
    trainer = Trainer(config, decoder, rows, Corpus([folder]), folder.parent / f"run-{way}", quiet=True)
    del decoder, vocabulary
    steps = trainer._steps()
    trainer._train_step(next(steps)[0])  # compiles
    runtime.trim_freed_memory()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    print(json.dumps({"loading": loading, "dtype": str(dtype)}), flush=True)
    for _ in sys.stdin:
        begun, own = time.perf_counter(), time.process_time()
        trainer._train_step(next(steps)[0])
        told = {"seconds": time.perf_counter() - begun, "own": time.process_time() - own}
        print(json.dumps({**told, "peak": memory("VmHWM")}), flush=True)


def measure(
    model: Path, threads: int, rounds: int, ways: Sequence[str], compile: bool
) -> dict[str, Any]:
    """All ways in one run: a round is one step of each."""
    from m27.model.packed import read_json

    with tempfile.TemporaryDirectory() as work:
        folder = shard(Path(work) / "shard", int(read_json(model / "config.json")["vocab_size"]))
        found: dict[str, dict[str, Any]] = {}
        workers = {}
        for way in ways:
            command = [sys.executable, "-m", "benchmarks.qlora", "--child", way, "--model", str(model),
                       "--folder", str(folder), "--threads", str(threads),
                       *([] if compile else ["--no-compile"])]  # fmt: skip
            workers[way] = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        for way, worker in workers.items():
            assert worker.stdout is not None
            found[way] = {**json.loads(worker.stdout.readline()), "seconds": [], "own": [], "peak": 0}
        for _ in range(rounds):
            for way, worker in workers.items():
                assert worker.stdin is not None
                assert worker.stdout is not None
                worker.stdin.write("\n")
                worker.stdin.flush()
                told = json.loads(worker.stdout.readline())
                for key in ("seconds", "own"):
                    found[way][key].append(round(told[key], 3))
                found[way]["peak"] = told["peak"]
        for worker in workers.values():
            worker.communicate()
    for row in found.values():
        for key, name in (("seconds", "tokens_per_second"), ("own", "tokens_per_own_second")):
            row[name] = round(ROW * ROWS / statistics.median(row[key]), 1)
    return {"machine": machine.describe(threads), "compile": compile, "rounds": rounds, "ways": found}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=Path("weights/m27-nano"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--ways", nargs="*", choices=tuple(WAYS), help="only these")
    parser.add_argument("--no-compile", action="store_true", help="as written, without the compiler")
    parser.add_argument("--child", choices=tuple(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.child:
        child(given.model, given.folder, given.child, given.threads, not given.no_compile)
        return
    ways = given.ways or tuple(WAYS)
    found = measure(given.model, given.threads, given.rounds, ways, not given.no_compile)
    for way, row in found["ways"].items():
        print(
            f"{way:26} {row['tokens_per_second']:8.1f} tokens/s ({row['tokens_per_own_second']:.1f} a second "
            f"of the processor)   {row['peak'] / 1e6:7.0f} MB in steps   "
            f"{row['loading'] / 1e6:7.0f} MB while loading"
        )
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
