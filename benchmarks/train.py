"""Speed and memory of training on a CPU, beside `transformers.Trainer`: full training, and LoRA beside PEFT.

    python -m benchmarks.train
    python -m benchmarks.train --only m27 "Trainer compiled" --kinds lora --steps 4
    python -m benchmarks.train --device cuda --size 1b7 --rows 8 --row 2048 --kinds full

Same model from the same seed, same ids, every token a target, rows full (with position ids), two rows of 512 a
step. Each contender is a process of its own; they take turns, two steps each, and figures are medians of all
steps but the first two of each. Trainer is measured as it is by default, and at its fastest: compiled, without
clipping, in float32 and under bfloat16 (with LoRA the frozen model too in bfloat16), the last one only where
torch's products are faster so, or where it is named. Ours always clips. Two processes are held at a time, ours
beside one peer, which is compared with ours of its heat. Memory is the most that a process ever held. The share
of the peak is that of the step's products (6 times weights times tokens, of LoRA 4 times, and attention's) in
what torch's bfloat16 product of 2048 x 2048 reaches on this machine, measured in the same rounds. Writes
benchmarks/results/train.json. On a GPU each contender is alone on it, Trainer runs under bfloat16 autocast, memory is
the GPU's, MFU is of what the maker states, and the results go to train-gpu.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from benchmarks.train_sides import ON_GPU, TRAINERS, WARM, Task
from m27.codec.media import write_atomic
from m27.model.config import SIZES

OURS = "m27"
TURN = 2  # steps
BARS = {("full", "default"): 1.5, ("full", "fastest"): 1.15, ("lora", "fastest"): 1.1}
MFU = 0.5  # on a GPU
RESULTS = Path(__file__).parent / "results"


class Side:
    """A child process that does steps when told."""

    def __init__(self, name: str, task: Task, patience: float) -> None:
        self.name, self.patience = name, patience
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.peak_mb = 0
        self.failed = ""
        # One file for what it says beside its answers: a pipe would fill up.
        self.log = Path(f"/tmp/m27-train-{task.kind}-{name.replace(' ', '-')}.log")
        command = [sys.executable, "-m", "benchmarks.train_sides", name, json.dumps(asdict(task))]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        begin = time.monotonic()
        answer = self._answer()
        self.start_seconds = round(time.monotonic() - begin, 1)
        self.losses += answer.get("losses", [])

    def turn(self, steps: int) -> dict[str, Any]:
        """Do some steps; what the child answers."""
        answer = self._ask(f"{steps}\n")
        self.seconds += answer.get("seconds", [])
        self.losses += answer.get("losses", [])
        return answer

    def end(self) -> None:
        """Let it say what it held, and go."""
        if not self.failed:
            self.peak_mb = int(self._ask("\n").get("peak_mb", 0))
        self.process.kill()
        with contextlib.suppress(OSError):
            self.process.communicate()

    def _ask(self, line: str) -> dict[str, Any]:
        if self.failed or self.process.stdin is None:
            return {}
        try:
            self.process.stdin.write(line)
            self.process.stdin.flush()
        except OSError:
            return self._fail("it ended")
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        watch = threading.Timer(self.patience, self.process.kill)
        watch.start()
        try:
            assert self.process.stdout is not None
            line = self.process.stdout.readline()
        finally:
            watch.cancel()
        if not line:
            return self._fail("it ended, or took too long")
        found: dict[str, Any] = json.loads(line)
        return found

    def _fail(self, why: str) -> dict[str, Any]:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        with contextlib.suppress(subprocess.TimeoutExpired):
            if self.process.wait(5) == -9:
                why += " (killed: memory was short, or patience)"
        self.failed = f"{why}: {lines[-1][:200] if lines else 'without a word'}"
        return {}


def flops(task: Task) -> float:
    """Of the matrix products of a step; attention counts the past alone."""
    c = SIZES[task.size]
    block = c.dim * c.head_dim * (2 * c.n_heads + 2 * c.n_kv_heads) + 3 * c.dim * c.ffn_dim
    weights = c.n_layers * block + c.vocab_size * c.dim
    tokens = task.rows * task.row
    attention = 3 * c.n_layers * 2 * tokens * task.row * c.n_heads * c.head_dim
    return (6 if task.kind == "full" else 4) * float(weights) * tokens + attention


def heats(
    names: Sequence[str], peaks: Mapping[str, float], all_of_them: bool, device: str = "cpu"
) -> list[list[str]]:
    """Ours beside a peer each (the memory of two is too much for a small machine); without a peer that cannot be
    the fastest, unless it is asked for. On a GPU each by itself."""
    if device != "cpu":
        return [[name] for name in names]
    slow = set()
    if not all_of_them and peaks["bfloat16"] < peaks["float32"]:
        slow = {name for name, settings in TRAINERS.items() if settings.get("bf16")}
    peers = [name for name in names if name != OURS and name not in slow]
    ours = [OURS] if OURS in names else []
    return [[*ours, peer] for peer in peers] or [ours]


def race(task: Task, names: Sequence[str], steps: int, patience: float, all_of_them: bool) -> dict[str, Any]:
    """Measure the contenders of one kind, turn by turn."""
    limit = Side("peak", task, patience)
    peaks: dict[str, float] = {}

    def measure_peak() -> None:
        for name, value in limit.turn(1).items():
            peaks[name] = max(peaks.get(name, 0.0), round(value, 1))

    measure_peak()
    work = flops(task)
    rows: dict[str, dict[str, Any]] = {}
    for members in heats(names, peaks, all_of_them, task.device):
        sides = []
        for name in members:
            print(f"{task.kind}: {name} begins", file=sys.stderr, flush=True)
            sides.append(Side(name, task, patience))
        for number in range(-(-steps // TURN)):
            measure_peak()
            turned = number % len(sides)
            for side in sides[turned:] + sides[:turned]:
                side.turn(TURN)
        for side in sides:
            side.end()
        heat = {side.name: row(side, task, work) for side in sides}
        pace = {**rows, **heat}.get(OURS, {}).get("tokens_per_second")
        for name, one in heat.items():
            if pace and "failed" not in one:
                one["ours_over_it"] = round(pace / one["tokens_per_second"], 3)
            rows.setdefault(name, one)
    limit.end()
    for one in rows.values():
        if "failed" not in one:
            one["of_bfloat16_peak"] = round(one["gflop_per_second"] / peaks["bfloat16"], 3)
            if "stated" in peaks:
                one["mfu"] = round(one["gflop_per_second"] / peaks["stated"], 3)
    return {"gflop_a_step": round(work / 1e9, 1), "peaks": peaks, "contenders": rows}


def row(side: Side, task: Task, work: float) -> dict[str, Any]:
    """What is written down of a contender."""
    if side.failed or not side.seconds:
        return {"failed": side.failed or "no step"}
    middle = statistics.median(side.seconds)
    return {
        "tokens_per_second": round(task.rows * task.row / middle, 1),
        "seconds": [round(s, 4) for s in side.seconds], "peak_mb": side.peak_mb,
        "gflop_per_second": round(work / middle / 1e9, 1),
        "start_seconds": side.start_seconds, "losses": [round(x, 4) for x in side.losses],
    }  # fmt: skip


def bars(kinds: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each bar that can be told from what was measured."""
    out: list[dict[str, Any]] = []
    for kind, found in kinds.items():
        if "mfu" in (mine := found["contenders"].get(OURS, {})):
            out.append({
                "bar": f"{kind}, MFU", "peer": "–", "ratio": mine["mfu"], "least": MFU, "no_more_memory": True,
                "met": mine["mfu"] >= MFU,
            })  # fmt: skip
    for (kind, against), least in BARS.items():
        rows = kinds.get(kind, {}).get("contenders", {})
        rows = {name: row for name, row in rows.items() if "failed" not in row}
        peers = {n: r for n, r in rows.items() if n != OURS and (against == "fastest" or n == "Trainer")}
        if OURS not in rows or not peers:
            continue
        peer = min(peers, key=lambda name: float(peers[name]["ours_over_it"]))
        ratio = peers[peer]["ours_over_it"]
        memory = rows[OURS]["peak_mb"] <= peers[peer]["peak_mb"]
        out.append({
            "bar": f"{kind}, against Trainer's {against}", "peer": peer, "ratio": ratio,
            "least": least, "no_more_memory": memory, "met": ratio >= least and memory,
        })  # fmt: skip
    return out


def table(found: Mapping[str, Any]) -> str:
    """Markdown of everything measured."""
    about = found["machine"]
    lines = [f"{found['date']}, {about['processor']}, {about['threads']} threads", ""]
    for kind, part in found["kinds"].items():
        peaks = ", ".join(f"{name} {value:.0f}" for name, value in part["peaks"].items())
        lines += [
            f"{kind}: {part['gflop_a_step']:.0f} GFLOP a step; peaks in GFLOP/s: {peaks}", "",
            "| | tokens/s | GFLOP/s | of the bfloat16 peak | most memory, MB | first steps, s | loss |",
            "|---|---|---|---|---|---|---|",
        ]  # fmt: skip
        for name, row in part["contenders"].items():
            if "failed" in row:
                lines.append(f"| {name} | could not take part: {row['failed']} | | | | | |")
                continue
            lines.append(
                f"| {name} | {row['tokens_per_second']:.1f} | {row['gflop_per_second']:.0f} "
                f"| {row['of_bfloat16_peak']:.0%} | {row['peak_mb']:,} | {row['start_seconds']} "
                f"| {row['losses'][0]:.3f} → {row['losses'][-1]:.3f} |"
            )
        lines.append("")
    lines += ["| bar | peer | ratio | asked | no more memory | met |", "|---|---|---|---|---|---|"]
    for bar in found["bars"]:
        lines.append(
            f"| {bar['bar']} | {bar['peer']} | {bar['ratio']:.2f} | {bar['least']:g} "
            f"| {'yes' if bar['no_more_memory'] else 'no'} | {'yes' if bar['met'] else 'no'} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    names = [OURS, *{**TRAINERS, **ON_GPU}]
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=8, help="measured steps of each contender in a heat")
    parser.add_argument("--kinds", nargs="+", choices=("full", "lora"), default=["full", "lora"])
    parser.add_argument("--only", nargs="+", choices=names, help="contenders")
    parser.add_argument("--size", choices=[name for name, size in SIZES.items() if not size.n_experts], default="nano")
    parser.add_argument("--device", default="cpu", help="cpu, or a GPU as torch names it: cuda, cuda:1")
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--row", type=int, default=512, help="tokens")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--patience", type=float, default=400, help="seconds for a contender's first steps")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    on_gpu = given.device != "cpu"
    out = given.out or RESULTS / ("train-gpu.json" if on_gpu else "train.json")
    found: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"), "machine": machine.describe(given.threads),
        "shape": {"size": given.size, "rows": given.rows, "row": given.row, "steps": given.steps, "warm": WARM},
        "kinds": {},
    }  # fmt: skip
    if on_gpu:
        found["machine"] |= {"processor": torch.cuda.get_device_name(given.device), "torch": torch.__version__}
    for kind in given.kinds:
        task = Task(kind, given.size, given.rows, given.row, given.threads, device=given.device)
        chosen = given.only or [OURS, *(ON_GPU if on_gpu else TRAINERS)]
        found["kinds"][kind] = race(task, chosen, given.steps, given.patience, given.only is not None)
        found["bars"] = bars(found["kinds"])  # written after each kind: a run that is cut off leaves what it has
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, (json.dumps(found, indent=1, ensure_ascii=False) + "\n").encode())
    print(table(found))


if __name__ == "__main__":
    main()
