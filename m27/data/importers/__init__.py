"""A user's own data → our documents, whatever usual form it is in. One file an importer.

`open(path)` finds the format by looking; nothing is read until records are asked for, and files of lines
are read line by line, again at each pass. Whether media can be used is `m27.data.check`'s to say.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from m27.data.importers import chat, folders, lines, llava, preferences, tables
from m27.data.importers.base import IMAGES, SOUNDS, CheckError, Options, Record, plain
from m27.data.sources.base import Document

Importer = Callable[[Path, Options], Iterator[Record]]

KINDS: dict[str, Importer] = {
    "messages": chat.records,
    "preferences": preferences.records,
    "llava": llava.records,
    "images": partial(folders.records, kind=folders.PICTURES),
    "sounds": partial(folders.records, kind=folders.RECORDINGS),
}
FOLDERS = {"images": folders.PICTURES, "sounds": folders.RECORDINGS}
_WANTED = (
    "messages (ours, OpenAI's), input with preferred_output or prompt with chosen (preferences), "
    "conversations (LLaVA)"
)


@dataclass(frozen=True)
class Imported:
    """Records of one format. Iterating gives documents and raises at the first bad record;
    `records` gives everything, good and bad. Both can be gone through again."""

    path: Path
    kind: str
    options: Options
    _read: Importer = field(repr=False)

    def records(self) -> Iterator[Record]:
        """Each record with its documents or what is wrong with it. Raises CheckError."""
        try:
            yield from self._read(self.path, self.options)
        except OSError as error:
            raise CheckError(f"{error.filename or self.path}: {error.strerror}") from None
        except tables.TableError as error:
            raise CheckError(str(error)) from None

    def __iter__(self) -> Iterator[Document]:
        for record in self.records():
            if record.reason:
                raise CheckError(plain(f"{place(record)}: {record.reason}"))
            yield from record.documents


def place(record: Record) -> str:
    """Where a record stands: "file:line", or the file that it is."""
    return f"{record.file}:{record.line}" if record.line else record.file


def open(
    path: str | Path,
    kind: str = "auto",
    *,
    root: str | Path | None = None,
    direction: str = "both",
    prompt: str = "",
    seed: int = 0,
) -> Imported:
    """The records of a file or folder. `kind` is one of KINDS, or "auto": found by looking.

    root: the folder that relative paths begin at; by default the file's own. direction, prompt: for
    folders of media, see `Options`. Raises CheckError where the format cannot be told, where two
    fit, or where an option does not go with it.
    """
    path = Path(path)
    if not path.exists():
        raise CheckError(f"{path}: no such file or folder")
    if kind == "auto":
        path, kind = _of_folder(path) if path.is_dir() else (path, _of_file(path))
    elif kind not in KINDS:
        raise CheckError(f"kind {kind!r} is none of {', '.join(KINDS)}")
    elif path.is_dir() and kind not in FOLDERS:
        raise CheckError(f"{path}: is a folder; {kind} are in one file, name it")
    elif path.is_file() and kind in FOLDERS and path.name not in tables.NAMES:
        raise CheckError(f"{path}: {kind} are in a folder, or a {', '.join(tables.NAMES)}")
    directions = tuple(FOLDERS[kind].directions) if kind in FOLDERS else ("both",)
    if direction not in directions:
        raise CheckError(f"{path}: direction {direction!r}; {kind} go {' or '.join(directions)}")
    if prompt and direction == "both":
        raise CheckError(f"{path}: a prompt asks for one direction of a folder; name that too")
    if prompt and FOLDERS[kind].directions[direction] == ("make",) and "{text}" not in prompt:
        raise CheckError("prompt: {text} must stand in it where the text is to go")
    folder = Path(root) if root is not None else path if path.is_dir() else path.parent
    options = Options(Path(os.path.abspath(folder)), direction, prompt, seed)
    return Imported(path, kind, options, KINDS[kind])


def _of_file(path: Path) -> str:
    """The kind of a file. CheckError where none or two fit."""
    if path.name in tables.NAMES:
        return _of_media(path, path.parent)
    seen: list[Any] = []
    try:
        for _, value in islice(lines.values(path), folders.LOOKED_AT):
            seen.append(value)
            fits = _fits(value)
            if len(fits) > 1:
                raise CheckError(f"{path}: looks like {' and like '.join(fits)}; name its kind")
            if fits:
                return fits[0]
    except OSError as error:
        raise CheckError(f"{path}: {error.strerror or error}") from None
    # Where nothing can be read at all, the check names every line of it.
    if path.suffix == ".jsonl" and all(isinstance(value, lines.Fault) for value in seen):
        return "messages"
    keys = next((plain(", ".join(v), 200) for v in seen if isinstance(v, dict)), "")
    found = f"has the keys {keys}" if keys else "holds no JSON records"
    raise CheckError(f"{path}: cannot tell its format: {found}; looked for {_WANTED}")


def _fits(value: Any) -> list[str]:
    """The kinds that a first record can be of."""
    if isinstance(value, list):
        return ["messages"] if value and isinstance(value[0], dict) and "role" in value[0] else []
    if not isinstance(value, dict):
        return []
    signs = {
        "messages": ("messages",), "preferences": ("preferred_output", "chosen"),
        "llava": ("conversations",),
    }  # fmt: skip
    return [kind for kind, keys in signs.items() if any(key in value for key in keys)]


def _of_folder(folder: Path) -> tuple[Path, str]:
    """The kind of a folder, or of the one file of records in it. CheckError."""
    files = sorted(
        p for p in folder.iterdir()
        if p.suffix in (".jsonl", ".json") and p.is_file() and p.name not in tables.NAMES
    )  # fmt: skip
    has_table = any((folder / name).is_file() for name in tables.NAMES)
    try:
        layouts = {kind: folders.layout(folder, of) for kind, of in FOLDERS.items()}
    except tables.TableError as error:
        if not files and not has_table:
            raise CheckError(str(error)) from None
        layouts = {}
    # Beside a file of records, or a table, folders are where its media lie.
    pairs = [kind for kind, found in layouts.items() if found == "texts"]
    if files and (has_table or pairs or len(files) > 1):
        names = [p.name for p in files[:3]] + ["a table of media"] * has_table
        names += [f"{kind} with texts" for kind in pairs]
        raise CheckError(f"{folder}: holds {' and '.join(names)}; name the one that is meant")
    if files:
        return files[0], _of_file(files[0])
    if has_table:
        return folder, _of_media(folder, folder)
    pairs = pairs or [kind for kind, found in layouts.items() if found == "folders"]
    if len(pairs) > 1:
        raise CheckError(f"{folder}: looks like {' and like '.join(pairs)}; name its kind")
    if pairs:
        return folder, pairs[0]
    raise CheckError(
        f"{folder}: cannot tell its format: looked for {', '.join(tables.NAMES)}, for pictures "
        f"({' '.join(IMAGES)}) or sounds ({' '.join(SOUNDS)}) with a .txt beside each or in folders "
        "that name them, and for one .jsonl or .json file of records"
    )


def _of_media(path: Path, folder: Path) -> str:
    """The kind of a table, by the media that it names, else by those in the folder."""
    try:
        table = path if path.is_file() else folders.table_of(path)
        named = [row for _, row in islice(tables.rows(table or path), folders.LOOKED_AT)]
    except OSError as error:
        raise CheckError(f"{path}: {error.strerror or error}") from None
    except tables.TableError as error:
        raise CheckError(str(error)) from None
    names = [row.name.lower() for row in named if isinstance(row, tables.Row)]
    fits = {kind for kind, of in FOLDERS.items() if any(n.endswith(of.suffixes) for n in names)}
    if not fits:  # LJSpeech names no endings
        fits = {kind for kind, of in FOLDERS.items() if next(folders.files(folder, of.suffixes), None)}
    if len(fits) != 1:
        why = "pictures as well as sounds" if fits else "neither pictures nor sounds"
        raise CheckError(f"{path}: names {why}; name its kind")
    return fits.pop()
