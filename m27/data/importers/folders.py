"""A folder of pictures with captions, or of sounds with transcripts, in the direction that is wanted.

The texts are in a table (`m27.data.importers.tables`), beside each file (`x.png` with `x.txt`), or they are
the names of the folders that the files lie in (`dog/1.png`). A pair
becomes a document to make the medium from its text, one to tell the text of the medium, or both. Requests
are phrased as the model learned them, or by the user's own `prompt`.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from m27.data import messages as say
from m27.data.importers import tables
from m27.data.importers.base import IMAGES, SOUNDS, Options, Record, local
from m27.data.importers.lines import Fault
from m27.data.prompts import ask
from m27.data.sources.base import Document
from m27.language.template import MessageError

MAX_TEXT = 1_000_000  # bytes of a text beside a medium
_PASSED_OVER = ("readme", "license", "licence", "notice", "captions")
LOOKED_AT = 20  # files at most, to tell a format
SIDES = {"train", "test", "val", "valid", "validation", "dev", "eval"}
_ARTICLE = re.compile(r"^(A|An|The)\b")


@dataclass(frozen=True)
class Kind:
    """What a folder holds: its medium, suffixes, the two tasks and what a text of it is called."""

    medium: str
    suffixes: tuple[str, ...]
    make: str
    tell: str
    noun: str
    directions: dict[str, tuple[str, ...]]


PICTURES = Kind(
    "image", IMAGES, "draw", "caption_picture", "caption",
    {"both": ("tell", "make"), "draw": ("make",), "caption": ("tell",)},
)  # fmt: skip
RECORDINGS = Kind(
    "audio", SOUNDS, "speak", "transcribe", "transcript",
    {"both": ("tell", "make"), "speak": ("make",), "transcribe": ("tell",)},
)  # fmt: skip


def records(path: Path, options: Options, kind: Kind) -> Iterator[Record]:
    """The records of a folder, or of one table of it, in order: rows, or files by name.

    Raises OSError, TableError.
    """
    table = path if path.is_file() else table_of(path)
    if table is not None:
        return _rows(table, options, kind)
    if layout(path, kind) == "folders":
        return _sorted_in(path, options, kind)
    return _pairs(path, options, kind)


def layout(folder: Path, kind: Kind) -> str:
    """Where the texts of a folder without a table are, by its first files: "texts" beside them, "folders"
    where they are sorted into folders by name, "" where there are neither.

    Raises TableError where those folders are the sides of a split, of which one is to be named.
    """
    first = list(islice(files(folder, kind.suffixes), LOOKED_AT))
    if any(path.with_suffix(".txt").is_file() for path in first):
        return "texts"
    if not first or any(path.parent == folder for path in first):
        return ""
    tops = {path.name for path in folder.iterdir() if path.is_dir()}
    if tops & SIDES:
        names = ", ".join(sorted(tops))
        raise tables.TableError(f"{folder}: holds the folders {names}; name the one that is meant")
    return "folders"


def table_of(folder: Path) -> Path | None:
    """The table of a folder; None where there is none. Raises TableError where there are several."""
    found = [folder / name for name in tables.NAMES if (folder / name).is_file()]
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise tables.TableError(f"{folder}: has {names}; name the one that counts")
    return found[0] if found else None


def files(folder: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """Files below a folder with one of these endings, by name; hidden ones are passed over."""
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        for name in sorted(names):
            if name.lower().endswith(suffixes) and not name.startswith("."):
                yield Path(where, name)


def _rows(table: Path, options: Options, kind: Kind) -> Iterator[Record]:
    for line, row in tables.rows(table):
        try:
            if isinstance(row, Fault):
                raise MessageError(row.reason)
            path = _found(row.name, options.root, kind)
            yield Record(
                str(table), line, _documents(path, row.text, f"{row.name}:{line}", options, kind)
            )
        except MessageError as error:
            yield Record(str(table), line, reason=str(error))


def _found(name: str, root: Path, kind: Kind) -> str:
    """The path of a file that a table names; LJSpeech leaves out `wavs/` and the ending."""
    path = local(name, root)
    if kind.medium == "audio" and not path.lower().endswith(SOUNDS):
        below = (local(f"wavs/{name}.wav", root), local(f"{name}.wav", root))
        return next((one for one in below if os.path.isfile(one)), below[0])
    return path


def _pairs(folder: Path, options: Options, kind: Kind) -> Iterator[Record]:
    for path in files(folder, (*kind.suffixes, ".txt")):
        if path.suffix.lower() == ".txt":
            alone = not any(_beside(path, suffix) for suffix in kind.suffixes)
            if alone and path.stem.lower() not in _PASSED_OVER:
                yield Record(str(path), 0, reason=f"no {kind.medium} file of this name is beside it")
            continue
        try:
            text = _text(path, kind)
            name = path.relative_to(folder).as_posix()
            yield Record(str(path), 0, _documents(str(path), text, name, options, kind))
        except MessageError as error:
            yield Record(str(path), 0, reason=str(error))


def _sorted_in(folder: Path, options: Options, kind: Kind) -> Iterator[Record]:
    """Files whose text is the name of the folder that they lie in."""
    for path in files(folder, kind.suffixes):
        try:
            if path.parent == folder:
                raise MessageError("lies in no folder, whose name would be its text")
            text = re.sub(r"[_\s]+", " ", path.parent.name).strip()
            name = path.relative_to(folder).as_posix()
            yield Record(str(path), 0, _documents(str(path), text, name, options, kind))
        except MessageError as error:
            yield Record(str(path), 0, reason=str(error))


def _beside(path: Path, suffix: str) -> bool:
    return path.with_suffix(suffix).is_file() or path.with_suffix(suffix.upper()).is_file()


def _text(path: Path, kind: Kind) -> str:
    beside = path.with_suffix(".txt")
    try:
        with beside.open("rb") as file:
            data = file.read(MAX_TEXT + 1)
    except FileNotFoundError:
        raise MessageError(f"no {kind.noun}: {beside.name} is not beside it") from None
    except OSError as error:
        raise MessageError(f"{beside.name}: {error.strerror or error}") from None
    if len(data) > MAX_TEXT:
        raise MessageError(f"{beside.name}: is larger than {MAX_TEXT / 1e6:g} MB")
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise MessageError(f"{beside.name}: is not UTF-8") from None


def _documents(
    path: str, text: str, name: str, options: Options, kind: Kind
) -> tuple[Document, ...]:
    """The documents of one pair. MessageError."""
    if not text:
        raise MessageError(f"the {kind.noun} is empty")
    rng = random.Random(f"{options.seed}:{name}")
    part = {"type": kind.medium, "path": path}
    out = []
    for direction in kind.directions[options.direction]:
        task = kind.tell if direction == "tell" else kind.make
        wish = say.words(_request(task, text, rng, options.prompt, spoken=kind is RECORDINGS))
        if direction == "tell":
            turns = say.turn([part, wish], [say.words(text)])
        else:
            turns = say.turn([wish], [part])
        out.append(say.document(name, task, options.root.name, turns))
    return tuple(out)


def _request(task: str, text: str, rng: random.Random, prompt: str, spoken: bool) -> str:
    """How the task is asked. What is to be spoken is quoted as it is; a caption becomes part of a
    sentence: "A red fox." is asked for as "Draw a red fox."."""
    if prompt:
        return prompt.replace("{text}", text)
    if spoken:
        return ask(task, rng, text=text)
    return ask(task, rng, text=_ARTICLE.sub(lambda m: m[0].lower(), text.rstrip(".")))
