"""Whether a user's data can be trained on: each bad record named by file, line and reason.

`check` looks at every record of any format that `m27.data.importers` knows and opens its media; `usable`
does the same for a training run and gives what is left; `read` gives the documents without opening media.
All three say the same of a record. Knows no format itself, and nothing of training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from m27.codec import media
from m27.data import importers
from m27.data.branches import join
from m27.data.importers import Imported
from m27.data.importers.base import CheckError as CheckError
from m27.data.importers.base import Record, plain
from m27.data.progress import Progress
from m27.data.sources.base import Document
from m27.language.template import MessageError

if TYPE_CHECKING:
    from m27.language.processor import Processor  # brings torch

_NAMED = 20  # bad records in the message of an error; its report has all


@dataclass(frozen=True)
class Problem:
    """One bad record. `line` is 0 where the record is the file itself."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return plain(f"{self.file}:{self.line}: " if self.line else f"{self.file}: ") + self.reason


@dataclass
class Report:
    """What a check found: how many records and documents there are, and what is wrong with which.

    `longest` is the most tokens of a document, where tokens were counted.
    """

    records: int = 0
    documents: int = 0
    longest: int = 0
    problems: list[Problem] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.records:,} records, {len(self.problems):,} bad"


class BadRecordsError(CheckError):
    """Records that cannot be used, and nobody said to go on without them; `report` has them all."""

    def __init__(self, source: Path, report: Report) -> None:
        named = "; ".join(map(str, report.problems[:_NAMED]))
        more = len(report.problems) - _NAMED
        rest = f"; and {more:,} more" if more > 0 else ""
        super().__init__(f"{source}: {report}: {named}{rest}")
        self.report = report


class Usable:
    """The documents of the records that are good; can be gone through again, each time from the files."""

    def __init__(self, source: Imported, bad: frozenset[int], count: int) -> None:
        self.source, self._bad, self._count = source, bad, count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Document]:
        for number, record in enumerate(self.source.records()):
            if number in self._bad:
                continue
            if record.reason:
                where = f"{importers.place(record)}: {record.reason}"
                raise CheckError(f"{plain(where)}, which it was not before")
            yield from record.documents


def check(
    source: str | Path | Imported,
    *,
    open_media: bool = True,
    processor: Processor | None = None,
    max_tokens: int | None = None,
) -> Report:
    """Look at every record; with `open_media` also decode its pictures and sounds.

    With a `processor` the tokens of each document are counted, and one of more than `max_tokens` is bad.
    Raises CheckError where the format cannot be told, a file cannot be read, or there is no record.
    """
    return _examine(source, open_media, processor, max_tokens)[1]


def usable(
    source: str | Path | Imported,
    skip_bad: bool = False,
    *,
    open_media: bool = True,
    processor: Processor | None = None,
    max_tokens: int | None = None,
) -> tuple[Usable, Report]:
    """The documents to train on, and the report of the check that they passed.

    A bad record raises BadRecordsError, whose report names every one; with `skip_bad` the rest is given, and the
    report says how many were left out. Raises CheckError as `check` does, and where nothing is left.
    """
    found, report, bad = _examine(source, open_media, processor, max_tokens)
    if report.problems and not skip_bad:
        raise BadRecordsError(found.path, report)
    if not report.documents:
        raise CheckError(f"{found.path}: {report}; none is left: {report.problems[0]}")
    return Usable(found, bad, report.documents), report


def read(path: str | Path) -> Iterator[Document]:
    """Yield the documents of a file or folder of any known format, with absolute paths.

    Media are not opened here. Raises CheckError naming file and line at the first bad record.
    """
    yield from importers.open(path)


def _examine(
    source: str | Path | Imported,
    open_media: bool,
    processor: Processor | None,
    max_tokens: int | None,
) -> tuple[Imported, Report, frozenset[int]]:
    """What is there, the report, and the numbers of the bad records."""
    found = source if isinstance(source, Imported) else importers.open(source)
    report, bad = Report(), set[int]()
    with Progress(f"checking {found.path.name}", unit="records") as bar:
        for number, record in enumerate(found.records()):
            report.records += 1
            bar.add()
            try:
                if record.reason:
                    raise MessageError(record.reason)
                longest = _fits(record, open_media, processor, max_tokens)
            except (MessageError, media.MediaError) as error:
                report.problems.append(Problem(record.file, record.line, plain(str(error))))
                bad.add(number)
                continue
            report.longest = max(report.longest, longest)
            report.documents += len(record.documents)
    if report.records == 0:
        raise CheckError(f"{found.path}: no records")
    return found, report, frozenset(bad)


def _fits(
    record: Record, open_media: bool, processor: Processor | None, max_tokens: int | None
) -> int:
    """The most tokens of a record's documents (0 where none are counted). MessageError, MediaError."""
    samples: dict[Any, int] = {}
    longest = 0
    for document in record.documents:
        for messages in conversations(document):
            for index, message in enumerate(messages):
                for place, part in enumerate(message["content"]):
                    key = _key(part)
                    if (open_media or processor) and key is not None and key not in samples:
                        # A record of several messages says in which the fault is.
                        alone = record.line == 0 or len(record.documents) > 1
                        where = "" if alone else f"message {index}, part {place}: "
                        samples[key] = _open(part, where)
        if processor is not None:
            longest = max(longest, _tokens(document, processor, samples))
            if max_tokens is not None and longest > max_tokens:
                raise MessageError(f"has {longest:,} tokens, more than the {max_tokens:,} of a row")
    return longest


def conversations(document: Mapping[str, Any]) -> list[Sequence[Mapping[str, Any]]]:
    """The document's messages, and those of its branches."""
    return [document["messages"], *document.get("branches", ())]


def _key(part: Mapping[str, Any]) -> Any:
    """What a part's medium is known by, so that each is opened once a record; None for none."""
    if "path" in part:
        return part["path"]
    return hash(part["bytes"]) if "bytes" in part else None


def _open(part: Mapping[str, Any], where: str) -> int:
    """Decode a medium; the samples of a sound, 0 for a picture. MediaError that begins with `where`."""
    source = part["path"] if "path" in part else part["bytes"]
    try:
        if part["type"] == "image":
            media.read_image(source)
            return 0
        samples = media.read_audio(source)
        if samples.size == 0:
            raise media.MediaError(f"{source if 'path' in part else 'audio data'}: holds no sound")
        return len(samples)
    except media.MediaError as error:
        raise media.MediaError(f"{where}{error}") from error


def _tokens(document: Mapping[str, Any], processor: Processor, samples: Mapping[Any, int]) -> int:
    """The ids of a document, its branches joined as in a shard, without running a codec: a picture has
    as many codes as its size says, a sound one each `hop` samples."""
    flat = []
    for messages in conversations(document):
        spelled = [
            {**message, "content": [_as_codes(p, processor, samples) for p in message["content"]]}
            for message in messages
        ]
        encoded = processor.encode(spelled)
        flat.append((np.asarray(encoded.ids, np.uint32), np.asarray(encoded.loss, np.uint8)))
    return len(join(flat)[0])


def _as_codes(
    part: Mapping[str, Any], processor: Processor, samples: Mapping[Any, int]
) -> Mapping[str, Any]:
    """A part whose medium is spelled by codes of the right number: any, but others for another medium, so
    that branches part where they do."""
    from m27.language.processor import DEFAULT_SIZE, STRIDE

    key = _key(part)
    if key is None:
        return part
    rest = {name: value for name, value in part.items() if name in ("type", "loss")}
    if part["type"] == "image":
        if processor.image_codec is None:
            raise MessageError("holds a picture, and the model has no image codec")
        shape = [side // STRIDE for side in part.get("size", DEFAULT_SIZE)]
        most = processor.vocabulary.image_size
    else:
        hop = getattr(processor.audio_codec, "hop", None)
        if hop is None:
            raise MessageError("holds a sound, and the model has no audio codec")
        shape = [-(-samples[key] // hop)]
        most = processor.vocabulary.audio_size
    return {**rest, "codes": np.full(shape, list(samples).index(key) % most, np.int64)}
