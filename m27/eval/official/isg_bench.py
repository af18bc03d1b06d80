"""ISG-Bench's JSON lines (Dongping-Chen/ISG at de504cd, ISG_eval/ISG-Bench.jsonl) → samples.

The question's texts and pictures are asked in turn as they stand. The golden answer and what the benchmark wants to
know of an answer (its blocks' relations, its pictures' contents) are in `meta`. The file itself was not to be had; the
form is that of the repository's description and programs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from m27.eval.official.sample import FormatError, need, picture, read_lines
from m27.eval.samples import Sample

# The table's columns, and the categories of the file that each gathers.
GROUPS: dict[str, tuple[str, ...]] = {
    "style transfer": (
        "Art Style Transfer", "Scene Attribute Transfer", "Photo Variation", "Portrait Variation",
    ),
    "progressive": ("Animation Images", "Animation Text-Image", "Attribute Transfer"),
    "3d scene": ("3D_object", "multi-Perspective Scene Generation"),
    "decomposition": ("Realistic Object Detection", "Imaginary Object Detection"),
    "image-text complementation": ("HowTo", "Scientific"),
    "temporal prediction": ("Prediction", "painting"),
    "visual storytelling": (
        "visual storytelling text-image", "visual storytelling image", "visual storytelling text",
    ),
    "vqa": ("Object_VQA", "Historical"),
}  # fmt: skip


def group(category: str) -> str:
    """The column of a category; the category itself where the table has none."""
    return next((name for name, held in GROUPS.items() if category in held), category)


def samples(path: str | Path, images: str | Path | None = None) -> Iterator[Sample]:
    """One a question. `images`: the folder that pictures' names begin in (that of the file if not given); those of the
    question must lie there. `meta`: `group`, `gold`, `blocks` (subject, object and question) and `pictures` (image,
    question, id and the ids that must be answered yes before)."""
    file = Path(path)
    folder = Path(images) if images else file.parent
    for where, row in read_lines(file):
        name, category, query, golden = need(row, ("id", "Category", "Query", "Golden"), where)
        content = parts(query, folder, where)
        for part in content:
            if part["type"] == "image" and not Path(part["path"]).is_file():
                raise FormatError(f"{where}: no picture {part['path']}")
        predict = row.get("predict") or {}
        meta = {
            "group": group(category), "gold": parts(golden, folder, where),
            "blocks": blocks(predict.get("block_qa")), "pictures": pictures(predict.get("image_qa"), where),
        }  # fmt: skip
        yield Sample(str(name), [{"role": "user", "content": content}], (), meta)


def parts(found: Sequence[Mapping[str, Any]], folder: Path, where: str) -> list[dict[str, Any]]:
    """The file's parts as ours. Raises FormatError for a type that is neither."""
    out: list[dict[str, Any]] = []
    for part in found:
        kind, content = need(part, ("type", "content"), where)
        if kind == "text":
            out.append({"type": "text", "text": content})
        elif kind == "image":
            out.append(picture(folder / content))
        else:
            raise FormatError(f"{where}: a part is text or image, not {kind!r}")
    return out


def _questions(found: Any) -> list[Mapping[str, Any]]:
    """A list of questions, or that under the first name of an object, as the official program reads it."""
    if isinstance(found, Mapping):
        found = next(iter(found.values()), None)
    return list(found or ())


def blocks(found: Any) -> list[dict[str, str]]:
    """Questions between two blocks; one that lacks a name is passed over, as in the official program."""
    names = ("subject", "object", "Question")
    return [{n.lower(): q[n] for n in names} for q in _questions(found) if all(n in q for n in names)]


def pictures(found: Any, where: str) -> list[dict[str, Any]]:
    """Yes-or-no questions about single pictures."""
    out = []
    for one in _questions(found):
        image, asked, number, before = need(one, ("image", "Question", "id", "Preliminary"), where)
        out.append({"image": image, "question": asked, "id": number, "after": list(before)})
    return out


def outputs(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Saved answers in the benchmark's own form: lines with `id` and `output`. Raises FormatError."""
    found = {}
    for where, row in read_lines(path):
        (name,) = need(row, ("id",), where)
        if row.get("output"):
            found[str(name)] = parts(row["output"], path.parent, where)
    return found
