"""The report as one HTML file: nothing is fetched, no script runs, dark and light by the reader's wish.

What models and questions say is untrusted: every word of it is escaped, and the page's own policy forbids scripts,
frames, forms and anything from elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from m27.eval.compare.charts import Row, bars, colour, curves, dots
from m27.eval.compare.prices import HOURS, Device

Report = Mapping[str, Any]
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
STYLE = """
:root{color-scheme:light dark;--bg:#fff;--fg:#1b1f24;--faint:#59636e;--grid:#d9dee3;--box:#f4f6f8;--good:#116329;
--c0:#0969da;--c1:#b35900;--c2:#1a7f5a;--c3:#8250df;--c4:#bf3989;--c5:#57606a}
@media (prefers-color-scheme:dark){:root{--bg:#0f1318;--fg:#e6eaef;--faint:#9aa5b1;--grid:#2d343c;--box:#181d24;
--good:#56d364;--c0:#58a6ff;--c1:#f0a04b;--c2:#4cc38a;--c3:#b48cff;--c4:#f778ba;--c5:#a0aab4}}
*{box-sizing:border-box}body{margin:0 auto;padding:24px 16px 64px;max-width:1080px;background:var(--bg);color:var(--fg);
font:16px/1.5 system-ui,sans-serif}h1{font-size:1.7rem;margin:0}h2{margin:2.4rem 0 .4rem;font-size:1.25rem}
h3{margin:1.4rem 0 .2rem;font-size:1.02rem}p{max-width:72ch;margin:.4rem 0}.faint{color:var(--faint)}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.9rem}th,td{text-align:left;padding:.35rem .7rem;
border-bottom:1px solid var(--grid);vertical-align:top}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;
white-space:nowrap}svg{display:block;width:100%;max-width:760px;min-width:560px;
height:auto;margin:.4rem 0}td:first-child{min-width:9rem}
td:last-child{min-width:13rem}td.n:last-child{min-width:0}svg text{fill:var(--fg);
font:13px system-ui,sans-serif}svg .tick,svg .faint{fill:var(--faint);font-size:11.5px}svg .value{font-size:12.5px}
.mark{fill:var(--bg);stroke:var(--fg);stroke-width:2}.key{display:inline-block;width:.75em;height:.75em;border-radius:50%;
margin-right:.45em}.sample{border:1px solid var(--grid);border-radius:8px;margin:.7rem 0;padding:.2rem .9rem .8rem}
summary{cursor:pointer;padding:.4rem 0}.answers{display:grid;grid-template-columns:repeat(auto-fit,minmax(230px,1fr));
gap:.7rem}.answer{background:var(--box);border-radius:6px;padding:.5rem .7rem;min-width:0}pre{white-space:pre-wrap;
overflow-wrap:anywhere;margin:.2rem 0;font:.86rem/1.45 ui-monospace,monospace;max-height:16rem;overflow:auto}
img{max-width:180px;max-height:180px;border-radius:4px;margin:.3rem .3rem .3rem 0}.better{color:var(--good)}
code{font:.86em ui-monospace,monospace;overflow-wrap:anywhere}
:focus-visible{outline:2px solid var(--c0);outline-offset:2px}
"""

QUALITY = """<p>Dots are scores, whiskers 95 % intervals (bootstrap over samples). Whether one model is better is
tested on the same samples in pairs; what is said corrects p for the number of comparisons on this page (Holm). A
difference is called within noise where that p is 0.05 or more: these samples do not tell the two apart, however far the
dots lie from one another. Overlapping whiskers alone prove nothing either way.</p>"""
SPEED = """<p>Measured while the questions were asked, several under way at once, beside whatever else the machine was
doing; bars are medians, thin lines reach to the 95th percentile. Under way at once: {at_once}.</p>"""
MEMORY = """<p class="faint">Memory is what this process grew by while the model was loaded and asked, or what the GPU
held at most; of a server it cannot be seen.</p>"""
COST = """<p>Of 1,000 requests like these. An API is paid by the token; a device by the hour, here as if it were kept as
busy as in this run. Prices are those of a table that you can edit and give with <code>--prices</code>.</p>"""
MISSING = (("refused", "without an answer, counted as wrong"), ("ungraded", "without a grade, left out"))


def page(report: Report, pictures: Sequence[Sequence[str]] = (), title: str = "Comparison") -> str:
    """The whole file. `pictures[k]` are data URLs of what the k-th sample shows."""
    models = report["models"]
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="faint">{escape(", ".join(m["label"] for m in models))}. Software {escape(_origin(report))}.</p>',
        *_quality(report), *_speed(report), *_cost(report), *_facts(report), *_samples(report, pictures),
    ]  # fmt: skip
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>{''.join(body)}</main></body></html>\n"
    )


def _origin(report: Report) -> str:
    origin = report["origin"]
    return f"m27 {origin['m27']}, commit {origin['commit']}, torch {origin['torch']}"


def figure(share: bool) -> Callable[[float], str]:
    """How a score is told: per cent, or as it is."""
    return (lambda v: f"{100 * v:.3g} %") if share else (lambda v: f"{v:.3g}")


def seconds(value: float) -> str:
    """Seconds as "350 ms" or "2.4 s"."""
    return f"{1000 * value:.3g} ms" if value < 0.9995 else f"{value:.3g} s"


def size(value: float) -> str:
    """Bytes as "1.2 GB" or "350 MB"."""
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"


def money(currency: str) -> Callable[[float], str]:
    """Money as "$0.012", or with the currency's name."""
    sign = "$" if currency == "USD" else f"{currency} "

    def told(value: float) -> str:
        if value >= 100:
            return f"{sign}{value:,.0f}"
        return f"{sign}{value:.3g}" if value >= 0.001 or not value else f"{sign}{value:.1g}"

    return told


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int] = ()) -> str:
    """Cells are HTML already."""
    def cell(tag: str, n: int, text: str) -> str:
        scope = ' scope="col"' if tag == "th" else ""
        kind = ' class="n"' if n in numeric else ""
        return f"<{tag}{scope}{kind}>{text}</{tag}>"

    made = "".join(f"<tr>{''.join(cell('td', n, c) for n, c in enumerate(row))}</tr>" for row in rows)
    top = "".join(cell("th", n, escape(c)) for n, c in enumerate(head))
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{made}</tbody></table></div>'


def _key(report: Report, label: str) -> str:
    number = next((i for i, m in enumerate(report["models"]) if m["label"] == label), 5)
    return f'<span class="key" style="background:{colour(number)}"></span>{escape(label)}'


def _figures(report: Report, task: Mapping[str, Any]) -> list[str]:
    """What the metric tells of the whole set besides the score: by category, by another rule."""
    told = {label: score.get("figures", {}) for label, score in task["scores"].items()}
    names = list(dict.fromkeys(name for values in told.values() for name in values))
    if not names:
        return []
    rows = [
        [escape(name), *(f"{values[name]:.3g}" if name in values else "–" for values in told.values())]
        for name in names
    ]
    head = ["of all answers", *told]
    return ['<p class="faint">Besides the score:</p>', _table(head, rows, range(1, len(head)))]


def _quality(report: Report) -> list[str]:
    out = ["<h2>Quality</h2>", QUALITY]
    for task in report["tasks"]:
        say = figure(task["share"])
        rows: list[Row] = [
            (label, n, s["score"], s["low"], s["high"]) for n, (label, s) in enumerate(task["scores"].items())
        ]
        direction = "less is better" if task["lower_is_better"] else "more is better"
        judge = f", judged by {task['judge']}" if task["judge"] else ""
        out.append(f"<h3>{escape(task['task'])}: {escape(task['metric'])}{escape(judge)} ({direction})</h3>")
        most = 1.0 if task["share"] and not task["lower_is_better"] else None
        out.append(dots(rows, say, f"{task['task']}, {task['metric']}", most))
        notes = [
            f"{escape(label)}: {s[what]} of {s['n'] + s['ungraded']} {words}"
            for label, s in task["scores"].items()
            for what, words in MISSING if s[what]
        ]  # fmt: skip
        out += [f'<p class="faint">{"; ".join(notes)}.</p>'] if notes else []
        pairs = []
        for pair in task["pairs"]:
            says = escape(pair["says"])
            interval = "–" if pair["low"] is None else f"{say(pair['low'])} to {say(pair['high'])}"
            pairs.append([
                f"{_key(report, pair['b'])} against {_key(report, pair['a'])}", say(pair["mean"]), interval,
                f"{pair['wins']} : {pair['losses']}", f"{pair['p']:.2g}", escape(pair["test"]),
                f'<span class="faint">{says}</span>' if pair["noise"] else f'<b class="better">{says}</b>',
            ])  # fmt: skip
        head = ("pair", "difference", "95 %", "up : down", "p", "test", "so")
        out.append(_table(head, pairs, (1, 2, 3, 4)))
        out += _figures(report, task)
        seeds = f"seeds {', '.join(map(str, task['seeds']))}" if task["temperature"] else "greedy"
        out.append(
            f'<p class="faint">n = {max(s["n"] for s in task["scores"].values())}, {seeds}, at most '
            f'{task["max_tokens"]} tokens; prompts {task["prompt_hash"]}, data {task["data_hash"]} (file '
            f'{task["data_revision"]}), scorer {escape(task["scorer"])} {task["scorer_revision"]}.</p>'
        )
    return out


def _rows(report: Report, take: Callable[[Mapping[str, Any]], tuple[float | None, float | None]]) -> list[Row]:
    out: list[Row] = []
    for number, model in enumerate(report["models"]):
        value, high = take(model)
        out.append((model["label"], number, value, None, high))
    return out


def _speed(report: Report) -> list[str]:
    def spread(name: str) -> Callable[[Mapping[str, Any]], tuple[float | None, float | None]]:
        return lambda m: (m[name]["median"], m[name]["p95"]) if m[name] else (None, None)

    at_once = ", ".join(f"{escape(m['label'])}: {m['at_once']}" for m in report["models"])
    return [
        "<h2>Speed and memory</h2>",
        SPEED.format(at_once=at_once),
        "<h3>Time to the first piece of an answer</h3>",
        bars(_rows(report, spread("first")), seconds, "Time to the first piece"),
        "<h3>Time to the whole answer</h3>",
        bars(_rows(report, spread("seconds")), seconds, "Time to the whole answer"),
        "<h3>Requests a second</h3>",
        bars(_rows(report, lambda m: (m["requests_per_second"], None)), lambda v: f"{v:.3g}", "Requests a second"),
        "<h3>Memory on this machine</h3>",
        bars(_rows(report, lambda m: (m["memory_bytes"], None)), size, "Memory"),
        MEMORY,
    ]  # fmt: skip


def _cost(report: Report) -> list[str]:
    say, even = money(report["currency"]), report["break_even"]
    out = [
        "<h2>Cost</h2>",
        COST,
        bars(_rows(report, lambda m: (m["cost_per_1000"], None)), say, "Cost of 1,000 requests"),
    ]
    dated = []
    for m in [*report["models"], *(a for a in even["apis"] if a["assumed"])]:
        p = m["price"]
        if p is None:
            dated.append([_key(report, m["label"]), "no price known", "", ""])
        elif "per_hour" in p:
            told = f"{say(p['per_hour'])} an hour ({escape(p['name'])})"
            dated.append([_key(report, m["label"]), told, p["date"], escape(p["source"])])
        else:
            told = f"{say(p['input_per_million'])} in, {say(p['output_per_million'])} out, a million tokens"
            dated.append([_key(report, m["label"]), told, p["date"], escape(p["source"])])
    out.append(_table(("", "price", "noted on", "where"), dated))
    if not even["apis"] or not even["devices"]:
        return [*out, '<p class="faint">No break-even: it needs a priced API and a local model that was timed.</p>']
    out.append("<h3>Break-even</h3>")
    out += [f"<p>{_from(line)}</p>" for line in even["from"]]
    if any(api["assumed"] for api in even["apis"]):
        why = "was not asked: its price is reckoned for as many tokens as the first local model used"
        out.append(f'<p class="faint">{escape(even["apis"][0]["label"])} {why}.</p>')
    return [*out, _curve(report)]


def _from(line: Mapping[str, Any]) -> str:
    pair = (f"<b>{escape(line['open'])}</b>", f"<b>{escape(line['closed'])}</b>")
    at = line["requests_a_month"]
    if at is None:
        return f"{pair[0]} on this device is never cheaper than {pair[1]}: even at full load its request costs more."
    return f"{pair[0]} is cheaper than {pair[1]} from about {at:,.0f} requests a month on."


def _curve(report: Report) -> str:
    """Cost of a month over requests a month, a line a model; dashed for an API."""
    even, say = report["break_even"], money(report["currency"])
    numbers = {m["label"]: n for n, m in enumerate(report["models"])}
    ends = [d["requests_per_second"] * 3600 * HOURS for d in even["devices"]]
    found = [line["requests_a_month"] for line in even["from"] if line["requests_a_month"]]
    last = max([1e6, *(3 * e for e in ends), *(10 * f for f in found)])
    steps = [last * 10 ** (-6 + 6 * k / 240) for k in range(241)]
    lines = []
    for d in even["devices"]:
        device = Device(**d["price"])
        points = [(r, device.month(r, d["requests_per_second"])) for r in steps]
        lines.append((d["label"], numbers[d["label"]], False, points))
    for api in even["apis"]:
        lines.append((api["label"], numbers.get(api["label"], 5), True, [(r, r * api["request"]) for r in steps]))
    by_api = {api["label"]: api["request"] for api in even["apis"]}
    marks = [
        (at, cost, f"{line['open']} = {line['closed']} at {at:,.0f} requests, {say(cost)} a month")
        for line in even["from"] if (at := line["requests_a_month"]) and (cost := at * by_api[line["closed"]])
    ]  # fmt: skip
    words = ("requests a month", f"{report['currency']} a month")
    return curves(lines, marks, words, "Cost of a month over requests a month")


def _facts(report: Report) -> list[str]:
    def told(value: Any) -> str:
        return "–" if value is None else escape(str(value))

    rows = []
    for m in report["models"]:
        tokens = [f"{m[k]:.0f}" if m[k] is not None else "–" for k in ("prompt_tokens", "completion_tokens")]
        retries = m["more"].get("retries")
        rows.append([
            _key(report, m["label"]), f"<code>{told(m['name'])}</code>", f"<code>{told(m['revision'])}</code>",
            told(m["precision"]), told(m["device"]), told(m["licence"]), told(m["data_goes"]), " / ".join(tokens),
            "–" if retries is None else str(retries),
        ])  # fmt: skip
    head = ("", "model", "revision", "precision", "device", "licence", "where questions go", "tokens", "retries")
    return ["<h2>Models</h2>", _table(head, rows, (7, 8))]


def _samples(report: Report, pictures: Sequence[Sequence[str]]) -> list[str]:
    count = len(report["samples"])
    how = "those first on which the models differ most, then those that all found hard"
    out = ["<h2>Samples side by side</h2>", f"<p>{count} of them, {how}.</p>"]
    for number, sample in enumerate(report["samples"]):
        urls = pictures[number] if number < len(pictures) else ()
        shown = "".join(f'<img alt="what was shown" src="{escape(url)}">' for url in urls)
        asked = "".join(f"<pre>{escape(_asked(message))}</pre>" for message in sample["prompt"])
        answers = "".join(_answer(report, label, a) for label, a in sample["answers"].items())
        wanted = escape(" | ".join(sample["references"]))
        opened = " open" if number < 10 else ""
        out.append(
            f'<details class="sample"{opened}><summary>{escape(sample["task"])} · {escape(sample["key"])} '
            f'<span class="faint">apart by {sample["apart"]:.2g}</span></summary>{shown}{asked}'
            f'<p><span class="faint">right:</span> {wanted}</p><div class="answers">{answers}</div></details>'
        )
    return out


def _asked(message: Mapping[str, Any]) -> str:
    content = message["content"]
    if not isinstance(content, str):
        content = "".join(part["text"] if part["type"] == "text" else f"[{part['type']}] " for part in content)
    return f"{message['role']}: {content}"


def _answer(report: Report, label: str, answer: Mapping[str, Any]) -> str:
    score = "no grade" if answer["score"] is None else f"{answer['score']:.3g}"
    text = answer["answer"] or (f"(no answer: {answer['error']})" if answer["error"] else "(empty)")
    head = f'{_key(report, label)} <span class="faint">score {score}</span>'
    return f'<div class="answer">{head}<pre>{escape(text)}</pre></div>'
