"""The sections of a model card, each from one machine-readable result, as Markdown.

Knows the shapes of the results, no file but the folder of the model; `recipes.card` puts the sections together.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes import card_text as say

Record = Mapping[str, Any]
# What a device draws in watts, by a word of its name; anything else counts as a CPU, by the thread.
WATTS = {"H200": 700.0, "H100": 700.0, "A100": 400.0}
WATTS_A_THREAD = 10.0
OVERHEAD = 1.2
ORIGIN = ("seed", "commit", "weights", "torch")
SIZES = ("train", "test", "tested", "classes")  # of a probe: no figures of its own


class CardError(ValueError):
    """A result that is missing or not as expected; the message names the file and how it is made."""


def read_json(path: Path) -> Any:
    """What a `.json` or `.jsonl` file holds. Raises CardError with the line that is no JSON."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        try:
            return json.loads(text)
        except ValueError as error:
            raise CardError(f"{path}: not JSON ({error})") from None
    values = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            values.append(json.loads(line))
        except ValueError as error:
            raise CardError(f"{path}: line {number} is not JSON ({error})") from None
    return values


def table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table; columns after the first are set to the right where they hold figures."""
    body = [[" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines]
    right = [
        n > 0 and all(line[n][:1] in "0123456789–-+<" for line in body) for n in range(len(heads))
    ]
    rule = ["---:" if is_right else "---" for is_right in right]
    return "".join(f"| {' | '.join(line)} |\n" for line in [list(heads), rule, *body])


def evaluation(rows: Sequence[Record]) -> str:
    """The table of scores with bars, where they come from, and the notes behind them."""
    optional = {"chance": "chance", "frequent": "most frequent", "by_kind": "by kind"}
    shown = [key for key in optional if any(row.get(key) is not None for row in rows)]
    words = {
        "goal": "goal",
        "floor": "floor",
        "yes": "yes",
        "no": "**no**",
        "unmeasured": "**not measured**",
    }
    lines = []
    for row in rows:
        unit = row.get("unit", "share")
        score = say.figure(row["score"] if row["n"] else None, unit)
        between = f"{say.figure(row['low'], unit)} – {say.figure(row['high'], unit)}"
        lines.append(
            [say.bench(row["task"], unit).title, f"`{row['task']}`", f"{row['n']:,}",
             score, between if row["n"] else "–",
             *(say.figure(row.get(key), unit) for key in shown), row["bar"], words[say.reached(row)]]
        )  # fmt: skip
    heads = ["capability", "task", "n", "score", "95 % interval"]
    made = table([*heads, *(optional[key] for key in shown), "bar", "met"], lines)
    of = {key: ", ".join(dict.fromkeys(str(row[key]) for row in rows)) for key in ORIGIN}
    about = f"Seed {of['seed']}, software commit {of['commit']}, weights {of['weights']}, torch {of['torch']}.\n"
    if ", " in of["weights"]:
        about += (
            "\nRows of other weights than the folder's are those that still hold for it: it differs from these in the "
            "decoder of a codec alone, which the row does not hang on.\n"
        )
    notes = "".join(f"- `{row['task']}`: {row['note']}\n" for row in rows if row.get("note"))
    return f"{made}\n{about}\nWhat stands behind the figures:\n\n{notes}"


def bars(rows: Sequence[Record]) -> str:
    """The bars that are not met, each with its figure and what was asked, as a list."""
    lines = []
    for row in (row for row in rows if say.fails(row)):
        unit = row.get("unit", "share")
        said = (
            f"{say.bench(row['task'], unit).title}, {say.figure(row['score'], unit)} ({row['bar']})"
        )
        if not row["n"]:
            said = f"{say.bench(row['task'], unit).title}, {row['note']}"
        lines.append(f"- **{'Fails its bar' if row['n'] else 'Not measured'}**: {said}.\n")
    return "".join(lines)


def image_codec(made: Record) -> str:
    """Fidelity by kind, use of the codebook, and probes of the picture codec."""
    lines = [
        [str(row["kind"]), str(row["n"]), number(row.get("psnr"), 1),
         *(number(row.get(key), 2) for key in ("ssim", "lpips"))]
        for row in made["fidelity"]
    ]  # fmt: skip
    use, probe = made["codebook"], made["probe"]
    heads = ("kind", "n", "PSNR, dB", "SSIM", "LPIPS-VGG")
    others = "".join(
        f"- {name}: {scored(x['codes'])} of {x['codes'].get('classes', '–')} classes, single codes "
        f"{scored(x['single codes'])}, most frequent {percent(x.get('constant'))}\n"
        for name, x in made.get("probes", {}).items()
    )
    return (
        f"Pictures (revision `{made['revision']}`), held out:\n\n{table(heads, lines)}\n"
        f"{percent(use['used'])} of the codebook occurs in these {use['codes']:,.0f} codes, with perplexity "
        f"{use['perplexity']:,.0f}. A linear probe on the frozen codes of {probe['train']:,} CIFAR-10 "
        f"training pictures gets {accuracy(probe['codes'])} of {probe['test']:,} test pictures, on pixels "
        f"{accuracy(probe['pixels'])}.\n"
        + (f"Linear probes on codes:\n\n{others}" if others else "")
    )


def audio_codec(made: Record) -> str:
    """Distance, pitch and word errors by source, use of the codebook, and probes of the sound codec."""
    lines = []
    for name, row in made["by_source"].items():
        wer = row.get("wer") or {}
        lines.append(
            [name, str(row["sounds"]), number(row.get("log_mel_distance_db"), 1),
             percent(row.get("pitch_within_half_semitone")),
             percent(wer.get("original")), percent(wer.get("codec"))]
        )  # fmt: skip
    heads = (
        "source",
        "n",
        "log-mel distance, dB",
        "pitch within ½ semitone",
        "WER before",
        "WER after",
    )
    probes = "; ".join(
        f"{name} {accuracy(x['codes'])} on codes, {accuracy(x.get('mel'))} on log-mel ({classes(x)} classes)"
        for name, x in made.get("probe", {}).items()
    )
    return (
        f"Sounds (revision `{made['revision']}`), held out; WER by Whisper-base, before and after the codec:\n\n"
        f"{table(heads, lines)}\n{made['codes_used']:,} codes occur in these {made['codes']:,}, with perplexity "
        f"{made['perplexity']:,.0f}. Linear probes on frozen codes: {probes}.\n"
    )


def ablation(made: Record) -> str:
    """Figures of variants trained alike, a column each: `{"variants": {name: figures}}`, figures nested or not."""
    variants = {name: flat(figures) for name, figures in made["variants"].items()}
    names = list(dict.fromkeys(key for figures in variants.values() for key in figures))
    if not names:
        raise CardError("an ablation has no figures")
    lines = [[name, *(figures.get(name, "–") for figures in variants.values())] for name in names]
    about = ", ".join(f"{key} {value:,}" for key, value in made.items() if isinstance(value, int))
    return table(["", *variants], lines) + (f"\nEach with {about}.\n" if about else "")


def flat(figures: Record, before: str = "") -> dict[str, str]:
    """Nested figures by the words of their path; a value with its interval in brackets, words left out."""
    found: dict[str, str] = {}
    for key, value in figures.items():
        name = f"{before} {key.replace('_', ' ')}".strip()
        if key in SIZES:
            continue
        if isinstance(value, Mapping) and "accuracy" in value:
            found[name] = scored(value)
        elif isinstance(value, Mapping):
            found |= flat(value, name)
        elif isinstance(value, list) and len(value) == 3:
            found[name] = f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]"
        elif isinstance(value, int | float):
            found[name] = number(value)
    return found


def scored(probe: Record) -> str:
    """A probe's accuracy with its interval in brackets, where it has one."""
    if "interval" not in probe:
        return percent(probe["accuracy"])
    return f"{percent(probe['accuracy'])} [{', '.join(percent(x) for x in probe['interval'])}]"


def mixture(made: Record) -> str:
    """What was trained on, by source and by task: documents, tokens a medium, epochs, licences."""
    media = ("text", "image", "audio")
    sources = [
        [row["source"], number(row["documents"]), *(number(row[m]) for m in media), row["licence"]]
        for row in made["sources"]
    ]
    tasks = [
        [f"`{row['task']}`", number(row["documents"]), *(number(row[m]) for m in media),
         number(row["epochs"], 2)]
        for row in made["tasks"]
    ]  # fmt: skip
    heads = ("documents", "text ids", "picture codes", "sound codes")
    return (
        f"By source, as built:\n\n{table(('source', *heads, 'licence'), sources)}\n"
        "By task; epochs are of the stages together, runs before them had an "
        f"earlier mixture:\n\n{table(('task', *heads, 'epochs'), tasks)}"
    )


def training(model: Path) -> str:
    """Each run by its log: steps, tokens, hours, and where the loss of each medium began and ended."""
    lines, total = [], 0
    for path in sorted(model.glob("training*.jsonl"), key=order):
        steps = [row for row in read_json(path) if "step" in row and "loss" in row]
        if not steps:
            raise CardError(f"{path}: no step is logged")
        last, tail = steps[-1], steps[-max(1, len(steps) // 20) :]
        # A few steps each, since a step holds few documents.
        begun, ended = mean_media(steps[: len(tail)]), mean_media(tail)
        losses = ", ".join(f"{m} {begun[m]:.2f} → {ended[m]:.2f}" for m in ended if m in begun)
        hours = f"{last['seconds'] / 3600:.2f}"
        total += last["tokens"]
        lines.append([f"`{path.name}`", f"{last['step']:,}", f"{last['tokens']:,}", hours, losses])
    if not lines:
        raise CardError(f"{model}: no training*.jsonl; it is written by `python -m recipes.nano`")
    made = table(("log", "steps", "tokens", "hours", "loss, first and last twentieth"), lines)
    return f"{made}\n{total:,} tokens in all; each run begins with what the one before it left.\n"


def order(path: Path) -> tuple[int, str]:
    """Where a log stands among the runs: those of the first weights, then the stages of later ones."""
    name = path.stem
    if name in ("training", "training-settled"):
        return 0, name
    stage = name.rpartition("-")[2]
    return {"projections": 1, "sft": 3, "asked": 4}.get(stage, 2), name


def mean_media(steps: Sequence[Record]) -> dict[str, float]:
    """The mean loss of each medium over some steps."""
    found: dict[str, list[float]] = defaultdict(list)
    for row in steps:
        for medium, loss in row.get("media", {}).items():
            found[medium].append(loss)
    return {medium: sum(x) / len(x) for medium, x in found.items()}


def spending(rows: Sequence[Record]) -> str:
    """Hours by stage and device, and an estimate of the energy with its formula."""
    stages: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        device, threads = str(row["device"]), max(1, int(row.get("threads") or 1))
        watts = next((WATTS[word] for word in WATTS if word in device), WATTS_A_THREAD * threads)
        entry = stages.setdefault((str(row["stage"]), device), [0.0, 0.0, 0.0])
        hours = row["seconds"] / 3600
        entry[0] += hours
        entry[1] = max(entry[1], threads)
        entry[2] += hours * watts * OVERHEAD / 1000
    lines = [
        [stage, device, f"{hours:.2f}", f"{threads:.0f}", f"{energy:.3f}"]
        for (stage, device), (hours, threads, energy) in stages.items()
    ]
    total = [sum(entry[i] for entry in stages.values()) for i in range(3)]
    gpus = ", ".join(f"{word} {watts:.0f} W" for word, watts in WATTS.items())
    return (
        table(("stage", "device", "hours", "threads", "kWh, estimated"), lines)
        + f"\n{total[0]:.2f} device hours in all; about {total[2]:.2f} kWh. Energy is not measured but estimated: "
        f"hours × power × {OVERHEAD:g} for cooling and losses, with {WATTS_A_THREAD:g} W a CPU thread, "
        f"memory and board included, and the rated power of a GPU ({gpus}). What was tried and thrown "
        "away is in docs/LOG.md and not in this table.\n"
    )


def shown_samples(made: Record) -> str:
    """The contact sheets and sounds, with what was asked and what was answered."""
    parts = [f"Seed {made['seed']}; the first answers given, none left out.\n"]
    for sheet in made.get("sheets", []):
        parts.append(f"![{sheet['title']}](samples/{sheet['file']})\n\n{sheet['about']}\n")
    sounds = [
        [f"[`{x['file']}`](samples/{x['file']})", x["asked"], x.get("heard", "–")]
        for x in made.get("sounds", [])
    ]
    if sounds:
        parts.append(table(("sound", "asked", "what Whisper-base hears"), sounds))
    answers = [[x["given"], x["asked"], x["answered"], x["right"]] for x in made.get("answers", [])]
    if answers:
        parts.append(table(("given", "asked", "answered", "right"), answers))
    return "\n".join(parts)


def files(model: Path) -> str:
    """Sizes of what the folder holds, in MB of 10⁶ bytes."""
    held = sorted(p for p in model.iterdir() if p.is_file() and p.stat().st_size >= 50_000)
    lines = [[f"`{p.name}`", f"{p.stat().st_size / 1e6:.1f}"] for p in held]
    return table(("file", "MB"), lines)


def number(value: Any, digits: int = 3) -> str:
    """A cell: whole numbers with commas, others with `digits` decimals, "–" for nothing, words as they are."""
    if value is None:
        return "–"
    if isinstance(value, bool | str):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


def percent(value: float | None) -> str:
    """A share in per cent with one decimal, or "–"."""
    return "–" if value is None else f"{100 * value:.1f} %"


def accuracy(value: Any) -> str:
    """A probe's accuracy, bare or in a record of several figures."""
    return percent(value.get("accuracy") if isinstance(value, Mapping) else value)


def classes(probe: Record) -> str:
    """How many classes a probe tells apart, said by the probe or by its figure on codes."""
    codes = probe["codes"]
    return str(
        probe.get("classes") or (codes.get("classes") if isinstance(codes, Mapping) else "–")
    )
