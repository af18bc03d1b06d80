"""What every importer yields: one `Record` a line or file, with its documents or what is wrong with it.

Also the rules that hold in every format: where media may lie, how a data URL is read, and what a
conversation needs so that something can be learned from it. Opens no media (`m27.data.check` does) and
fetches nothing: an address of the network is refused.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m27.data.importers import lines
from m27.data.sources.base import Document
from m27.language.template import MessageError, check_message
from m27.language.vocabulary import MAX_GRID

STRIDE = 16  # pixels a code, as the processor has it

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
SOUNDS = (".wav", ".flac", ".ogg", ".mp3")
_DATA_URL = re.compile(r"data:[^,]{0,200}?;base64,", re.IGNORECASE)
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:(//|\\\\)")


class CheckError(ValueError):
    """Data that cannot be used; the message names the file, the line where there is one, and the reason."""


@dataclass(frozen=True)
class Record:
    """One record of the user's: its place, and its documents or what is wrong with it.

    `line` counts from 1; 0 where the record is the file itself. `reason` is "" for a good one.
    """

    file: str
    line: int
    documents: tuple[Document, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Options:
    """How records are read.

    root: the folder that relative paths begin at. direction: "both", or the one task of a folder of
    pictures ("draw", "caption") or of sounds ("speak", "transcribe"). prompt: how that one task is asked
    ("{text}" stands for the caption); "" takes the phrasings that the model was trained on, by `seed`.
    """

    root: Path
    direction: str = "both"
    prompt: str = ""
    seed: int = 0


def by_line(path: Path, document: Callable[[Any, int], Document]) -> Iterator[Record]:
    """A record for each value of a JSONL file or a JSON list: what `document` makes of it and its line, or
    why it raised MessageError, or why it could not be read. Raises OSError."""
    for line, value in lines.values(path):
        if isinstance(value, lines.Fault):
            yield Record(str(path), line, reason=value.reason)
            continue
        try:
            yield Record(str(path), line, (document(value, line),))
        except MessageError as error:
            yield Record(str(path), line, reason=str(error))


def plain(text: str, most: int = 400) -> str:
    """What records say, fit for one line of a terminal or a log: nothing in it moves the cursor."""
    text = text if len(text) <= most else text[: most - 1] + "…"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def local(reference: Any, root: Path) -> str:
    """The path of a medium that a record names, as a string; relative ones begin at `root`.

    An absolute path is taken as it is: whoever writes one means it. A relative path may not leave `root`
    by "..", since records are passed on with their folder and then would reach into somebody else's.
    Links are followed. Raises MessageError, also for an address of the network.
    """
    if not isinstance(reference, str) or not reference.strip():
        raise MessageError(f"a path must be a string, not {reference!r}")
    if _ADDRESS.match(reference) or reference[:5].lower() == "data:":
        shown = reference if len(reference) <= 60 else reference[:57] + "…"
        raise MessageError(f"{shown}: is an address, not a file; nothing is fetched")
    if "\0" in reference:
        raise MessageError(f"{reference!r} is not a usable path")
    if os.path.isabs(reference):
        return reference
    inside = os.path.normpath(reference)
    if inside.split(os.sep)[0] == os.pardir:
        raise MessageError(f"{reference}: leaves the folder of the data; only an absolute path may")
    return str(root / inside)


def medium(url: Any, root: Path) -> dict[str, Any]:
    """`{"bytes"}` of a base64 data URL, or `{"path"}` of a file. Raises MessageError."""
    if isinstance(url, str) and url[:5].lower() == "data:":
        head = _DATA_URL.match(url)
        if head is None:
            raise MessageError("a data URL must be base64: data:image/png;base64,…")
        return {"bytes": decoded(url[head.end() :])}
    return {"path": local(url, root)}


def decoded(text: Any) -> bytes:
    """The bytes of a base64 string. Raises MessageError."""
    if not isinstance(text, str):
        raise MessageError("base64 data must be a string")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise MessageError("is not base64") from None


def conversation(found: Any) -> list[dict[str, Any]]:
    """Messages with their parts listed, each checked, and something in them to learn. MessageError."""
    if not isinstance(found, Sequence) or isinstance(found, str) or not found:
        raise MessageError("messages must be a list with at least one message")
    messages: list[dict[str, Any]] = []
    losses: list[bool] = []
    for index, message in enumerate(found):
        role, parts = check_message(message, f"message {index}")
        for place, part in enumerate(parts):
            _check_size(part.get("size"), f"message {index}, part {place}")
            _check_codes(part, f"message {index}, part {place}")
        loss = [bool(part.get("loss", role == "assistant")) for part in parts]
        if role == "assistant" and _blank(parts) and (any(loss) or not loss):
            raise MessageError(f"message {index}: the assistant's answer is empty")
        losses += loss
        messages.append({"role": role, "content": parts})
    if not any(message["role"] == "assistant" for message in messages):
        raise MessageError("no message is the assistant's, so there is nothing to learn")
    if not any(losses):
        raise MessageError("no part carries loss, so there is nothing to learn")
    return messages


def _check_size(size: Any, where: str) -> None:
    if size is None:
        return
    pair = isinstance(size, Sequence) and len(size) == 2
    most = MAX_GRID * STRIDE
    if not pair or any(type(s) is not int or not 0 < s <= most or s % STRIDE for s in size):
        raise MessageError(
            f"{where}: size must be [height, width], multiples of {STRIDE} up to {most}, not {size!r}"
        )


def _check_codes(part: dict[str, Any], where: str) -> None:
    codes = part.get("codes")
    if codes is None:
        return
    picture = part["type"] == "image"
    rows = codes if picture else [codes]
    lists = isinstance(codes, list) and bool(codes) and all(isinstance(row, list) for row in rows)
    if (
        not lists
        or not rows[0]
        or any(len(row) != len(rows[0]) for row in rows)
        or any(type(code) is not int or code < 0 for row in rows for code in row)
    ):
        form = "rows of numbers, all of one length" if picture else "a list of numbers"
        raise MessageError(f"{where}: codes must be {form}")


def _blank(parts: Sequence[dict[str, Any]]) -> bool:
    """Whether nothing is said: no medium, and no word."""
    return all(part["type"] == "text" and not part["text"].strip() for part in parts)
