"""A small corpus of text, pictures and sounds, so cheap that a run over it spends its time in the blocks.

Rows of `ROW` ids of one medium, each a slice of a stream of items that are named in text: speeches, a novel, picture
books and Python's own library; photographs of 32×32 pixels as 8×8 patches; recordings as frames of 10 ms. Text is
spelled by a byte-level BPE of 1,024 pieces, a patch or a frame by the nearest of 256 centres; all are made here, from
the training side. What is held out keeps to whole speeches, books, modules and clips, and to the official
test files of the pictures. Everything lies in one folder, which appears by one rename.

Shapes: N rows, T ids a row, V vectors of W values, K centres.
"""

from __future__ import annotations

import json
import os
import shutil
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from m27.codec.media import read_image
from m27.codec.mel import whisper_log_mel
from m27.data.loader import Batch
from m27.data.mixture import State
from m27.data.progress import track
from m27.data.registry import cache_folder, fetch
from m27.data.sources import (
    cifar10,
    environment,
    spoken_digits,
    spoken_orders,
    spoken_words,
    storybooks,
    tiny_imagenet,
)
from m27.data.sources.base import Item
from m27.data.sources.clips import hashed, warp
from m27.data.sources.sentences import TEXTS
from m27.train.routing import token_media

PIECES, CONTROL, CENTRES = 1024, 16, 256
IMAGE = PIECES + CONTROL
AUDIO = IMAGE + CENTRES
SIZE = AUDIO + CENTRES
END, PICTURE, SOUND = PIECES, PIECES + 1, PIECES + 2
# As in the `meta` of shards: where each medium's ids lie.
VOCABULARY: dict[str, Any] = {
    "size": SIZE, "text": PIECES, "turn_end": END, "image": (IMAGE, AUDIO), "audio": (AUDIO, SIZE),
}  # fmt: skip
REVISION = 1
ROW = 256
PATCH = 4
KINDS = ("text", "image", "audio")

Ids = NDArray[np.int64]
# (what the row comes from, ids) of an item
Stream = Iterator[tuple[str, Ids]]


def texts() -> Iterator[tuple[str, str, bool]]:
    """(name, text, whether it trains) of every whole text."""
    found: list[tuple[str, str]] = []
    for package in TEXTS:
        for path in sorted((fetch(package) / "package" / "data").glob("*.json")):
            content = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(content, dict):
                found.append((path.stem, str(content.get("text", ""))))
    for pages in storybooks.books():
        text = "\n".join(page.text for page in pages if page.text)
        found.append((f"story {pages[0].meta['story']}", text))
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).parts
        if not {"site-packages", "test", "tests", "idlelib", "__pycache__"} & set(parts):
            found.append(("/".join(parts), path.read_text(encoding="utf-8", errors="ignore")))
    for name, text in found:
        if len(text) > 200:
            yield name, text, hashed(name, "moe") >= 0.1


def spelling(training: Iterable[str]) -> Tokenizer:
    """A byte-level BPE of `PIECES` pieces of these texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        training,
        trainers.BpeTrainer(vocab_size=PIECES, initial_alphabet=alphabet, show_progress=False),
    )
    return tokenizer


def patches(item: Item, mirrored: bool = False) -> Tensor:
    """A photograph as 8×8 patches of 4×4 pixels, [64, 48]."""
    pixels = torch.from_numpy(read_image(item.image or b"")).permute(2, 0, 1).float() / 127.5 - 1
    pixels = torch.nn.functional.adaptive_avg_pool2d(pixels, 8 * PATCH)
    if mirrored:
        pixels = pixels.flip(2)
    return (
        pixels.unfold(1, PATCH, PATCH)
        .unfold(2, PATCH, PATCH)
        .permute(1, 2, 0, 3, 4)
        .reshape(64, -1)
    )


def frames(item: Item, speed: float = 1.0) -> Tensor:
    """A recording as frames of 10 ms, [T, 20]: its mel spectrum, four bands at a time."""
    samples = np.asarray(item.audio) if speed == 1 else warp(np.asarray(item.audio), speed)
    found = whisper_log_mel(torch.from_numpy(samples)[None])[0]
    return found.unflatten(0, (20, -1)).mean(1).t()


def centres(vectors_VW: Tensor, count: int = CENTRES, rounds: int = 12) -> Tensor:
    """`count` centres [K, W] of vectors by k-means, begun at some of them."""
    draw = torch.Generator().manual_seed(0)
    some = vectors_VW[torch.randperm(len(vectors_VW), generator=draw)[:60_000]]
    found = some[:count].clone()
    for _ in range(rounds):
        owner = nearest(some, found)
        sums = torch.zeros_like(found).index_add_(0, owner, some)
        held = torch.bincount(owner, minlength=count)[:, None]
        found = torch.where(held > 0, sums / held.clamp(min=1), found)
    return found


def nearest(vectors_VW: Tensor, centres_KW: Tensor) -> Tensor:
    """The number of the nearest centre of each vector, [V]."""
    half = centres_KW.square().sum(1) / 2
    parts = vectors_VW.split(16_384)
    return torch.cat([(part @ centres_KW.t()).sub_(half).argmax(1) for part in parts])


def build(folder: Path) -> None:
    """Make the corpus: `train.npy` and `held.npy` [N, T] and, a line each, `train.json` and `held.json`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=folder.name + ".", dir=folder.parent))
    try:
        written = list(texts())
        tokenizer = spelling(text for _, text, trains in written if trains)
        tokenizer.save(str(temporary / "tokenizer.json"))
        sides: dict[bool, list[tuple[int, str, Ids]]] = {True: [], False: []}
        for name, text, trains in written:
            ids = np.asarray([*tokenizer.encode(text).ids, END], dtype=np.int64)
            sides[trains] += [(0, name, row) for row in _rows(ids)]
        _media(1, _of(cifar10, tiny_imagenet), patches, tokenizer, sides)
        sounds = _of(spoken_digits, spoken_words, spoken_orders, environment)
        _media(2, sounds, frames, tokenizer, sides)
        for trains, name in ((True, "train"), (False, "held")):
            found = sides[trains]
            np.save(
                temporary / f"{name}.npy", np.stack([row for _, _, row in found]).astype(np.uint16)
            )
            origins = {"kinds": [k for k, _, _ in found], "origins": [o for _, o, _ in found]}
            (temporary / f"{name}.json").write_text(json.dumps(origins), encoding="utf-8")
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _of(*sources: Any) -> Iterator[Item]:
    for source in sources:
        yield from source.items()


def _media(kind: int, items: Any, vectors: Any, tokenizer: Tokenizer, sides: Any) -> None:
    found: list[tuple[bool, str, Tensor]] = []
    for item in track(items, f"reading {KINDS[kind]}"):
        trains = item.meta["split"] != "test"
        found.append((trains, item.text, vectors(item)))
        for other in ((), (True,), (0.9, 1.12))[kind] if trains else ():
            found.append((trains, item.text, vectors(item, other)))
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(kind)).tolist()
    sample = torch.cat([found[i][2] for i in order[:20_000] if found[i][0]])
    table = centres(sample)
    marks, first = ((PICTURE, IMAGE), (SOUND, AUDIO))[kind - 1]
    for trains in (True, False):
        members = [i for i in order if found[i][0] == trains]
        codes = nearest(torch.cat([found[i][2] for i in members]), table)
        parts: list[Ids] = []
        for i, own in zip(members, codes.split([len(found[i][2]) for i in members]), strict=True):
            parts += [np.asarray([*tokenizer.encode(found[i][1]).ids, marks]), own.numpy() + first]
            parts.append(np.asarray([END]))
        ids = np.concatenate(parts)
        sides[trains] += [(kind, f"{KINDS[kind]} {n}", row) for n, row in enumerate(_rows(ids))]


class Corpus:
    """The rows of `folder`, which is built where it is not there. What is held out lies in two halves, no
    text in both: half 0 is to choose settings by, half 1 to measure on."""

    def __init__(self, folder: Path | None = None) -> None:
        folder = folder or cache_folder() / "generated" / f"moe-{REVISION}"
        if not folder.is_dir():
            build(folder)
        self.rows, self.kinds, _ = _side(folder, "train")
        held, kinds, origins = _side(folder, "held")
        first = np.asarray([hashed(origin, "half") < 0.5 for origin in origins])
        self._halves = [
            (held[p], kinds[p], np.unique(origins[p], return_inverse=True)[1])
            for p in (first, ~first)
        ]

    def batches(
        self, share: Sequence[int], seed: int, state: State | None
    ) -> Iterator[tuple[list[Batch], State]]:
        """Endless batches of `share` rows of each of `KINDS`, every kind shuffled anew each epoch."""
        step = 0 if state is None else int(state["step"])
        members = [np.flatnonzero(self.kinds == kind) for kind in range(len(KINDS))]
        while True:
            picks = [
                _pick(m, seed, kind, step, n)
                for kind, (m, n) in enumerate(zip(members, share, strict=True))
            ]
            step += 1
            yield [collate(self.rows[np.concatenate(picks)])], {"step": step}

    def origins(self, half: int) -> int:
        """How many origins one half has: whole texts, and for pictures and sounds the rows."""
        return int(self._halves[half][2].max()) + 1

    def held(
        self, half: int, most: Sequence[int], at_once: int = 16
    ) -> Iterator[tuple[Batch, Ids]]:
        """Batches of at most `most` rows of each of `KINDS` of one half, always the same ones, with the
        number of each row's origin."""
        rows, kinds, origins = self._halves[half]
        order = np.random.default_rng(half).permutation(len(rows))
        picks = np.concatenate([order[kinds[order] == kind][:n] for kind, n in enumerate(most)])
        for begin in range(0, len(picks), at_once):
            part = picks[begin : begin + at_once]
            yield collate(rows[part]), origins[part]


def _side(folder: Path, name: str) -> tuple[Ids, Ids, NDArray[Any]]:
    told = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    rows = np.load(folder / f"{name}.npy", allow_pickle=False)
    return rows, np.asarray(told["kinds"]), np.asarray(told["origins"])


def _pick(members: Ids, seed: int, kind: int, step: int, count: int) -> Ids:
    out = []
    for at in range(step * count, (step + 1) * count):
        epoch, place = divmod(at, len(members))
        out.append(_order(len(members), seed, kind, epoch)[place])
    return members[np.asarray(out, dtype=np.int64)]


@lru_cache(maxsize=8)
def _order(count: int, seed: int, kind: int, epoch: int) -> Ids:
    return np.random.default_rng([seed, kind, epoch]).permutation(count)


def collate(rows: NDArray[Any]) -> Batch:
    """The batch of rows [B, T], each a document of its own whose every id but the first is a target."""
    ids_BT = torch.from_numpy(rows.astype(np.int64))
    count, length = ids_BT.shape
    places = torch.arange(count * length).view(count, length)
    targets = ids_BT[:, 1:].flatten()
    return Batch(
        ids_BT=ids_BT,
        documents_BT=torch.arange(count)[:, None].expand(count, length).contiguous(),
        positions_BT=torch.arange(length).expand(count, length).contiguous(),
        places_M=places[:, :-1].flatten(),
        targets_M=targets,
        weights_M=torch.ones(len(targets)),
        media_M=token_media(targets, VOCABULARY),
        tasks_M=torch.zeros_like(targets),
    )


def _rows(ids: Ids) -> Iterator[Ids]:
    """Whole rows of a stream; what is left of it is dropped."""
    for begin in range(0, len(ids) - ROW + 1, ROW):
        yield ids[begin : begin + ROW]
