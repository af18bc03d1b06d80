"""The page to watch while a run goes on: `watch.html` in its folder, one file, loading nothing.

Losses of each medium and of each task over the steps, the speed, the schedule, what is left, and samples with
their pictures and sounds inside, newest first. Written anew every half a minute from what the log says; the
samples are kept beside it, so that a resumed run shows the earlier ones too. It knows no model.
"""

from __future__ import annotations

import html
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

_EVERY = 30.0  # seconds between two writings of the page
_POINTS = 240  # of a curve
_SHOWN = 12  # newest sets of samples on the page
_COLOURS = {"text": "#4a6fd4", "control": "#8a8f98", "image": "#d4703a", "audio": "#2f9e77"}


@dataclass(frozen=True)
class Sample:
    """One thing that the model was asked: what was asked, and the answer's parts.

    A part is (kind, content): text as it is, a picture or a sound as a data URI.
    """

    asked: str
    parts: Sequence[tuple[Literal["text", "image", "audio"], str]]


class Watch:
    """Keeps the page of the run in `folder`; `add` takes each step's record."""

    def __init__(self, folder: Path, name: str, resumed_step: int = 0) -> None:
        self.folder, self.name = folder, name
        self.records = [r for r in _read(folder / "log.jsonl") if r["step"] <= resumed_step]
        for path in self._sample_files():
            if int(path.stem) > resumed_step:  # of steps that will be done again
                path.unlink()
        self._written = 0.0
        self._now: tuple[float, float | None] = (0.0, None)

    def add(self, record: Mapping[str, Any], progress: float, left: float | None) -> None:
        """Take up one step's record; write the page if the last writing is half a minute ago."""
        self.records.append(dict(record))
        self._now = (progress, left)
        if time.monotonic() - self._written > _EVERY:
            self.write()

    def add_samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Keep the samples drawn after `step`, and write the page."""
        path = self.folder / "samples" / f"{step:06d}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        _put(path, json.dumps([asdict(sample) for sample in samples]))
        self.write()

    def write(self) -> None:
        """Write the page, if any step has been done."""
        if self.records:
            _put(self.folder / "watch.html", self.render())
        self._written = time.monotonic()

    def render(self) -> str:
        """The page as HTML."""
        last, (progress, left) = self.records[-1], self._now
        speed = _mean([r["tokens_per_second"] for r in self.records[-20:]])
        facts = {
            "step": f"{last['step']:,}",
            "done": f"{progress:.0%}",
            "left": "–" if left is None else _clock(left),
            "trained for": _clock(float(last["seconds"])),
            "tokens": f"{last['tokens']:,}",
            "tokens/s": f"{speed:,.0f}",
            "rate": f"{last['rate']:.3f} of its peak",
        }
        if "divergence" in last:
            seen = [r["divergence"] for r in self.records[-50:] if "divergence" in r]
            facts["nats from the base"] = f"{_mean(seen):.3f}"
        media = {
            name: [(r["step"], r["media"][name]) for r in self.records if name in r["media"]]
            for name in _COLOURS
        }
        names = sorted({name for record in self.records for name in record["tasks"]})
        tasks = [_small(n, _points(self.records, "tasks", n)) for n in names]
        rate = {"rate": [(r["step"], r["rate"]) for r in self.records]}
        rows = "".join(f"<div><dt>{k}</dt><dd>{v}</dd></div>" for k, v in facts.items())
        return (
            f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(self.name)}</title>"
            f"<meta http-equiv=refresh content=60><style>{_STYLE}</style><main>"
            f"<h1>{html.escape(self.name)}</h1><dl>{rows}</dl>"
            f"<h2>Loss by medium, nats</h2>{_legend(media)}{_chart(media, 760, 260)}"
            f"<h2>Learning rate over its peak</h2>{_chart(rate, 760, 90)}"
            f"<h2>Loss by task, nats</h2><div class=grid>{''.join(tasks)}</div>"
            f"<h2>Samples</h2>{self._samples()}</main>"
        )

    def _sample_files(self) -> list[Path]:
        return sorted((self.folder / "samples").glob("*.json"))

    def _samples(self) -> str:
        out = []
        for path in reversed(self._sample_files()[-_SHOWN:]):
            cards = []
            for sample in json.loads(path.read_text(encoding="utf-8")):
                parts = "".join(_part(kind, content) for kind, content in sample["parts"])
                cards.append(
                    f"<figure><figcaption>{html.escape(sample['asked'])}</figcaption>{parts}</figure>"
                )
            out.append(
                f"<h3>after step {int(path.stem):,}</h3><div class=cards>{''.join(cards)}</div>"
            )
        return "".join(out) or "<p>None yet.</p>"


def _part(kind: str, content: str) -> str:
    if kind == "image":
        return f'<img alt="a picture" src="{html.escape(content)}">'
    if kind == "audio":
        return f'<audio controls src="{html.escape(content)}"></audio>'
    return f"<p>{html.escape(content)}</p>"


def _points(records: Sequence[Mapping[str, Any]], key: str, name: str) -> list[tuple[int, float]]:
    return [(r["step"], r[key][name]) for r in records if name in r[key]]


def _binned(points: Sequence[tuple[int, float]], bins: int) -> list[tuple[float, float]]:
    """At most `bins` points, each the mean of neighbours: single steps are noise at this width."""
    size = max(1, -(-len(points) // bins))
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(_mean([x for x, _ in g]), _mean([y for _, y in g])) for g in groups]


def _chart(series: Mapping[str, Sequence[tuple[int, float]]], width: int, height: int) -> str:
    """Curves in one frame as inline SVG, with the vertical ends and the last step written on it."""
    curves = {name: _binned(points, _POINTS) for name, points in series.items() if points}
    values = [y for points in curves.values() for _, y in points]
    last = max((x for points in curves.values() for x, _ in points), default=1.0)
    low, high = min([0.0, *values]), max([*values, 1e-9])
    left, bottom = 40, 18

    def place(x: float, y: float) -> str:
        across = left + (width - left - 6) * x / max(last, 1.0)
        return f"{across:.1f},{6 + (height - bottom - 6) * (1 - (y - low) / (high - low)):.1f}"

    lines = []
    for part in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = low + part * (high - low)
        at = float(place(0, y).split(",")[1])
        lines.append(f'<line x1="{left}" x2="{width - 6}" y1="{at:.1f}" y2="{at:.1f}"/>')
        if height > 100 or part in (0.0, 1.0):
            lines.append(f'<text x="{left - 5}" y="{at + 4:.1f}" text-anchor="end">{y:.2g}</text>')
    for name, points in curves.items():
        way = " ".join(place(x, y) for x, y in points)
        lines.append(f'<polyline points="{way}" stroke="{_COLOURS.get(name, "#6b5bd2")}"/>')
    lines.append(
        f'<text x="{width - 6}" y="{height - 4}" text-anchor="end">step {last:,.0f}</text>'
    )
    return f'<svg viewBox="0 0 {width} {height}" role="img">{"".join(lines)}</svg>'


def _small(name: str, points: Sequence[tuple[int, float]]) -> str:
    recent = _mean([y for _, y in points[-20:]])
    begun = _mean([y for _, y in points[:20]])
    head = f"<b>{html.escape(name)}</b> <span>{begun:.2f} → {recent:.2f}</span>"
    return f"<div>{head}{_chart({name: points}, 240, 90)}</div>"


def _legend(media: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    items = [
        f'<span><i style="background:{_COLOURS[name]}"></i>{name} '
        f"{_mean([y for _, y in points[-20:]]):.2f}</span>"
        for name, points in media.items()
        if points
    ]
    return f"<p class=legend>{''.join(items)}</p>"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"


def _read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log; a torn last one is left out."""
    records = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                break
    return records


def _put(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


_STYLE = """
:root { color-scheme: light dark; --paper: light-dark(#faf9f7, #16171a); --card: light-dark(#fff, #1f2125);
  --ink: light-dark(#1d1d1f, #e9e9ea); --soft: light-dark(#6a6a70, #9d9da5); --line: light-dark(#e5e3df, #303238); }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { margin: 0 0 1rem; } h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; } h3 { font-size: .95rem; color: var(--soft); }
dl { display: flex; flex-wrap: wrap; gap: .75rem 2rem; margin: 0; } dt { color: var(--soft); font-size: .8rem; }
dd { margin: 0; font-size: 1.15rem; font-variant-numeric: tabular-nums; }
svg { width: 100%; height: auto; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
svg line { stroke: var(--line); } svg polyline { fill: none; stroke-width: 1.6; stroke-linejoin: round; }
svg text { fill: var(--soft); font-size: 11px; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: .75rem; }
.grid b { font-weight: 600; font-size: .85rem; } .grid span { color: var(--soft); font-size: .8rem; }
.legend { display: flex; gap: 1.25rem; margin: .25rem 0; color: var(--soft); font-size: .9rem; }
.legend i { display: inline-block; width: .8rem; height: .8rem; border-radius: 3px; margin-right: .4rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: .75rem; align-items: start; }
figure { margin: 0; padding: .75rem; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
figcaption { color: var(--soft); font-size: .85rem; margin-bottom: .5rem; }
figure p { margin: 0; overflow-wrap: anywhere; } img, audio { width: 100%; border-radius: 6px; }
"""
