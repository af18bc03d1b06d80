"""The README.md beside a fine-tuned adapter, written from results.json alone; and a tuned model's folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from m27.cli.export import BESIDE
from m27.model import checkpoint
from m27.model.decoder import Decoder

_HOW = {
    "lora": "LoRA adapters; everything else is frozen",
    "qlora": "LoRA adapters over a base held in 4 bits",
    "full": "every weight",
}


def write_model(
    decoder: Decoder, base: Path, out: Path, dtype: torch.dtype = torch.bfloat16
) -> None:
    """A stock checkpoint in `out`, with the base's tokenizer and codecs beside it."""
    checkpoint.save(decoder, out, dtype=dtype)
    for name in BESIDE:
        if (base / name).is_file():
            shutil.copyfile(base / name, out / name)


def card(results: dict[str, Any]) -> str:
    """The model card."""
    data, training, settings = results["data"], results["training"], results["settings"]
    held = results["held_out"]
    lines = [
        f"# {Path(settings['out']).name}: {results['base']}, fine-tuned", "",
        f"Trained: {_HOW[results['method']]}. Base: {results['base']} ({results['base_revision']}).",
        (f"Data: {', '.join(data['files'])}; {data['records']:,} records ({data['tokens']:,} tokens) "
        f"to train on, {data['held_out']:,} held out, {data['skipped']:,} left out; "
        f"hash {data['hash']}."),
        (f"Length: {training['steps']:,} steps, {training['tokens']:,} tokens, "
        f"{training['seconds'] / 60:.1f} minutes."),
        (f"With the figures below, the call that ended it took {results['cost']['minutes']} minutes "
        f"({results['cost']['processor_minutes']} of a processor) and {results['cost']['peak_mb']:,} MB."), "",
        "## On held-out records", "",
        *_losses(held), "",
        *_answers(results["answers"]),
        "## What it may have forgotten", "",
    ]  # fmt: skip
    if results["regression"]:
        lines += [
            ("The base's own regression set; a change counts where its interval (paired bootstrap over "
            "documents) lies above zero."), "", *_losses(results["regression"]), "",
        ]  # fmt: skip
    lines += [f"- {note}" for note in results["notes"]]
    lines += [f"- **Warning:** {warning}." for warning in results["warnings"]] or [
        "Nothing fell by more than its noise."
    ]
    lines += ["", "## Settings", "", "```json"]
    chosen = ("method", "rank", "alpha", "lr", "epochs", "steps", "minutes", "max_tokens", "val", "seed")
    lines += ["{" + ", ".join(f'"{k}": {json.dumps(settings[k])}' for k in chosen) + "}", "```", ""]
    lines += ["## Use", ""]
    if results["method"] == "full":
        lines += ["    m27 chat --model model", "    m27 serve --model model", ""]
    else:
        lines += [
            "    m27 chat --adapter FOLDER", "    m27 serve --adapter NAME=FOLDER",
            "    m27 merge FOLDER --out MODEL", "",
            "Plain `peft` loads this folder on the checkpoint that `m27 export` writes.", "",
        ]  # fmt: skip
    return "\n".join(lines)


def _losses(rows: dict[str, Any]) -> list[str]:
    out = [
        "| | targets | loss before | after | perplexity before | after | change (95 % interval) |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        low, high = row["interval"]
        out.append(
            f"| {name} | {row['targets']:,} | {row['loss_before']:.3f} | {row['loss_after']:.3f} | "
            f"{row['perplexity_before']:.2f} | {row['perplexity_after']:.2f} | "
            f"{row['change']:+.3f} ({low:+.3f} to {high:+.3f}){' **worse**' if row['worse'] else ''} |"
        )
    return out


def _answers(answers: dict[str, Any]) -> list[str]:
    if not answers:
        return []
    out = ["| greedy answers | n | before | after |", "|---|---|---|---|"]
    for name, after in answers["after"].items():
        before = answers["before"][name]
        out.append(f"| {name} | {after['n']} | {_share(before)} | {_share(after)} |")
    return [*out, ""]


def _share(row: dict[str, Any]) -> str:
    low, high = row["interval"]
    return f"{row['share']:.1%} ({low:.1%}–{high:.1%})"
