"""Shards whose codes are still to come: documents as ids, with the number of a picture or sound where its codes go.

Codes hang on codecs, and on a machine that is lent for minutes the codecs are new. So documents are made beforehand
with a codec that only counts: it puts each medium into a table (`media_table`) and spells the medium's number in
the codes that it returns, as many as the real codec would. There, `fill` encodes every medium once, many at a time,
puts its codes in the place of its number, and the folder is a shard like any other. It can do so again with media
that are `altered`: other codes for the same words.

Shapes: N codes of one medium.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m27.data import build as shards
from m27.data.media_table import MediaTable, MediaWriter
from m27.language.codecs import AudioCodec, ImageCodec
from m27.language.processor import Processor

HOP = 400  # samples a code
STRIDE = 16  # pixels a code, along each side
DIGITS = 4  # codes that spell a number, at most
PENDING = "pending"  # the revision of codes that are numbers
MEDIA = "media"  # the table's folder, beside the documents'

Codes = NDArray[np.int64]
Alter = Callable[[Tensor], Tensor]  # pixels [B, 3, H, W] or waves [B, T] → the same, otherwise


def spell(number: int, count: int, base: int) -> Codes:
    """`number` in `count` codes of a codebook of `base`: digits, lowest first, then noughts. ValueError: no room."""
    digits = min(count, DIGITS)
    if number >= base**digits:
        raise ValueError(f"medium {number} cannot be named in {count} codes of {base}")
    codes = np.zeros(count, np.int64)
    codes[:digits] = number // base ** np.arange(digits) % base
    return codes


class Counting:
    """A codec of one medium that numbers what it gets instead of encoding it; see the module."""

    codes_revision = PENDING

    def __init__(self, levels: tuple[int, ...], size: int, writer: MediaWriter) -> None:
        self.levels, self.size, self._writer = levels, size, writer

    def decode(self, codes: Tensor) -> Tensor:
        """There is nothing to decode."""
        raise RuntimeError("codes that are numbers cannot be decoded")

    def stream(self) -> Any:
        """There is nothing to decode."""
        raise RuntimeError("codes that are numbers cannot be decoded")


class CountingPictures(Counting):
    """Pixels [B, 3, H, W] in 0..1 → numbers spelled in codes [B, h, w]."""

    def encode(self, pixels_B3HW: Tensor) -> Tensor:
        """The numbers of some pictures."""
        b, _, height, width = pixels_B3HW.shape
        grid = height // STRIDE, width // STRIDE
        rgb = (pixels_B3HW * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        numbers = [self._writer.picture(one) for one in rgb]
        codes = np.stack([spell(n, grid[0] * grid[1], self.size) for n in numbers])
        return torch.from_numpy(codes.reshape(b, *grid))

    def to(self, **_: Any) -> CountingPictures:
        """It has no weights to move."""
        return self


class CountingSounds(Counting):
    """Waves [B, T] → numbers spelled in codes [B, N]."""

    def encode(self, wave_BT: Tensor) -> Tensor:
        """The numbers of some sounds."""
        count = -(-wave_BT.shape[1] // HOP)
        numbers = [self._writer.sound(wave.numpy()) for wave in wave_BT]
        return torch.from_numpy(np.stack([spell(n, count, self.size) for n in numbers]))


def counting(
    processor: Processor, levels: tuple[tuple[int, ...], tuple[int, ...]], writer: MediaWriter
) -> Processor:
    """`processor` with codecs that count; `levels` of the image and of the audio codebook."""
    v = processor.vocabulary
    pictures = CountingPictures(levels[0], v.image_size, writer)
    sounds = CountingSounds(levels[1], v.audio_size, writer)
    return Processor(processor._tokenizer, v, pictures, sounds)


def build(
    documents: Iterable[Mapping[str, Any]],
    processor: Processor,
    levels: tuple[tuple[int, ...], tuple[int, ...]],
    folder: str | Path,
    packed: bool = True,
    **named: Any,
) -> dict[str, Any]:
    """A template: the shard of `documents` with numbers for codes, and the table of their media within it.

    `packed` media are small and slow to make, others the contrary. `named` as for `build.build`; its meta comes back.
    """
    folder = Path(folder)
    with MediaWriter(folder.with_name(f"{folder.name}.{MEDIA}"), packed) as writer:
        meta = shards.build(documents, counting(processor, levels, writer), folder, **named)
    shutil.rmtree(folder / MEDIA, ignore_errors=True)
    os.replace(folder.with_name(f"{folder.name}.{MEDIA}"), folder / MEDIA)
    return meta


def is_current(folder: str | Path, processor: Processor) -> bool:
    """Whether `folder` is a whole template made with the same vocabulary."""
    path = Path(folder)
    try:
        meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    wanted = shards.revisions(processor) | {"image_codec": PENDING, "audio_codec": PENDING}
    whole = (path / MEDIA / "media.json").is_file()
    return whole and all(meta.get(k) == json.loads(json.dumps(v)) for k, v in wanted.items())


def runs(ids: NDArray[np.uint32], first: int, stop: int) -> list[tuple[int, int]]:
    """Where runs of ids in `first..stop-1` lie: (begin, end) each. Two media never touch: each has its own ends."""
    inside = ((ids >= first) & (ids < stop)).astype(np.int8)
    edges = np.flatnonzero(np.diff(inside, prepend=np.int8(0), append=np.int8(0)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def fill(
    template: str | Path,
    processor: Processor,
    folder: str | Path,
    workers: int = 8,
    alter: Alter | None = None,
    tasks: Collection[str] = (),
    table: MediaTable | None = None,
) -> int:
    """Write the shard `folder` from a template with the processor's codecs; how many media were encoded.

    Media of one size are encoded together, on the codecs' device. `alter` is done to them before, and `tasks`
    keeps documents of these alone, of which there must be one (ShardError). `table`: that of the template, where it
    is open already.
    """
    source, folder = Path(template), Path(folder)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial, ignore=shutil.ignore_patterns(MEDIA))
    if tasks:
        shards.keep_tasks(partial, tasks)
    table = table or MediaTable(source / MEDIA)
    v = processor.vocabulary
    ids = np.fromfile(partial / "tokens.bin", np.uint32)
    places = []
    for span in (v.image, v.audio):
        for begin, end in runs(ids, span.start, span.stop):
            digits = ids[begin : min(end, begin + DIGITS)].astype(np.int64) - span.start
            number = int((digits * len(span) ** np.arange(len(digits))).sum())
            places.append((number, begin, end, span.start))
    wanted = sorted({number for number, *_ in places})
    codes = encode(table, wanted, processor, workers, alter)
    for number, begin, end, first in places:
        if len(codes[number]) != end - begin:
            raise shards.ShardError(
                f"{source}: medium {number} has {len(codes[number])} codes, its place {end - begin}"
            )
        ids[begin:end] = codes[number] + first
    ids.tofile(partial / "tokens.bin")
    meta = json.loads((partial / "meta.json").read_text(encoding="utf-8"))
    meta |= shards.revisions(processor)
    (partial / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    return len(wanted)


def encode(
    table: MediaTable,
    wanted: Sequence[int],
    processor: Processor,
    workers: int = 8,
    alter: Alter | None = None,
    at_once: int = 256,
) -> list[Codes]:
    """The codes of the media `wanted` of a table, altered first where asked for: flat, by number, empty for the
    others."""
    found: list[Codes] = [np.zeros(0, np.int64)] * len(table)
    for picture in (True, False):
        numbers = [i for i in wanted if (table.kinds[i] in "pr") == picture]
        codec = processor.image_codec if picture else processor.audio_codec
        if not numbers or codec is None:
            continue
        device = next(codec.parameters()).device if isinstance(codec, torch.nn.Module) else None
        waiting: dict[tuple[int, ...], list[tuple[int, NDArray[Any]]]] = {}
        for number, stored in zip(numbers, table.read(numbers, workers), strict=True):
            array: NDArray[Any] = stored
            if not picture:
                # Filled up to whole codes, as the codec would: fewer lengths, so fewer and larger batches.
                array = np.pad(stored, (0, -len(stored) % HOP))
            group = waiting.setdefault(array.shape, [])
            group.append((number, array))
            limit = at_once if picture else max(1, at_once * 16_000 // max(len(array), 1))
            if len(group) >= limit:
                _encode_group(codec, group, device, found, alter)
                group.clear()
        for group in waiting.values():
            _encode_group(codec, group, device, found, alter)
    return found


def _encode_group(
    codec: ImageCodec | AudioCodec, group: Sequence[tuple[int, NDArray[Any]]],
    device: torch.device | None, found: list[Codes], alter: Alter | None,
) -> None:  # fmt: skip
    """Put the codes of (number, medium) of one shape into `found`."""
    if not group:
        return
    x = torch.from_numpy(np.stack([array for _, array in group])).to(device)
    if x.dim() == 4:
        x = x.permute(0, 3, 1, 2).float() / 255.0
    if alter is not None:
        x = alter(x)
    with torch.inference_mode():
        made = codec.encode(x).flatten(1).cpu().numpy()
    for (number, _), row in zip(group, made, strict=True):
        found[number] = row


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of the files of a template by kind: `ids` and the media's letters."""
    table = MediaTable(folder / MEDIA)
    lengths = np.diff(table._starts)
    by_kind = {
        kind: int(sum(length for _, length in group))
        for kind, group in groupby(sorted(zip(table.kinds, lengths, strict=True)), lambda x: x[0])
    }
    return by_kind | {"ids": (folder / "tokens.bin").stat().st_size}
