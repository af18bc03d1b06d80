"""OpenING's JSON lines (LanceZPF/OpenING at 56b663b, OpenING-benchmark/test_data.jsonl) → samples.

An instance is a list of steps asked and a list of steps answered, each a text and perhaps a picture, which stands
behind its text. The question is asked as it stands, without the marks `<BEGIN>` and `<image>`; the file's own answer is
`meta["gold"]`, and what it calls a person's ("Human") in its ranking.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from m27.eval.official.sample import FormatError, need, picture, read_json, read_lines
from m27.eval.samples import Sample

MARKS = ("<BEGIN>", "<image>")


def samples(path: str | Path, images: str | Path | None = None) -> Iterator[Sample]:
    """One an instance. `images`: the folder that the pictures' names begin in (that of the file if not given); what is
    shown must lie there, the pictures of gold answers need not. `meta`: `gold`, `task` and `subtask`."""
    file = Path(path)
    folder = Path(images) if images else file.parent
    for where, row in read_lines(file):
        name, task, subtask = need(row, ("total_uid", "meta_task_name", "subtask_name"), where)
        asked, answered = (steps(row, side, where) for side in ("input", "output"))
        content = parts(asked, folder)
        for part in content:
            if part["type"] == "image" and not Path(part["path"]).is_file():
                raise FormatError(f"{where}: no picture {part['path']}")
        meta = {"task": task, "subtask": subtask, "gold": parts(answered, folder)}
        yield Sample(str(name), [{"role": "user", "content": content}], (), meta)


def steps(row: Mapping[str, Any], side: str, where: str) -> list[dict[str, Any]]:
    """The steps of the `input` or `output` of an instance. Raises FormatError."""
    (conversations,) = need(row, ("conversations",), where)
    for turn in conversations:
        if side in turn:
            return list(turn[side])
    raise FormatError(f"{where}: no {side} among its conversations")


def parts(found: Sequence[Mapping[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Steps as texts and pictures in turn, pictures by path below `folder`."""
    out: list[dict[str, Any]] = []
    for step in found:
        text = step.get("text") or ""
        for mark in MARKS:
            text = text.replace(mark, "")
        if text.strip():
            out.append({"type": "text", "text": text.strip()})
        if step.get("image"):
            out.append(picture(folder / step["image"]))
    return out


def answered(folder: Path, name: str) -> list[dict[str, Any]] | None:
    """The answer to an instance in a folder of outputs (`MODELNAME_output`, a JSON file an instance with its pictures
    beside it); None where it has none."""
    for ending in (".json", ".jsonl"):
        file = folder / f"{name}{ending}"
        if file.is_file():
            found = steps(read_json(file), "output", str(file))
            return parts([{**s, "image": s["image"] and Path(s["image"]).name} for s in found], folder)
    return None
