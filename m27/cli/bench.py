"""`m27 bench`: what a user of a checkpoint waits for and pays in memory, measured on this machine.

Whole requests go through the engine, so grammar, sampling, guidance and streaming are inside every
figure. The comparison with other engines is `benchmarks/engine.py`.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from m27.cli.console import (
    AdapterOption,
    InputError,
    ModelOption,
    PrecisionOption,
    ThreadsOption,
    busy,
    check_model,
)

if TYPE_CHECKING:
    from m27.infer.engine import Engine

Figures = dict[str, float]
Timeline = list[tuple[float, int, dict[str, Any]]]  # seconds, number of the request, event


class What(StrEnum):
    """What can be measured."""

    decode = "decode"
    prefill = "prefill"
    batch = "batch"
    image = "image"
    audio = "audio"


def bench(
    model: ModelOption,
    what: Annotated[list[What] | None, typer.Argument(help="Default: all of them.")] = None,
    adapter: AdapterOption = None,
    precision: PrecisionOption = "auto",
    threads: ThreadsOption = 0,
    prompt: Annotated[int, typer.Option(help="Tokens of the prompt of decode and prefill.")] = 512,
    tokens: Annotated[int, typer.Option(help="Tokens of text that are written.")] = 128,
    requests: Annotated[int, typer.Option(help="Requests of batch, each of half the prompt.")] = 16,
    seconds: Annotated[float, typer.Option(help="Length of the sound.")] = 5.0,
    runs: Annotated[int, typer.Option(help="Medians are of so many.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Measure speed and memory: decode, prefill, batch, image, audio."""
    check_model(model)
    numbers = {"prompt": prompt, "tokens": tokens, "requests": requests, "runs": runs}
    for name, value in numbers.items():
        if value < (2 if name == "tokens" else 1):
            raise InputError(f"--{name} {value}: is too few")
    codes = round(seconds * 40)
    if codes < 1:
        raise InputError(f"--seconds {seconds:g}: is too short")
    from m27.infer.engine import Engine
    from m27.infer.scheduler import Limits

    began = time.perf_counter()
    with busy("loading"):
        # Every run computes its prompt: what an earlier one left must not be found.
        limits = Limits(reuse=False)
        engine = Engine.load(model, precision=precision, threads=threads, limits=limits, adapter=adapter)
    loaded = time.perf_counter() - began
    measures: dict[What, Callable[[], Figures]] = {
        What.decode: lambda: decode(engine, prompt, tokens),
        What.prefill: lambda: prefill(engine, prompt),
        What.batch: lambda: batch(engine, requests, max(1, prompt // 2), tokens),
        What.image: lambda: image(engine),
        What.audio: lambda: audio(engine, codes),
    }
    found: dict[str, Figures] = {}
    try:
        for name in what or list(What):
            with busy(name.value):
                found[name.value] = medians(measures[name], runs)
        facts = engine.runner.facts()
    finally:
        getattr(engine, "close", lambda: None)()
    resident, peak = memory()
    result: dict[str, Any] = {
        "model": str(model), "adapter": None if adapter is None else str(adapter),
        **{k: facts[k] for k in sorted(facts)}, "runs": runs,
        "load_seconds": round(loaded, 3), **found, "resident_mb": resident, "peak_mb": peak,
    }  # fmt: skip
    if as_json:
        print(json.dumps(result, ensure_ascii=False, default=str))
        return
    for name, value in result.items():
        pairs = value.items() if isinstance(value, dict) else [("", value)]
        for figure, amount in pairs:
            shown = f"{amount:,.4g}" if isinstance(amount, float) else str(amount)
            print(f"{' '.join((name, figure)).strip().replace('_', ' ')}: {shown}")


def medians(measure: Callable[[], Figures], runs: int) -> Figures:
    """Of each figure the median of `runs`, after one run that does not count."""
    measure()
    found = [measure() for _ in range(runs)]
    return {name: round(statistics.median(row[name] for row in found), 4) for name in found[0]}


def decode(engine: "Engine", prompt: int, tokens: int) -> Figures:
    """Tokens a second of one answer, its first one apart."""
    ((start, end, count),) = _written(engine, [words(engine, prompt)], tokens)
    return {"tokens_per_second": (count - 1) / max(end - start, 1e-9)}


def prefill(engine: "Engine", prompt: int) -> Figures:
    """Seconds to the first token, and the prompt's tokens a second by that."""
    content = words(engine, prompt)
    began = time.perf_counter()
    ((_, end, _),) = _written(engine, [content], 1)
    return {"tokens_per_second": prompt / (end - began), "first_token_seconds": end - began}


def batch(engine: "Engine", requests: int, prompt: int, tokens: int) -> Figures:
    """Tokens a second of answers to requests that arrive together, their prefill included."""
    contents = [words(engine, prompt, skip=i) for i in range(requests)]
    began = time.perf_counter()
    rows = _written(engine, contents, tokens)
    return {"tokens_per_second": sum(row[2] for row in rows) / (time.perf_counter() - began)}


def image(engine: "Engine") -> Figures:
    """Seconds until a picture of 128 × 128 is there, from a short prompt, with guidance."""
    timeline, began = _timeline(engine, [{"content": "Draw a red apple.", "plan": ("image",)}])
    return {"seconds": _when(timeline, "image") - began}


def audio(engine: "Engine", codes: int) -> Figures:
    """Seconds until a sound is there, and from its opening to the first packet of it."""
    bounds = {"min_audio_codes": codes, "max_audio_codes": codes, "max_tokens": codes + 8}
    timeline, began = _timeline(engine, [dict(content="Say: hello", plan=("audio",), **bounds)])
    opened = _when(timeline, "audio_begin")
    whole = _when(timeline, "audio")
    first = min((at for at, _, event in timeline if event["type"] == "audio_delta"), default=whole)
    return {"seconds": whole - began, "first_packet_seconds": first - opened}


def words(engine: "Engine", tokens: int, skip: int = 0) -> str:
    """Plain words that make a conversation of about so many tokens (never fewer than the template
    takes); another beginning for each `skip`."""
    spell = engine.processor.encode
    list_of = "apple river stone cloud bread window garden letter morning silver".split()
    text: list[str] = [f"{skip + 1}:"]
    while True:
        text.append(list_of[(len(text) + skip) % len(list_of)])
        message = {"role": "user", "content": " ".join(text)}
        if len(spell([message], generate=True).ids) >= tokens:
            return " ".join(text)


def _written(
    engine: "Engine", contents: list[str], tokens: int
) -> Iterator[tuple[float, float, int]] | list[tuple[float, float, int]]:
    """For each answer the moments of its first and its last event, and its tokens."""
    asked = [
        {"content": c, "modalities": ("text",), "max_tokens": tokens + 1, "min_text": tokens, "temperature": 0.0,
             "repetition_penalty": 1.0}
        for c in contents
    ]  # fmt: skip
    timeline, _ = _timeline(engine, asked)
    rows: list[tuple[float, float, int]] = []
    for number in sorted({number for _, number, _ in timeline}):
        mine = [(at, event) for at, other, event in timeline if other == number]
        # The id that ends the turn is not computed: it is the only one allowed there.
        rows.append((mine[0][0], mine[-1][0], mine[-1][1]["usage"].completion_tokens - 1))
    return rows


def _timeline(engine: "Engine", asked: list[dict[str, Any]]) -> tuple[Timeline, float]:
    """Every event with its moment, and the moment of the beginning. Raises InputError for a request
    that failed."""
    from m27.infer.request import Request

    requests = [
        Request(messages=[{"role": "user", "content": settings.pop("content")}], seed=i, **settings)
        for i, settings in enumerate(asked)
    ]
    timeline: Timeline = []
    began = time.perf_counter()
    for request in requests:
        engine.add(request)
    while engine.busy():
        for number, event in engine.step():
            if event["type"] == "error":
                raise InputError(str(event["message"]))
            timeline.append((time.perf_counter(), number, event))
    return timeline, began


def _when(timeline: Timeline, kind: str) -> float:
    """When the first event of a kind came; the end where none did."""
    return next((at for at, _, event in timeline if event["type"] == kind), timeline[-1][0])


def memory() -> tuple[int, int]:
    """Resident memory of this process and its peak, in MB (10^6); 0 where that is not told."""
    try:
        import resource
    except ImportError:  # Windows
        return 0, 0
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0, round(peak / 1e6)
    return round(pages * resource.getpagesize() / 1e6), round(peak / 1e6)
