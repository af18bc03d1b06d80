"""What a user of the shipped weights waits for and pays in memory, one request at a time.

    python benchmarks/chat.py --threads 2 --runs 5

Medians over runs of: loading, reading a prompt, a token of text, a picture (128×128, with guidance), a second of
sound; and the peak of resident memory. Prints a Markdown table and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from m27.codec.media import write_atomic
from m27.infer.engine import Engine
from m27.infer.request import Request

PROMPT = "Here is a list of words. " + "apple river stone cloud bread " * 60


def ask(engine: Engine, content: Any, **settings: Any) -> tuple[float, float, int]:
    """(seconds to the first event, seconds in all, tokens produced) of one request."""
    begun, first = time.perf_counter(), 0.0
    usage = 0
    for event in engine.stream(
        Request(messages=[{"role": "user", "content": content}], seed=0, **settings)
    ):
        first = first or time.perf_counter() - begun
        if event["type"] == "done":
            usage = event["usage"].completion_tokens
    return first, time.perf_counter() - begun, usage


def measure(folder: Path, runs: int) -> dict[str, float]:
    """Every figure by name, in the unit its name ends with."""
    before = time.perf_counter()
    engine = Engine.load(folder)
    loaded = time.perf_counter() - before
    ask(engine, "Hello", max_tokens=4)  # warm-up
    picture = [
        {"type": "image", "path": "examples/samples/caption.png"},
        {"type": "text", "text": "Describe the picture."},
    ]
    rows: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        rows.setdefault(name, []).append(value)

    for _ in range(runs):
        _, seconds, _ = ask(engine, PROMPT, modalities=("text",), max_tokens=2)
        tokens = len(engine.processor.encode_text(PROMPT))
        note("prompt, tokens/s", tokens / seconds)
        first, seconds, count = ask(
            engine, "Tell me about the sea.", modalities=("text",), max_tokens=64
        )
        note("text, tokens/s", (count - 1) / (seconds - first))
        first, _, _ = ask(engine, picture, modalities=("text",), max_tokens=8)
        note("first word about a picture, s", first)
        _, seconds, _ = ask(engine, "Draw a red apple.", plan=("image",), max_tokens=72)
        note("a picture of 128×128, s", seconds)
        sound = {"min_audio_codes": 80, "max_audio_codes": 80}
        _, seconds, _ = ask(
            engine, "Say: hello", plan=("audio",), max_tokens=90, **sound
        )
        note("two seconds of sound, s", seconds)
    figures = {name: statistics.median(values) for name, values in rows.items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"loading, s": loaded, **figures, "peak memory, MB": peak}


def main() -> None:
    """Read the arguments, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("weights/m27-nano"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/chat.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    figures = measure(arguments.model, arguments.runs)
    print("| | |\n|---|---|")
    for name, value in figures.items():
        print(f"| {name} | {value:.3g} |" if value < 1000 else f"| {name} | {value:,.0f} |")
    where = {"machine": platform.machine(), "threads": arguments.threads, "torch": torch.__version__}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**where, "runs": arguments.runs, **figures}, indent=1, ensure_ascii=False)
    write_atomic(arguments.out, (text + "\n").encode())


if __name__ == "__main__":
    main()
