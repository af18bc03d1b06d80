"""The parts of an interleaved answer: kept as JSON with their media in files, and read again.

A kept part is `{"type": "text", "text"}` or `{"type": "image" | "audio", "file"}`, the file's name relative to the
folder of the run. Knows files; no model and no score.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from m27.data.media_parts import as_file

Part = dict[str, Any]
ENDINGS = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp", "image/gif": "gif", "image/bmp": "bmp",
           "audio/wav": "wav", "audio/mpeg": "mp3", "audio/flac": "flac", "audio/ogg": "ogg"}  # fmt: skip


def kept(content: Iterable[Mapping[str, Any]], folder: Path) -> list[Part]:
    """Parts with their media written below `folder/media`, named by what they hold, so that equal pictures are one
    file. Raises MediaError and OSError for a medium that cannot be had."""
    out: list[Part] = []
    for part in content:
        if part["type"] == "text":
            if part["text"].strip():
                out.append({"type": "text", "text": part["text"]})
            continue
        kind, data = as_file(part)
        name = f"media/{hashlib.sha256(data).hexdigest()[:16]}.{ENDINGS[kind]}"
        if not (folder / name).is_file():
            (folder / "media").mkdir(parents=True, exist_ok=True)
            partial = folder / f"{name}.partial"
            partial.write_bytes(data)
            os.replace(partial, folder / name)
        out.append({"type": part["type"], "file": name})
    return out


def opened(parts: Iterable[Mapping[str, Any]], folder: Path) -> list[Part]:
    """Kept parts as parts of a message, media by path."""
    return [
        {"type": "text", "text": part["text"]} if part["type"] == "text"
        else {"type": part["type"], "path": str(folder / part["file"])}
        for part in parts
    ]  # fmt: skip


def blocks(content: Iterable[Mapping[str, Any]]) -> list[Part]:
    """Parts in which texts that follow one another are one, and empty ones none."""
    out: list[Part] = []
    for part in content:
        if part["type"] != "text":
            out.append(dict(part))
        elif not part["text"].strip():
            continue
        elif out and out[-1]["type"] == "text":
            out[-1] = {"type": "text", "text": f"{out[-1]['text'].rstrip()} {part['text'].strip()}"}
        else:
            out.append({"type": "text", "text": part["text"].strip()})
    return out


def kinds(content: Sequence[Mapping[str, Any]]) -> list[str]:
    """The order of media of an answer: ["text", "image", …], by block."""
    return [part["type"] for part in blocks(content)]
