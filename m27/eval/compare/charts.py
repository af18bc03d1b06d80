"""Charts as inline SVG, drawn from numbers alone: intervals as dots and whiskers, bars, and lines over log axes.

Colours are CSS variables (`--c0` … `--c5`) of the page, so one drawing serves dark and light; every mark is also told
in words, as a title or a label.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

WIDTH = 720
LABELS = 190  # pixels on the left for names
FIGURES = 84  # on the right for values
Row = tuple[str, int, float | None, float | None, float | None]  # label, colour, value, low, high


def colour(number: int) -> str:
    """The page's colour of the n-th model."""
    return f"var(--c{number % 6})"


def _svg(height: float, body: Sequence[str], title: str) -> str:
    return (
        f'<div class="wide"><svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(body)}</svg></div>"
    )


def _text(x: float, y: float, words: str, anchor: str = "start", kind: str = "") -> str:
    made = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{made}>{escape(words)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, stroke: str, width: float = 1) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{stroke}" stroke-width="{width}"/>'


def short(words: str, most: int = 26) -> str:
    """A name that fits beside a chart."""
    return words if len(words) <= most else words[: most - 1] + "…"


def dots(rows: Sequence[Row], say: Callable[[float], str], title: str, most: float | None = None) -> str:
    """A row a model: a dot at its value and a whisker over its interval."""
    ends = [x for row in rows for x in row[2:] if x is not None]
    top = most if most is not None else (max(ends, default=1.0) or 1.0) * 1.05
    x = _across(0.0, top)
    body, y = _grid(0.0, top, len(rows), say), 24.0
    for label, number, value, low, high in rows:
        body.append(_text(LABELS - 10, y + 4, short(label), "end"))
        if value is not None:
            if low is not None and high is not None:
                body.append(_line(x(low), y, x(min(high, top)), y, colour(number), 3))
                body += [_line(x(e), y - 5, x(e), y + 5, colour(number), 2) for e in (low, min(high, top))]
            told = escape(f"{label}: {say(value)}")
            at = f'cx="{x(value):.1f}" cy="{y}" r="5" fill="{colour(number)}"'
            body.append(f"<circle {at}><title>{told}</title></circle>")
            body.append(_text(WIDTH - FIGURES + 10, y + 4, say(value), kind="value"))
        else:
            body.append(_text(LABELS, y + 4, "not known", kind="faint"))
        y += 26
    return _svg(y + 8, body, title)


def bars(rows: Sequence[Row], say: Callable[[float], str], title: str) -> str:
    """A row a model: a bar to its value and a thin line on to its high (a 95th percentile)."""
    top = (max((x for row in rows for x in (row[2], row[4]) if x is not None), default=1.0) or 1.0) * 1.05
    x = _across(0.0, top)
    body, y = _grid(0.0, top, len(rows), say), 24.0
    for label, number, value, _, high in rows:
        body.append(_text(LABELS - 10, y + 4, short(label), "end"))
        if value is not None:
            told = escape(f"{label}: {say(value)}")
            width = max(1.0, x(value) - LABELS)
            body.append(
                f'<rect x="{LABELS}" y="{y - 7}" width="{width:.1f}" height="14" rx="2" fill="{colour(number)}">'
                f"<title>{told}</title></rect>"
            )
            if high is not None:
                body.append(_line(x(value), y, x(high), y, colour(number), 2))
                body.append(_line(x(high), y - 5, x(high), y + 5, colour(number), 2))
            body.append(_text(WIDTH - FIGURES + 10, y + 4, say(value), kind="value"))
        else:
            body.append(_text(LABELS, y + 4, "not known", kind="faint"))
        y += 26
    return _svg(y + 8, body, title)


def _across(low: float, high: float) -> Callable[[float], float]:
    width = WIDTH - LABELS - FIGURES
    return lambda value: LABELS + width * (value - low) / (high - low)


def _grid(low: float, high: float, rows: int, say: Callable[[float], str]) -> list[str]:
    """Lines at round values, told below."""
    step = 10 ** math.floor(math.log10(high - low))
    step = next(s for s in (step / 5, step / 2, step, step * 2) if (high - low) / s <= 5.5)
    x, bottom, out = _across(low, high), 12 + 26 * rows, []
    value = low
    while value <= high + 1e-12:
        out.append(_line(x(value), 8, x(value), bottom, "var(--grid)"))
        out.append(_text(x(value), bottom + 14, say(value), "middle", "tick"))
        value += step
    return out


Curve = tuple[str, int, bool, Sequence[tuple[float, float]]]  # label, colour, dashed, points


def curves(
    lines: Sequence[Curve], marks: Sequence[tuple[float, float, str]], words: tuple[str, str], title: str
) -> str:
    """Lines over two log axes, with marked points; `words` name the axes."""
    points = [p for line in lines for p in line[3]]
    left, right, above, below = 70, WIDTH - 150, 14, 300
    spans = []
    for axis in (0, 1):
        values = [math.log10(max(p[axis], 1e-9)) for p in points]
        low, high = math.floor(min(values)), math.ceil(max(values))
        spans.append((low, high if high > low else low + 1))

    def place(x: float, y: float) -> tuple[float, float]:
        (x0, x1), (y0, y1) = spans
        across = (math.log10(max(x, 1e-9)) - x0) / (x1 - x0)
        up = (math.log10(max(y, 1e-9)) - y0) / (y1 - y0)
        return left + across * (right - left), below - up * (below - above)

    body = []
    for power in range(spans[0][0], spans[0][1] + 1):
        x, _ = place(10.0**power, 1.0)
        body += [_line(x, above, x, below, "var(--grid)"), _text(x, below + 16, power_of_ten(power), "middle", "tick")]
    for power in range(spans[1][0], spans[1][1] + 1):
        _, y = place(1.0, 10.0**power)
        body += [_line(left, y, right, y, "var(--grid)"), _text(left - 6, y + 4, power_of_ten(power), "end", "tick")]
    told: list[float] = []
    for label, number, dashed, line in lines:
        at = [place(*point) for point in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        dash = ' stroke-dasharray="6 4"' if dashed else ""
        body.append(f'<polyline points="{path}" fill="none" stroke="{colour(number)}" stroke-width="2.5"{dash}/>')
        y = at[-1][1] + 4
        while any(abs(y - other) < 14 for other in told):
            y += 14
        told.append(y)
        body.append(_text(right + 6, y, short(label, 20), kind="value"))
    for x, y, says in marks:
        a, b = place(x, y)
        body.append(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="5" class="mark"><title>{escape(says)}</title></circle>')
    body.append(_text((left + right) / 2, below + 36, words[0], "middle", "tick"))
    turned = f'transform="rotate(-90 14 {(above + below) / 2})"'
    body.append(_text(14, (above + below) / 2, words[1], "middle", "tick").replace("<text", f"<text {turned}"))
    return _svg(below + 44, body, title)


def power_of_ten(power: int) -> str:
    """A power of ten as "1", "1k", "10M" …, and as "0.01" below one."""
    if power < 0:
        return f"{10.0**power:g}"
    big, rest = divmod(min(power, 14), 3)
    return f"{10**rest}{('', 'k', 'M', 'G', 'T')[big]}"
