"""Pictures beside one another on one sheet, each with its name: what a reader of scores may look
at.

Which pictures is the caller's choice; tasks take the first by seed, never the best.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

COLUMNS = 10
CELL, LINE = 128, 14  # pixels of a picture's side, and of the line below it
LONGEST = 21  # letters that fit under a picture


def contact_sheet(
    path: Path, pictures: Sequence[npt.NDArray[np.uint8]], names: Sequence[str]
) -> None:
    """Write a PNG of pictures uint8 [H, W, 3], ten a row, in their order; no file for none.

    The folder is made; the file appears whole. Raises ValueError for another number of names.
    """
    if len(pictures) != len(names):
        raise ValueError(f"{len(pictures)} pictures with {len(names)} names")
    if not pictures:
        return
    rows = -(-len(pictures) // COLUMNS)
    columns = min(COLUMNS, len(pictures))
    sheet = Image.new("RGB", (columns * CELL, rows * (CELL + LINE)), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (pixels, name) in enumerate(zip(pictures, names, strict=True)):
        x, y = number % COLUMNS * CELL, number // COLUMNS * (CELL + LINE)
        sheet.paste(Image.fromarray(pixels).resize((CELL, CELL)), (x, y))
        pen.text((x + 2, y + CELL + 1), _printable(name), fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    sheet.save(partial, "PNG")
    os.replace(partial, path)


def _printable(name: str) -> str:
    """A name cut to what fits, in letters that every font has."""
    plain = name.encode("ascii", "replace").decode()
    return plain if len(plain) <= LONGEST else plain[: LONGEST - 1] + "-"
