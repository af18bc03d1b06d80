"""What the GPU benchmark's parts share: made-up models, their processor, prompts, clocks, reports."""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from m27.infer.engine import Engine
from m27.infer.request import Request
from m27.infer.runner import Batch, Wanted
from m27.infer.turn import prepare
from m27.language.bytelevel import byte_characters
from m27.language.processor import Processor
from m27.language.vocabulary import BASE_CONTROL, Vocabulary, build_tokenizer
from m27.model.config import SIZES, Config
from m27.model.decoder import Decoder

Ids = list[int]


@dataclass
class Report:
    """Figures of one part, written to `path` after each of them."""

    path: Path
    figures: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)

    def tell(self, name: str, value: Any) -> None:
        """Keep a figure, write all so far, and print it."""
        self.figures[name] = value
        self.figures["seconds"] = round(self.elapsed, 1)
        write(self.path, self.figures)
        print(f"[{self.elapsed:5.1f} s] {name}: {json.dumps(value)[:600]}", flush=True)

    @property
    def elapsed(self) -> float:
        """Seconds since the part began."""
        return time.perf_counter() - self.began


def write(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(temporary, path)


def median(seconds: Sequence[float]) -> float:
    """The median."""
    return statistics.median(seconds)


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds that `work` takes, to the end of what it started on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def made_processor(tiny: bool) -> Processor:
    """A byte-level processor without codecs, whose vocabulary is as large as the shipped one's."""
    base = [*BASE_CONTROL, *byte_characters()]
    if not tiny:
        base += [f"word{n}" for n in range(49_152 - len(base))]
    sizes = (16, 8) if tiny else (16_384, 8_192)
    tokenizer, vocabulary = build_tokenizer(base, [], None, *sizes)
    return Processor(tokenizer, vocabulary)


def made_model(
    size: str, vocabulary: Vocabulary, device: torch.device, tiny: bool
) -> tuple[Config, Decoder]:
    """A decoder with random weights in bfloat16. Rows of ids that are no text are zero, so that text
    is what it says."""
    config = SIZES[size]
    if tiny:
        one = size == "1b7"
        config = replace(
            SIZES["tiny"], vocab_size=vocabulary.size, n_kv_heads=4 if one else 2, max_len=1024,
            dim=64, bos_id=1, eos_id=2, pad_id=2,
        )  # fmt: skip
    torch.manual_seed(27)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = Decoder(config).eval()
    finally:
        torch.set_default_dtype(usual)
    text = torch.zeros(config.vocab_size, dtype=torch.bool, device=device)
    for start, stop in vocabulary.text_spans:
        text[start:stop] = True
    with torch.no_grad():
        model.output_weight[~text] = 0.0
    return config, model.requires_grad_(False)


def made_requests(
    processor: Processor, count: int, length: int, out: int, seed: int
) -> list[Request]:
    """Requests whose prompts are `length` ids of random letters; each is answered with `out` ids."""
    rng = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"

    def request(content: str) -> Request:
        return Request(
            messages=[{"role": "user", "content": content}], modalities=("text",),
            max_tokens=out + 1, min_text=out, temperature=0.0, repetition_penalty=1.0, seed=0,
        )  # fmt: skip

    around = len(prompt_of(processor, request("x"))) - 1
    return [
        request("".join(rng.choice(letters) for _ in range(length - around))) for _ in range(count)
    ]


def prompt_of(processor: Processor, request: Request) -> Ids:
    """The ids that the engine makes of a request."""
    return list(prepare(processor, request, 8192).prompt)


def answers(engine: Engine, asked: Sequence[Request], out: int) -> tuple[list[Ids], float, int]:
    """The first `out` ids of every answer, the seconds to the last, and the engine's steps.

    Raises RuntimeError where a request fails.
    """
    steps, began = engine.metrics()["steps"], time.perf_counter()
    places = {engine.add(request): n for n, request in enumerate(asked)}
    found: list[Ids] = [[] for _ in asked]
    while engine.busy():
        for number, event in engine.step():
            if event["type"] == "error":
                raise RuntimeError(event["message"])
            if event["type"] == "done":
                found[places[number]] = list(event["ids"][:out])
    return found, time.perf_counter() - began, engine.metrics()["steps"] - steps


def one_row(ids: Sequence[int], held: int, table: Sequence[int], size: int, rows: int) -> Batch:
    """A step of one sequence: `ids` behind `held` tokens; the best of `rows` ids is asked for."""
    places = np.arange(held, held + len(ids), dtype=np.int32)
    blocks = np.array(table, np.int32)
    return Batch(
        ids=np.array(ids, np.int32), positions=places,
        slots=(blocks[places // size] * size + places % size).astype(np.int32),
        starts=np.array([0, len(ids)], np.int32), tables=blocks[None],
        adapters=np.array([-1], np.int32),
        wanted=[Wanted(((0, rows),), [len(ids) - 1], best=True)],
    )  # fmt: skip


def leading(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids two answers have in common before they part."""
    for number, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return number
    return min(len(one), len(other))


def facts(device: torch.device) -> dict[str, Any]:
    """What a figure has to say of where it was taken."""
    out: dict[str, Any] = {
        "torch": torch.__version__, "python": sys.version.split()[0],
        "device": "cpu",
    }  # fmt: skip
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        out |= {
            "device": properties.name, "cuda": torch.version.cuda,
            "memory_GiB": round(properties.total_memory / 2**30, 1),
            "multiprocessors": properties.multi_processor_count,
        }  # fmt: skip
    return out
