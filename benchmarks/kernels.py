"""The C++ step by itself, on random weights: what of the machine's bandwidth and arithmetic it reaches.

    python -m benchmarks.kernels --size nano --json out/kernels.json

Products alone (gigabytes a second for one token, giga-operations a second for 256), whole steps by
precision (a prompt of 512, one token behind it), and steps against batch and context, beside the read
bandwidth measured in the same run. Each figure is the median of several, with the fastest beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from m27.infer import quantize
from m27.infer.cpu import CpuRunner, binding
from m27.infer.runner import Batch, Wanted
from m27.model.config import SIZES, Config
from m27.model.gguf import Blocks

PRECISIONS = ("int4", "int8", "bfloat16", "float32")


def weights(config: Config, precision: str) -> dict[str, torch.Tensor | Blocks]:
    """Random tensors of a decoder, in blocks already where the precision has them, so loading is quick."""
    from m27.model.decoder import Decoder

    with torch.device("meta"):
        names = {name: value.shape for name, value in Decoder(config).state_dict().items()}
    draw = torch.Generator().manual_seed(0)
    out: dict[str, torch.Tensor | Blocks] = {}
    for name, shape in names.items():
        if len(shape) == 1:
            out[name] = torch.ones(shape)
            continue
        kind, groups = quantize.kind_of(name, precision), -(-shape[1] // 32)
        if kind in ("int8", "int4"):
            four = kind == "int4"
            size = (shape[0], groups * (16 if four else 32))
            low, high, dtype = (0, 256, torch.uint8) if four else (-127, 128, torch.int8)
            q = torch.randint(low, high, size, generator=draw, dtype=dtype)
            scale = torch.full((shape[0], groups), 0.05 / (8 if four else 127), dtype=torch.float16)
            out[name] = Blocks(q, scale, -7.5 * scale if four else None)
        else:
            out[name] = torch.empty(shape).uniform_(-0.05, 0.05, generator=draw)
    return out


def batch(rows: Sequence[tuple[int, int]], config: Config, block: int) -> tuple[Batch, int]:
    """A step of (first position, tokens) rows, each in blocks of its own, and the blocks it needs;
    the logits of text after each row's last token are asked for."""
    width = max(-(-(begin + count) // block) for begin, count in rows)
    tables = np.arange(len(rows) * width, dtype=np.int32).reshape(len(rows), width)
    at = [np.arange(begin, begin + count, dtype=np.int32) for begin, count in rows]
    slots = [tables[i, p // block] * block + p % block for i, p in enumerate(at)]
    starts = np.cumsum([0, *(count for _, count in rows)]).astype(np.int32)
    positions = np.concatenate(at)
    ids = (positions * 7919 % 40_000 % config.vocab_size).astype(np.int32)
    wanted = [Wanted(((0, min(49_152, config.vocab_size)),), [int(end) - 1 for end in starts[1:]])]
    made = Batch(
        ids, positions, np.concatenate(slots).astype(np.int32), starts, tables,
        np.full(len(rows), -1, np.int32), wanted,
    )  # fmt: skip
    return made, tables.size


def timed(run: Callable[[], Any], repeat: int) -> tuple[float, float]:
    """(median, fastest) seconds of a call, after one to warm up."""
    run()
    seconds = []
    for _ in range(repeat):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds), min(seconds)


def products(library: binding.Library, config: Config, threads: int, repeat: int) -> dict[str, Any]:
    """Gate and down projection by precision: GB/s for one token (from the cache), GOP/s for 256."""
    out: dict[str, Any] = {}
    draw = np.random.default_rng(0)
    for kind in PRECISIONS:
        row: dict[str, float] = {}
        for name, rows, cols in (("up", 2 * config.ffn_dim, config.dim), ("down", config.dim, config.ffn_dim)):
            w = torch.from_numpy(draw.standard_normal((rows, cols), np.float32)) * 0.05
            packed = quantize.pack(w, kind, lambda m, k, c: library.rounded(m, k, c, threads))
            size = sum(a.nbytes for a in (packed.values, packed.scale, packed.minimum) if a is not None)
            x = draw.standard_normal((256, cols), np.float32)
            one = statistics.median(library.product(kind, packed, x[:1], threads, 200)[1] for _ in range(repeat))
            many = statistics.median(library.product(kind, packed, x, threads, 3)[1] for _ in range(repeat))
            row[f"{name}_gb_s"] = round(size / one / 1e9, 1)
            row[f"{name}_gop_s"] = round(2e-9 * rows * cols * 256 / many, 1)
        out[kind] = row
    return out


def steps(config: Config, precision: str, threads: int, repeat: int, series: bool) -> dict[str, Any]:
    """Prompt of 512, one token behind it and 16 rows at 300; with `series`, batch and context too."""
    block = binding.library().block
    cases = {"prefill_512": [(0, 512)], "decode_after_512": [(520, 1)], "rows_16_at_300": [(300, 1)] * 16}
    if series:
        cases |= {f"batch_{n}": [(256, 1)] * n for n in (1, 2, 4, 8, 16, 32, 64)}
        longest = (n for n in (128, 512, 2048, 4096, 8191) if n < config.max_len)
        cases |= {f"context_{n}": [(n, 1)] for n in longest}
    made = {name: batch(rows, config, block) for name, rows in cases.items()}
    blocks = max(needed for _, needed in made.values())
    runner = CpuRunner.load(
        weights(config, precision), config, precision=precision, blocks=blocks, threads=threads
    )  # fmt: skip
    facts = runner.facts()
    out: dict[str, Any] = {"weight_mb": facts["weight_bytes"] >> 20, "cache": facts["cache"]}
    for name, (step, _) in made.items():
        often = repeat if len(step.ids) < 100 else max(3, repeat // 4)
        median, fastest = timed(lambda step=step: runner.run(step), often)
        out[name] = {
            "ms": round(1e3 * median, 3), "fastest_ms": round(1e3 * fastest, 3),
            "tokens_s": round(len(step.ids) / median, 1),
        }  # fmt: skip
    out["decode_gb_s"] = round(facts["weight_bytes"] / out["decode_after_512"]["ms"] / 1e6, 1)
    runner.close()
    return out


def main() -> None:
    """Parse the command line, measure, print JSON and write it where `--json` says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="nano", choices=sorted(SIZES))
    parser.add_argument("--precision", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--series", action="store_true", help="steps against batch and context too")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    library, config = binding.library(), SIZES[given.size]
    bandwidth = [library.raw.m27_bandwidth(256 << 20, given.threads, 2) for _ in range(5)]
    report: dict[str, Any] = {
        "size": given.size, "level": library.level, "threads": given.threads,
        "machine": platform.processor() or platform.machine(),
        "read_gb_s": round(statistics.median(bandwidth), 1),
        "products": products(library, config, given.threads, max(3, given.repeat // 3)),
        "steps": {p: steps(config, p, given.threads, given.repeat, given.series) for p in given.precision},
    }  # fmt: skip
    text = json.dumps(report, indent=2)
    print(text)
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
