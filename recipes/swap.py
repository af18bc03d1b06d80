"""Puts another decoder into a folder of weights, if its codes are those that the weights were trained on.

    python -m recipes.swap --codec out/codecs/image_codec.safetensors --check
    python -m recipes.swap --codec out/codecs/image_codec.safetensors

Says which parts of the codec differ and what has to be made again. A codec whose encoder or quantiser differs
spells other codes: it is refused, since what the decoder-only language model knows of pictures or sounds would
no longer be true of them.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from m27.codec import packing
from m27.codec.audio import AudioCodec
from m27.codec.image import ImageCodec

FILES = {"image": "image_codec.safetensors", "audio": "audio_codec.safetensors"}
AGAIN = {
    "image": "recipes.image_report; the eval tasks that draw; recipes.samples; recipes.card",
    "audio": "recipes.audio_report; the eval tasks that speak or sound; recipes.samples; recipes.card",
}


class SwapError(ValueError):
    """A codec that cannot take the place of the other; the message is one line that says why."""


@dataclass(frozen=True)
class Part:
    """A part of a codec: its name, how many of its tensors differ, and by how much at most, of its largest."""

    name: str
    tensors: int
    changed: int
    by: float


@dataclass(frozen=True)
class Difference:
    """Two codec files of one medium: whether they spell the same codes, and their parts."""

    medium: str
    same_codes: bool
    codes: tuple[str, str]
    parts: tuple[Part, ...]

    @property
    def changed(self) -> bool:
        """Whether anything differs at all."""
        return any(part.changed for part in self.parts)

    def lines(self) -> list[str]:
        """What differs, a line a part, and whether the codes stay."""
        said = [
            f"{part.name:12} {part.changed} of {part.tensors} tensors differ"
            + (f", by up to {part.by:.1%} of the largest weight" if part.changed else "")
            for part in self.parts
        ]
        verdict = "the same" if self.same_codes else "others"
        return [*said, f"codes        {verdict} ({self.codes[0]} and {self.codes[1]})"]


def medium_of(tensors: dict[str, Tensor], path: Path) -> str:
    """ "image" or "audio", by the parts that only one of the codecs has. Raises SwapError."""
    for part, medium in (("trunk.", "image"), ("ear.", "audio")):
        if any(name.startswith(part) for name in tensors):
            return medium
    raise SwapError(f"{path}: neither a picture codec nor a sound codec")


def codes_of(medium: str, path: Path) -> str:
    """The `codes_revision` of a codec file."""
    if medium == "image":
        return ImageCodec.load(path).codes_revision
    return AudioCodec.load(path.parent, name=path.name).codes_revision


def compare(new: Path, old: Path) -> Difference:
    """What differs between two codec files. Raises SwapError, or CodecError for one that cannot be read."""
    (packed_new, _), (packed_old, _) = packing.read(new), packing.read(old)
    medium = medium_of(packed_new, new)
    if medium_of(packed_old, old) != medium:
        raise SwapError(f"{new} and {old}: one is of pictures, the other of sounds")
    codes = codes_of(medium, new), codes_of(medium, old)
    one, other = packing.unpack(packed_new), packing.unpack(packed_old)
    names: dict[str, list[str]] = {}
    for name in [*one, *(n for n in other if n not in one)]:
        names.setdefault(name.split(".")[0], []).append(name)
    parts = tuple(_part(name, keys, one, other) for name, keys in sorted(names.items()))
    return Difference(medium, codes[0] == codes[1], codes, parts)


def _part(name: str, keys: Sequence[str], one: dict[str, Tensor], other: dict[str, Tensor]) -> Part:
    changed, by = 0, 0.0
    largest = max((float(t.abs().max()) for k in keys for t in _both(k, one, other)), default=0.0)
    for key in keys:
        two = _both(key, one, other)
        if len(two) < 2 or two[0].shape != two[1].shape:
            changed, by = changed + 1, 1.0
        elif not torch.equal(*two):
            changed += 1
            by = max(by, float((two[0] - two[1]).abs().max()) / max(largest, 1e-12))
    return Part(name, len(keys), changed, by)


def _both(key: str, *states: dict[str, Tensor]) -> list[Any]:
    return [state[key] for state in states if key in state and state[key].numel()]


def swap(new: Path, model: Path) -> Difference:
    """Put the file `new` in the place of the model's codec of the same medium; what differs.

    Raises SwapError where the codes would be others; nothing is written then.
    """
    found = against(new, model)
    if not found.same_codes:
        raise SwapError(
            f"{new}: its codes are not those of {model}; build the shards again and train "
            "(docs/train.md, What invalidates what)"
        )
    target = model / FILES[found.medium]
    partial = target.with_name(f".{target.name}.partial")
    shutil.copyfile(new, partial)
    partial.replace(target)
    return found


def against(new: Path, model: Path) -> Difference:
    """What differs between a codec file and the model's of the same medium."""
    return compare(new, model / FILES[medium_of(packing.read(new)[0], new)])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit status comes back: 2 where the codes are others."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--codec", type=Path, required=True, help="file of the new codec")
    parser.add_argument("--model", type=Path, default=Path("weights/m27-nano"))
    parser.add_argument("--check", action="store_true", help="say what differs, and write nothing")
    given = parser.parse_args(arguments)
    try:
        found = (against if given.check else swap)(given.codec, given.model)
    except (SwapError, packing.CodecError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(found.lines()))
    if found.same_codes and found.changed:
        print(f"to be made again: {AGAIN[found.medium]}")
    return 0 if found.same_codes else 2


if __name__ == "__main__":
    sys.exit(main())
