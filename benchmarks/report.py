"""From measurements to what is read: medians, ratios against the bars, a table, JSON and a plot."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import plot
from benchmarks.race import Result, agreement
from m27.codec.media import write_atomic

FIGURES = ("prefill", "ttft", "decode", "many")
REFERENCES = ("naive float32", "transformers float32", "m27 float32")  # the first that took part
SERVERS = ("OpenVINO", "llama-server", "vLLM")
Formats = Mapping[str, Mapping[str, float]]


def read(path: Path) -> dict[str, Any]:
    """A JSON file, {} where there is none."""
    return json.loads(path.read_text()) if path.is_file() else {}


def figures(
    results: Mapping[str, Result],
    facts: Mapping[str, Mapping[str, Any]],
    stops: Container[int] = (),
) -> dict[str, dict[str, Any]]:
    """Medians, values and agreement of each contender, as JSON. From the first of `stops` on an
    answer is not compared: what may follow is not the same for all (see `agreement`)."""
    truth = next((results[name] for name in REFERENCES if name in results), None)
    out: dict[str, dict[str, Any]] = {}
    for name, result in results.items():
        same = agreement(result.ids, truth.ids, stops) if truth else None
        out[name] = {
            "median": {f: round(m, 4) for f in FIGURES if (m := result.median(f)) is not None},
            "values": {f: [round(v, 4) for v in vs] for f, vs in result.values.items()},
            "resident_mb": round(result.resident / 1e6), "agreement": same,
            "failed": result.failed, **facts.get(name, {}),
        }  # fmt: skip
    return out


def complete(found: dict[str, Any], formats: Formats) -> dict[str, Any]:
    """`found` with the quality of each format, the share of the bandwidth limit and the bars."""
    config, shape = found["config"], found["shape"]["one"]
    cache = (
        2 * 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"]
        * (shape[0] + shape[1] / 2)
    )  # two bytes a number, at the middle of the answer  # fmt: skip
    read = found["limits"].get("read_gb_s")
    for name, row in found["contenders"].items():
        row["quality"] = formats.get(name.replace("llama-server", "llama.cpp"))
        size, decode = row.get("bytes"), row["median"].get("decode")
        if read and size and decode:
            row["decode_limit"] = round(read * 1e9 / (size + cache), 1)
            row["of_limit"] = round(decode / row["decode_limit"], 3)
    found["bars"] = bars(found["contenders"], formats)
    return found


def bars(rows: Mapping[str, Mapping[str, Any]], formats: Formats) -> list[dict[str, Any]]:
    """Each bar: what is compared with what, the ratio, what is asked and hoped for."""
    out: list[dict[str, Any]] = []

    def value(name: str | None, figure: str) -> float | None:
        found = rows.get(name or "", {}).get("median", {}).get(figure)
        return float(found) if found else None

    def best(names: Iterable[str], figure: str) -> str | None:
        able = [name for name in names if value(name, figure)]
        return max(able, key=lambda name: value(name, figure) or 0.0, default=None)

    def add(text: str, ours: str | None, peer: str | None, figure: str, least: float, goal: float) -> None:
        mine, theirs = value(ours, figure), value(peer, figure)
        if mine and theirs:
            ratio = mine / theirs
            out.append({
                "bar": text, "ours": ours, "peer": peer, "figure": figure, "ratio": round(ratio, 3),
                "least": least, "goal": goal, "met": ratio >= least,
            })  # fmt: skip

    def worth(name: str) -> float:
        return formats.get(name, {}).get("perplexity", float("inf"))

    mine = [name for name in rows if name.startswith("m27")]
    llama = [name for name in rows if name.startswith("llama.cpp")]
    no_worse = [name for name in llama if worth(name) <= worth("m27 int4")]
    least_worse = sorted(llama, key=worth)[:1]  # ours is better than all: the nearest one
    add("decode, int4 against llama.cpp's best format that is no worse", "m27 int4",
        best(no_worse or least_worse, "decode"), "decode", 1.8, 1.8)  # fmt: skip
    add("decode, int8 against Q8_0", "m27 int8", "llama.cpp Q8_0", "decode", 1.5, 1.5)
    peers = [name for name in rows if name.startswith(SERVERS)]
    add("16 requests, against the best server", best(mine, "many"), best(peers, "many"), "many", 1.4, 2.0)
    others = [name for name in rows if name not in mine]
    add("prefill, against the best peer", best(mine, "prefill"), best(others, "prefill"), "prefill", 1.0, 1.4)
    truth = worth("m27 bfloat16") if "m27 bfloat16" in formats else worth("m27 float32")
    for kind, most in (("int8", 1.01), ("int4", 1.05)):
        name = f"m27 {kind}"
        if name in formats and truth != float("inf"):
            ratio = worth(name) / truth
            out.append({
                "bar": f"perplexity, {kind} against bfloat16", "ours": name, "peer": None,
                "figure": "perplexity", "ratio": round(ratio, 4), "least": most, "goal": most,
                "met": ratio <= most,
            })  # fmt: skip
    return out


def table(found: Mapping[str, Any]) -> str:
    """Markdown: machine, contenders, bars, and who could not take part."""
    limits, shape = found["limits"], found["shape"]
    about = found["machine"]
    lines = [
        (f"{found['date']}, {about['processor']}, {about['threads']} threads "
        f"({', '.join(about['features'])}); reads {limits['read_gb_s']} GB/s, float32 "
        f"{limits['float32_gflop_s']} GFLOP/s; medians of {shape['rounds']} rounds."), "",
        (f"| | prefill {shape['one'][0]}, tok/s | first token, s | decode, tok/s | of the bandwidth limit "
        f"| {shape['many'][0]} requests, tok/s | resident, MB | perplexity | KL | greedy ids as float32 |"),
        "|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, row in found["contenders"].items():
        middle, quality, same = row["median"], row.get("quality") or {}, row.get("agreement") or {}
        counts = {len(values) for values in row["values"].values()}
        few = "" if not counts or min(counts) >= shape["rounds"] else f" (n = {min(counts)})"
        cells = [
            name + few, _cell(middle.get("prefill"), ",.0f"), _cell(middle.get("ttft"), ".3f"),
            _cell(middle.get("decode"), ",.1f"), _cell(row.get("of_limit"), ".0%"),
            _cell(middle.get("many"), ",.1f"), _cell(row.get("resident_mb"), ",d"),
            _cell(quality.get("perplexity"), ".3f"), _cell(quality.get("kl"), ".4f"),
            _cell(same.get("equal"), ".1%"),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| bar | ours | peer | ratio | asked | goal | met |", "|---|---|---|---|---|---|---|"]
    for bar in found["bars"]:
        cells = [
            bar["bar"], bar["ours"], bar["peer"] or "–", f"{bar['ratio']:.3g}", f"{bar['least']:g}",
            f"{bar['goal']:g}", "yes" if bar["met"] else "no",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"\n{name}: could not take part: {why}" for name, why in found["failed"].items()]
    for name, row in found["contenders"].items():
        lines += [f"\n{name}: {kind}: {why}" for kind, why in row["failed"].items()]
    return "\n".join(lines)


def quality_table(known: Mapping[str, Any]) -> str:
    """Markdown of `engine-quality.json`."""
    lines = ["| format | perplexity | KL to float32, nats | likeliest id as float32 |", "|---|---|---|---|"]
    for name, row in sorted(known["formats"].items(), key=lambda item: item[1]["perplexity"]):
        lines.append(f"| {name} | {row['perplexity']:.4f} | {row['kl']:.5f} | {row['same']:.2%} |")
    return "\n".join(lines)


def _cell(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def write(folder: Path, found: Mapping[str, Any], stem: str = "engine") -> None:
    """`engine.json` and `engine.svg`."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    write_atomic(folder / f"{stem}.json", text.encode())
    titles = {
        "prefill": "Prefill, tokens a second", "decode": "Decode of one request, tokens a second",
        "many": f"{found['shape']['many'][0]} requests, tokens a second",
    }  # fmt: skip
    panels: list[plot.Panel] = []
    for figure, title in titles.items():
        bars = [
            (name, row["median"][figure], name.startswith("m27"))
            for name, row in found["contenders"].items()
            if figure in row["median"]
        ]
        if bars:
            panels.append((title, bars, None))
    where = f"{found['machine']['processor']}, {found['machine']['threads']} threads, {found['date']}"
    write_atomic(folder / f"{stem}.svg", plot.bars(where, panels).encode())
