"""What codecs learn from, in few bytes: pictures and sounds of the train side as two folders that can be carried.

    python -m recipes.codec_corpora --out .cache/lease/corpora

Each is a table of media (`m27.data.media_table`) and a list of what is in it. On the machine that trains, nothing else
of a source is needed: no package, no program.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from m27.codec.media import write_atomic
from m27.data.media_table import MediaTable, MediaWriter
from m27.train.audio_corpus import Clip
from m27.train.image_data import Pictures

LIST = "list.json"
# Pictures of a source at most, drawn by seed; the others go whole. Photographs of 32 × 32 are many and alike.
TAKEN = {
    "cifar10": 12_000, "tiny_imagenet": 9_000, "easy_vqa": 2_500, "grocery": 1_000, "storybooks": 1_500,
}  # fmt: skip
MAX_HOURS = 5.0  # of sound; sources that are longer than others are thinned alike


def write_pictures(groups: Mapping[str, Pictures], folder: Path, seed: int = 0) -> int:
    """Write groups of pictures, by source; how many there are."""
    listed, count = [], 0
    with MediaWriter(folder) as writer:
        for name, group in groups.items():
            rows = list(range(len(group.captions)))
            random.Random(f"{seed}:{name}").shuffle(rows)
            rows = sorted(rows[: TAKEN.get(name, len(rows))])
            numbers = [writer.picture(group.pixels[row]) for row in rows]
            count += len(numbers)
            captions = [group.captions[row] for row in rows]
            listed.append([group.kind, group.weight, numbers, captions])
    write_atomic(folder / LIST, json.dumps(listed).encode())
    return count


def read_pictures(folder: Path, workers: int = 8) -> list[Pictures]:
    """The groups of `write_pictures`, decoded. Raises MediaTableError, or OSError for no list."""
    table = MediaTable(folder)
    listed = json.loads((folder / LIST).read_text(encoding="utf-8"))
    return [
        Pictures(kind, np.stack(list(table.read(numbers, workers))), captions, weight)
        for kind, weight, numbers, captions in listed
    ]


def write_sounds(clips: Iterable[Clip], folder: Path, hours: float = MAX_HOURS) -> float:
    """Write clips until so many hours are full; how many hours there are. Their order is the caller's."""
    listed, samples = [], 0
    with MediaWriter(folder) as writer:
        for source, wave, text in clips:
            if samples >= hours * 3600 * 16_000:
                break
            whole = wave.astype(np.float32)
            if wave.dtype == np.int16:
                whole /= np.float32(32_767)
            listed.append([source, writer.sound(whole), text])
            samples += len(whole)
    write_atomic(folder / LIST, json.dumps(listed).encode())
    return samples / 16_000 / 3600


def read_sounds(folder: Path, workers: int = 8) -> Iterator[Clip]:
    """The clips of `write_sounds`, decoded. Raises MediaTableError, or OSError for no list."""
    table = MediaTable(folder)
    listed = json.loads((folder / LIST).read_text(encoding="utf-8"))
    waves = table.read([number for _, number, _ in listed], workers)
    for (source, _, text), wave in zip(listed, waves, strict=True):
        yield Clip(source, wave, text)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit status comes back."""
    from recipes import audio_codec, image_codec

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=("pictures", "sounds", "teacher"), default=[])
    parser.add_argument("--hours", type=float, default=MAX_HOURS)
    given = parser.parse_args(arguments)
    wanted = given.only or ("pictures", "sounds", "teacher")
    if "pictures" in wanted:
        groups = {n: image_codec.gather(sources=(n,))[0] for n in image_codec.WEIGHTS}
        groups["shapes"] = image_codec.plain_shapes()
        count = write_pictures(groups, given.out / "pictures")
        print(f"{count:,} pictures, {_megabytes(given.out / 'pictures')}", file=sys.stderr)
    if "sounds" in wanted:
        hours = write_sounds(audio_codec.clips(), given.out / "sounds", given.hours)
        print(f"{hours:.2f} h of sound, {_megabytes(given.out / 'sounds')}", file=sys.stderr)
    if "teacher" in wanted:
        audio_codec.write_teacher(given.out)
    return 0


def _megabytes(folder: Path) -> str:
    return f"{sum(p.stat().st_size for p in folder.iterdir()) / 1e6:.1f} MB"


if __name__ == "__main__":
    sys.exit(main())
