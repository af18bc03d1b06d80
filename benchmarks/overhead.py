"""What a step costs besides the model: scheduling, grammar, sampling, guidance and events, in Python.

    python benchmarks/overhead.py [--precision int4]

A runner that computes nothing gives random logits of nano's vocabulary at once, so the time of a step is the
engine's own. Medians over steps, in milliseconds of processor time, by what is answered and how many at once:
with ids drawn in Python, and in C++ by one thread (within a step the threads share the rows). With `--precision`
the C++ step of the shipped weights runs too, and the share of a whole step is told; that means something on an
idle machine alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from m27.codec.media import write_atomic
from m27.infer.cpu import binding, drawing
from m27.infer.engine import Engine
from m27.infer.load import load_runner
from m27.infer.request import Request
from m27.infer.runner import Adapter, Answered, Batch
from m27.infer.scheduler import Limits
from m27.language.processor import Processor
from m27.language.vocabulary import Vocabulary
from m27.model.config import SIZES


class Nothing:
    """A runner that computes nothing: rows of random logits, spread as a trained model's are."""

    def __init__(self, vocabulary: Vocabulary, draws: bool) -> None:
        self.draws = draws
        self.config, self.block_size, self.blocks = SIZES["nano"], 16, 4096
        rng = np.random.default_rng(0)
        self._logits = (3 * rng.standard_normal(SIZES["nano"].vocab_size * 2)).astype(np.float32)
        self._logits[vocabulary.turn_end] = -50.0
        self.seconds = 0.0
        self._step = 0

    def run(self, batch: Batch) -> list[Answered]:
        """Rows of random logits, or the ids drawn from them; the time it takes to copy them is the
        runner's."""
        begun = time.thread_time()
        self._step += 1
        out: list[Answered] = []
        for wanted in batch.wanted:
            width = sum(end - start for start, end in wanted.spans)
            rows = np.empty((len(wanted.tokens), width), dtype=np.float32)
            for number, row in enumerate(rows):
                at = (self._step * 7919 + number * 104_729) % (len(self._logits) - width)
                row[:] = self._logits[at : at + width]
            rows[:, 0] = -50.0 if width > 1 else 0.0
            out.append(rows)
        drew = 0.0
        for number, wanted in enumerate(batch.wanted):
            if wanted.draws:
                out[number], took = drawing.draw(binding.library().raw, out[number], wanted.spans, wanted.draws)
                drew += took
        self.seconds = time.thread_time() - begun - drew
        for wanted in batch.wanted:
            drawing.Packed(wanted.draws)  # what the CPU runner does in Python
        return out

    def add_adapter(self, adapter: Adapter) -> int:
        """Nothing is kept."""
        return 0

    def remove_adapter(self, number: int) -> None:
        """Nothing was kept."""

    def facts(self) -> dict[str, Any]:
        """There are none."""
        return {}


CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "1 text": (1, {"modalities": ("text",), "max_tokens": 300, "min_text": 300}),
    "1 text, greedy": (1, {"modalities": ("text",), "max_tokens": 300, "min_text": 300, "temperature": 0.0}),
    "1 sound": (1, {"plan": ("audio",), "min_audio_codes": 300, "max_audio_codes": 300}),
    "1 picture, guided": (1, {"plan": ("image",), "image_grid": (16, 16)}),
    "16 texts": (16, {"modalities": ("text",), "max_tokens": 300, "min_text": 300}),
    "16 pictures, guided": (16, {"plan": ("image",), "image_grid": (16, 16)}),
    "64 texts": (64, {"modalities": ("text",), "max_tokens": 300, "min_text": 300}),
    "64 texts, temperature 1": (64, {"modalities": ("text",), "max_tokens": 300, "min_text": 300, "temperature": 1.0}),
}


def measure(
    processor: Processor, count: int, options: dict[str, Any], draws: bool
) -> dict[str, float]:
    """Median milliseconds of a step, the runner's own time left out."""
    runner = Nothing(processor.vocabulary, draws)
    engine = Engine(runner, processor, Limits(sequences=count))
    for seed in range(count):
        messages = [{"role": "user", "content": "Tell me about the sea, and draw it."}]
        engine.add(Request(messages, seed=seed, **options))
    spent: list[float] = []
    while engine.busy() and len(spent) < 260:
        begun = time.thread_time()
        engine.step()
        spent.append(1000 * (time.thread_time() - begun - runner.seconds))
    inner = sorted(spent[10:-5])
    return {"median": statistics.median(inner), "p90": inner[int(0.9 * len(inner))]}


def whole(
    folder: Path, precision: str, processor: Processor, count: int, options: dict[str, Any]
) -> float:
    """Median milliseconds of a whole step that decodes, everything included (wall clock)."""
    limits = Limits(sequences=count, blocks=1024)
    engine = Engine(load_runner(folder, precision, "cpu", "cpu", 0, limits, "auto"), processor, limits)
    for seed in range(count):
        messages = [{"role": "user", "content": "Tell me about the sea, and draw it."}]
        engine.add(Request(messages, seed=seed, **options))
    spent: list[float] = []
    while engine.busy() and len(spent) < 40:
        begun = time.perf_counter()
        engine.step()
        spent.append(1000 * (time.perf_counter() - begun))
    return statistics.median(spent[10:])


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("weights/m27-nano"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/overhead.json"))
    parser.add_argument("--precision", help="also run the C++ step of the weights so, for shares of it")
    parser.add_argument("--case", action="append", choices=CASES, help="only this one; may be repeated")
    given = parser.parse_args()
    loaded = Processor.load(given.model)
    # Without codecs: what they take is spent beside the step.
    processor = Processor(loaded._tokenizer, loaded.vocabulary)
    figures: dict[str, dict[str, Any]] = {}
    able = binding.library().draws
    for name in given.case or CASES:
        count, options = CASES[name]
        found = figures[name] = {"python": measure(processor, count, options, False)}
        if able:
            found["c++"] = measure(processor, count, options, True)
        line = "".join(f"   {who} {ms['median']:7.3f} ms (p90 {ms['p90']:.3f})" for who, ms in found.items())
        if given.precision:
            step = whole(given.model, given.precision, processor, count, options)
            own = found["c++" if able else "python"]["median"]
            figures[name] |= {"step": {"median": step, "precision": given.precision}}
            line += f"   of a step of {step:.1f} ms {own / step:.1%}"
        print(f"{name:24}{line}", flush=True)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(given.out, (json.dumps(figures, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
