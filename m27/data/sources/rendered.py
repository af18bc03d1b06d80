"""Pictures that must be made before they can be read: drawings rendered, arrays packed, once.

`stored` keeps a source's PNGs in one flat file beside one JSON line a picture, as `clips` does for
sounds: the second pass costs a file read. Does not know what is drawn.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from m27.data.progress import track
from m27.data.registry import cache_folder
from m27.data.sources.base import Item, SourceError


def raster(svg: str, size: int, name: str) -> bytes:
    """An SVG drawing as PNG bytes, `size` pixels wide, on nothing; by the package resvg_py.

    No fonts and no outside references are read. Raises SourceError naming the drawing.
    """
    try:
        import resvg_py  # an extra: only who renders drawings needs it
    except ImportError:
        raise SourceError(f"{name}: drawings need resvg_py (pip install m27[data])") from None
    try:
        return bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, skip_system_fonts=True))
    except ValueError as error:
        raise SourceError(f"{name}: not a drawing: {error}") from error


def stored(name: str, revision: str, make: Callable[[], Iterable[Item]]) -> Iterator[Item]:
    """Pictures of `make`, made once and kept under `generated/<name>-<revision>`.

    `make` yields items with `image` set to encoded bytes; their `meta` must be JSON. Two makers at
    once are safe: the folder appears by one rename. Raises SourceError naming a damaged folder.
    """
    folder = cache_folder() / "generated" / f"{name}-{revision}"
    if not folder.is_dir():
        _write(folder, make())
    data = (folder / "pictures.bin").read_bytes()
    for line in (folder / "pictures.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["stop"] > len(data):
            raise SourceError(f"{folder}: {row['key']} lies past the end; delete the folder")
        image = data[row["start"] : row["stop"]]
        yield Item(row["key"], row["concept"], row["text"], image, meta=row["meta"])


def _write(folder: Path, items: Iterable[Item]) -> None:
    """Write the pictures to a temporary folder and give it its name at the end."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        at = 0
        with (
            open(temporary / "pictures.bin", "wb") as pictures,
            open(temporary / "pictures.jsonl", "w", encoding="utf-8") as lines,
        ):
            for item in track(items, f"preparing {folder.name}"):
                if item.image is None:
                    raise SourceError(f"{folder.name}: {item.key} has no picture")
                pictures.write(item.image)
                row = {"key": item.key, "concept": item.concept, "text": item.text}
                place = {"meta": item.meta, "start": at, "stop": at + len(item.image)}
                lines.write(json.dumps(row | place) + "\n")
                at += len(item.image)
        temporary.chmod(0o755)
        try:
            os.replace(temporary, folder)
        except OSError:
            if not folder.is_dir():  # another maker was first: its folder is equal
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
