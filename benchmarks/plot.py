"""Plots as SVG, written by hand: bars of several panels, and lines.

Needs no package. Text is in the system's own face; colours are told apart in grey too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

OURS, OTHER, LIMIT = "#c2410c", "#64748b", "#0f766e"
LINES = ("#c2410c", "#1d4ed8", "#0f766e", "#7e22ce", "#64748b")
Panel = tuple[str, Sequence[tuple[str, float, bool]], float | None]  # title, bars, limit
Series = Mapping[str, Sequence[tuple[float, float]]]


def _open(width: float, height: float, title: str) -> list[str]:
    return [
        (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        'font-family="system-ui, sans-serif" font-size="12">'),
        f"<title>{escape(title)}</title>",
        f'<rect width="{width:g}" height="{height:g}" fill="white"/>',
    ]


def _text(x: float, y: float, text: str, extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {extra}>{escape(text)}</text>'


def bars(title: str, panels: Sequence[Panel]) -> str:
    """A panel below the other, each a title, (label, value, whether it is ours) by descending value,
    and a limit drawn as a line where one is given."""
    left, right, row, head = 170.0, 620.0, 18.0, 34.0
    height = 40 + sum(head + row * len(rows) + 12 for _, rows, _ in panels)
    out = [*_open(700, height, title), _text(12, 22, title, 'font-size="15" font-weight="600"')]
    top = 40.0
    for name, rows, limit in panels:
        out.append(_text(12, top + 14, name, 'font-weight="600"'))
        top += head - 10
        most = max([value for _, value, _ in rows] + [0.0]) or 1.0
        shown = limit if limit is not None and limit <= 1.6 * most else None
        scale = (right - left) / max(most, shown or 0.0)
        for label, value, ours in sorted(rows, key=lambda bar: -bar[1]):
            fill = OURS if ours else OTHER
            out.append(_text(left - 8, top + 13, label, 'text-anchor="end"'))
            out.append(
                f'<rect x="{left:g}" y="{top + 2:.1f}" width="{max(value * scale, 1):.1f}" '
                f'height="{row - 4:g}" fill="{fill}"/>'
            )
            out.append(_text(left + value * scale + 5, top + 13, f"{value:,.4g}"))
            top += row
        if shown is not None:
            x, start = left + shown * scale, top - row * len(rows)
            out.append(
                f'<path d="M{x:.1f} {start:.1f}V{top:.1f}" stroke="{LIMIT}" stroke-dasharray="4 3"/>'
            )
            out.append(_text(x, start - 3, f"limit {shown:,.4g}", f'text-anchor="middle" fill="{LIMIT}"'))
        top += 22
    return "\n".join([*out, "</svg>"]) + "\n"


def lines(title: str, x_name: str, y_name: str, series: Series) -> str:
    """Lines with dots, both axes linear and from 0, so that what grows in proportion is straight."""
    left, right, top, bottom = 70.0, 560.0, 46.0, 340.0
    points = [point for line in series.values() for point in line]
    far, most = (max(values) or 1.0 for values in zip(*points, strict=True))

    def place(x: float, y: float) -> tuple[float, float]:
        return left + x / far * (right - left), bottom - y / most * (bottom - top)

    out = [*_open(720, 390, title), _text(12, 22, title, 'font-size="15" font-weight="600"')]
    for i in range(int(far / _step(far)) + 1):
        x, _ = place(i * _step(far), 0)
        out.append(_text(x, bottom + 18, f"{i * _step(far):,.4g}", 'text-anchor="middle"'))
        out.append(f'<path d="M{x:.1f} {top:g}V{bottom:g}" stroke="#e2e8f0"/>')
    for i in range(int(most / _step(most)) + 1):
        _, y = place(0, i * _step(most))
        out.append(_text(left - 8, y + 4, f"{i * _step(most):,.4g}", 'text-anchor="end"'))
        out.append(f'<path d="M{left:g} {y:.1f}H{right:g}" stroke="#e2e8f0"/>')
    for i, (name, line) in enumerate(series.items()):
        colour = LINES[i % len(LINES)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in line))
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for point in line:
            x, y = place(*point)
            out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')
        out.append(_text(right + 10, top + 16 * i + 10, name, f'fill="{colour}"'))
    out.append(_text((left + right) / 2, bottom + 38, x_name, 'text-anchor="middle"'))
    out.append(_text(12, top - 8, y_name))
    return "\n".join([*out, "</svg>"]) + "\n"


def _step(most: float) -> float:
    """A round distance of grid lines that gives four to nine of them."""
    power: float = 10.0 ** math.floor(math.log10(most))
    for part in (0.2, 0.25, 0.5, 1.0):
        if most / (part * power) <= 8:
            return part * power
    return 2 * power
