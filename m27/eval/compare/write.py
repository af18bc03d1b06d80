"""The files of a comparison: `report.html` and `report.json`, with the pictures that samples show."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from m27.data.media_parts import thumbnail
from m27.eval.ask import Plan, Result
from m27.eval.compare.gather import Wish, report
from m27.eval.compare.page import page
from m27.eval.journal import write_json

PICTURES = 40  # samples whose pictures are shown


def write(
    out: Path, results: Mapping[str, Sequence[Result]], plans: Sequence[Plan], wish: Wish, title: str
) -> dict[str, Any]:
    """Write both files, each whole or not at all; the report comes back."""
    made = report(results, wish)
    messages = {(plan.task, sample.id): sample.messages for plan in plans for sample in plan.samples}
    pictures: list[list[str]] = []
    for sample in made["samples"][:PICTURES]:
        parts = [
            part for message in messages[sample["task"], sample["id"]] if not isinstance(message["content"], str)
            for part in message["content"] if part["type"] == "image" and part.get("codes") is None
        ]  # fmt: skip
        shown = [base64.b64encode(thumbnail(part)).decode() for part in parts[:4]]
        pictures.append([f"data:image/png;base64,{data}" for data in shown])
    write_json(out / "report.json", made)
    partial = out / "report.html.partial"
    partial.write_text(page(made, pictures, title), encoding="utf-8")
    os.replace(partial, out / "report.html")
    return made
