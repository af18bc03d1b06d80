"""What the server counts, in Prometheus' text form (exposition format 0.0.4).

Own counts are for the event loop's thread, the engine's come from its own `metrics`. Knows no route
and no request.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SMALL = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
STATES = ("ok", "stuck", "dead", "closed")
Labels = tuple[tuple[str, str], ...]

COUNTERS = {
    "m27_requests_total": "Requests that were answered, by route and status.",
    "m27_refused_total": "Requests and media that were refused, by reason.",
    "m27_disconnects_total": "Clients that left before their answer was whole.",
    "m27_tokens_total": "Tokens by medium: of prompts, found in the cache, and of text, image and audio produced.",
}
HISTOGRAMS: dict[str, tuple[str, tuple[float, ...]]] = {
    "m27_request_seconds": ("From a request's head to its last byte, by route.", _SECONDS),
    "m27_time_to_first_token_seconds": ("From a request's head to the first of its answer.", _SECONDS),
    "m27_time_per_output_token_seconds": ("Between the tokens of an answer after the first.", _SMALL),
    "m27_media_seconds": ("Work on one medium: decode, encode or write, by kind.", _SECONDS),
}
# Of the engine's own counts: name, help, and whether it is a gauge.
ENGINE = {
    "running": ("m27_engine_running", "Answers under way.", True),
    "waiting": ("m27_engine_waiting", "Answers that wait for their turn.", True),
    "preempted": ("m27_engine_preempted_total", "Answers that gave up their blocks.", False),
    "steps": ("m27_engine_steps_total", "Steps computed.", False),
    "tokens": ("m27_engine_tokens_total", "Tokens computed, prompts included.", False),
    "finished": ("m27_engine_finished_total", "Requests answered.", False),
    "cancelled": ("m27_engine_cancelled_total", "Requests let go of.", False),
    "failed": ("m27_engine_failed_total", "Requests that failed.", False),
    "refused": ("m27_engine_refused_total", "Requests that limits kept out.", False),
    "prompt_tokens_found": ("m27_prefix_cache_hit_tokens_total", "Prompt tokens found.", False),
    "prompt_tokens_asked": ("m27_prefix_cache_query_tokens_total", "Those looked for.", False),
}


class Histogram:
    """Counts of values up to each bound, and their sum."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Note one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Metrics:
    """The server's counts."""

    def __init__(self) -> None:
        self._started = time.time()
        self._counters: dict[str, dict[Labels, float]] = {n: defaultdict(float) for n in COUNTERS}
        self._histograms: dict[str, dict[Labels, Histogram]] = {n: {} for n in HISTOGRAMS}
        self.in_flight = 0

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter of `COUNTERS`."""
        self._counters[name][tuple(sorted(labels.items()))] += amount

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add a value to a histogram of `HISTOGRAMS`."""
        key = tuple(sorted(labels.items()))
        if key not in self._histograms[name]:
            self._histograms[name][key] = Histogram(HISTOGRAMS[name][1])
        self._histograms[name][key].add(value)

    def refused(self, reason: str) -> None:
        """Count what was refused."""
        self.count("m27_refused_total", reason=reason)

    @contextmanager
    def timed(self, work: str, medium: str) -> Iterator[None]:
        """Note the seconds that work on a medium takes."""
        began = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - began
            self.observe("m27_media_seconds", seconds, work=work, medium=medium)

    def render(self, engine: Mapping[str, Any], state: str, gate: Mapping[str, Any]) -> str:
        """The whole text; `engine` and `gate` are their own counts, `state` what /health says."""
        lines: list[str] = []
        for name, text in COUNTERS.items():
            lines += _family(name, "counter", text, self._counters[name].items())
        for name, (text, _) in HISTOGRAMS.items():
            lines += _histogram(name, text, self._histograms[name])
        for key, (name, text, gauge) in ENGINE.items():
            if key in engine:
                lines += _family(name, "gauge" if gauge else "counter", text, [((), engine[key])])
        blocks = engine.get("blocks", {})
        held = {k: blocks[k] for k in ("all", "used", "kept") if k in blocks}
        lines += _labelled("m27_cache_blocks", "gauge", "Blocks of the cache.", "state", held)
        spent = engine.get("seconds", {})
        text = "Seconds by part of a step."
        lines += _labelled("m27_engine_seconds_total", "counter", text, "part", spent)
        states = {known: float(known == state) for known in STATES}
        text = "Which state the engine is in."
        lines += _labelled("m27_engine_state", "gauge", text, "state", states)
        decoders = {k: gate[k] for k in ("workers", "busy", "waiting", "replaced") if k in gate}
        text = "Processes that decode media, and what waits for one."
        lines += _labelled("m27_decoders", "gauge", text, "what", decoders)
        flight = [((), float(self.in_flight))]
        lines += _family("m27_requests_in_flight", "gauge", "Requests being answered.", flight)
        lines += _family("process_start_time_seconds", "gauge", "Since 1970.", [((), self._started)])
        return "\n".join(lines) + "\n"


def _family(name: str, kind: str, text: str, rows: Iterable[tuple[Labels, float]]) -> list[str]:
    head = [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
    return head + [f"{name}{_braces(labels)} {_number(value)}" for labels, value in sorted(rows)]


def _labelled(
    name: str, kind: str, text: str, label: str, values: Mapping[str, float]
) -> list[str]:
    rows: list[tuple[Labels, float]] = [(((label, k),), float(v)) for k, v in values.items()]
    return _family(name, kind, text, rows)


def _histogram(name: str, text: str, rows: Mapping[Labels, Histogram]) -> list[str]:
    lines = [f"# HELP {name} {text}", f"# TYPE {name} histogram"]
    for labels, histogram in sorted(rows.items()):
        total = 0
        for bound, count in zip((*histogram.bounds, None), histogram.counts, strict=True):
            total += count
            le = "+Inf" if bound is None else _number(bound)
            lines.append(f"{name}_bucket{_braces((*labels, ('le', le)))} {total}")
        lines.append(f"{name}_sum{_braces(labels)} {_number(histogram.sum)}")
        lines.append(f"{name}_count{_braces(labels)} {total}")
    return lines


def _braces(labels: Labels) -> str:
    pairs = ",".join(f'{name}="{_quoted(value)}"' for name, value in labels)
    return f"{{{pairs}}}" if pairs else ""


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:.9g}"
