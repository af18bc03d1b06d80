"""Documents → token shards: folders of memory-mapped ids that a training run reads at random.

A shard is one folder, made whole or not at all:

    tokens.bin  uint32 ids of all documents, end to end      loss.bin  uint8, 1 where an id is a target
    index.npy   int64 [documents + 1], where each begins      tasks.npy  uint16 [documents]
    branches.bin  uint8, which of a document's conversations an id belongs to (see `m27.data.branches`);
                only where a document has several
    meta.json   names of the tasks, counts, the vocabulary's offsets, revisions of tokenizer and codecs

It goes through the one `Processor`; it knows nothing of mixtures, rows or models.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m27.codec.media import MediaError
from m27.data.branches import holds_pairs, join, see_pair, task_of
from m27.data.coded import Coder, conversations, raw
from m27.data.progress import Progress
from m27.language.codecs import AudioCodec, ImageCodec
from m27.language.processor import Processor
from m27.language.template import MessageError

FORMAT = "m27-shard-1"
_MEDIA_AT_ONCE = 256


class ShardError(ValueError):
    """A shard that cannot be written or read; the message names the folder and the reason."""


def build(
    documents: Iterable[Mapping[str, Any]],
    processor: Processor,
    folder: str | Path,
    *,
    max_tokens: int = 2048,
    limit: int | None = None,
    task_limits: Mapping[str, int] | None = None,
    label: str | None = None,
    total: int | None = None,
    coder: Coder | None = None,
) -> dict[str, Any]:
    """Encode `documents` and write them as the shard `folder`; its meta comes back.

    Documents longer than `max_tokens`, without a target, or with media that cannot be read are left out
    and counted in the meta (`long`, `empty`, `broken`, with the first reasons). `limit` ends after so many
    documents, `task_limits` takes at most so many of a task. `coder` says how media are coded; without one, in
    batches by one worker. Raises ShardError when none is left.
    """
    folder = Path(folder)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    starts, tasks = [0], list[int]()
    names: dict[str, int] = {}
    tokens_of: Counter[str] = Counter()
    targets_of: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    reasons: list[str] = []
    branched = False
    chosen = _limited(documents, limit, task_limits or {})
    with (
        open(partial / "tokens.bin", "wb") as token_file,
        open(partial / "loss.bin", "wb") as loss_file,
        open(partial / "branches.bin", "wb") as branch_file,
        Progress(label or f"tokens of {folder.name}", total or limit, "documents") as bar,
    ):
        for document, outcome in encode_all(chosen, processor, coder):
            bar.add()
            if isinstance(outcome, str):
                counts["broken"] += 1
                if len(reasons) < 20:
                    reasons.append(f"{document.get('id', '?')}: {outcome}")
                continue
            ids, loss, branches = outcome
            if len(ids) > max_tokens or not loss[1:].any():
                counts["long" if len(ids) > max_tokens else "empty"] += 1
                continue
            task = task_of(document)
            tasks.append(names.setdefault(task, len(names)))
            token_file.write(ids.tobytes())
            loss_file.write(loss.tobytes())
            branch_file.write(branches.tobytes())
            branched = branched or bool(branches.any())
            starts.append(starts[-1] + len(ids))
            tokens_of[task] += len(ids)
            targets_of[task] += int(loss[1:].sum())
    if not tasks:
        shutil.rmtree(partial, ignore_errors=True)
        why = f"; the first: {reasons[0]}" if reasons else ""
        raise ShardError(f"{folder.name}: no usable document ({dict(counts)}){why}")
    if not branched:
        (partial / "branches.bin").unlink()
    np.save(partial / "index.npy", np.asarray(starts, dtype=np.int64))
    np.save(partial / "tasks.npy", np.asarray(tasks, dtype=np.uint16))
    meta = {
        "format": FORMAT, "tasks": list(names), "documents": len(tasks), "tokens": starts[-1],
        "tokens_by_task": dict(tokens_of), "targets_by_task": dict(targets_of),
        **{key: counts[key] for key in ("broken", "long", "empty")}, "reasons": reasons,
        "max_tokens": max_tokens, **revisions(processor),
    }  # fmt: skip
    (partial / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    return meta


def revisions(processor: Processor) -> dict[str, Any]:
    """What the ids of a shard depend on: the vocabulary's offsets, tokenizer and codec revisions."""
    v = processor.vocabulary
    spelled = json.dumps(v.to_json(), sort_keys=True).encode()
    return {
        "vocabulary": {
            "size": v.size, "text": v.text_size,
            "image": [v.image.start, v.image.stop], "audio": [v.audio.start, v.audio.stop],
            "turn_end": v.turn_end,
        },
        "vocabulary_hash": hashlib.sha256(spelled).hexdigest()[:12],
        "unconditional": processor.unconditional(),
        "image_codec": _codes_of(processor.image_codec),
        "audio_codec": _codes_of(processor.audio_codec),
    }  # fmt: skip


def _codes_of(codec: ImageCodec | AudioCodec | None) -> str:
    """What a codec's codes are told apart by; a decoder that changes leaves them as they are."""
    return "none" if codec is None else codec.codes_revision


def is_current(folder: str | Path, processor: Processor) -> bool:
    """Whether `folder` is a whole shard made with the same vocabulary and codecs."""
    try:
        meta = json.loads((Path(folder) / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    wanted = json.loads(json.dumps({"format": FORMAT, **revisions(processor)}))
    return all(meta.get(key) == value for key, value in wanted.items())


def keep_tasks(folder: str | Path, wanted: Collection[str]) -> None:
    """Leave only documents of some tasks in a shard that nobody reads yet. Raises ShardError if none is left."""
    folder = Path(folder)
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    starts, tasks = np.load(folder / "index.npy"), np.load(folder / "tasks.npy")
    names = [name for name in meta["tasks"] if name in wanted]
    numbers = [meta["tasks"].index(name) for name in names]  # ascending
    kept = np.isin(tasks, numbers)
    if not kept.any():
        raise ShardError(f"{folder.name}: no document of {', '.join(wanted)}")
    lengths = np.diff(starts)
    inside = np.repeat(kept, lengths)
    for name, kind in (("tokens.bin", np.uint32), ("loss.bin", np.uint8), ("branches.bin", np.uint8)):
        if (folder / name).is_file():
            np.fromfile(folder / name, kind)[inside].tofile(folder / name)
    starts = np.concatenate([[0], lengths[kept].cumsum()]).astype(np.int64)
    np.save(folder / "index.npy", starts)
    np.save(folder / "tasks.npy", np.searchsorted(numbers, tasks[kept]).astype(np.uint16))
    meta |= {"tasks": names, "documents": int(kept.sum()), "tokens": int(starts[-1])}
    for key in ("tokens_by_task", "targets_by_task"):
        meta[key] = {name: meta[key][name] for name in names}
    (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")


# Ids, loss flags and branches, or why there are none.
Outcome = tuple[NDArray[np.uint32], NDArray[np.uint8], NDArray[np.uint8]] | str


def encode_all(
    documents: Iterable[Mapping[str, Any]], processor: Processor, coder: Coder | None = None
) -> Iterator[tuple[Mapping[str, Any], Outcome]]:
    """Each document with its ids, loss flags and branches, or with the reason why it has none; in order.

    Pictures and sounds of many documents go through the codecs together, which is several times faster.
    """
    coder = coder or Coder(processor)
    waiting: list[Mapping[str, Any]] = []
    media = 0
    for document in documents:
        waiting.append(document)
        media += len(raw(document))
        if media >= _MEDIA_AT_ONCE or len(waiting) >= 4 * _MEDIA_AT_ONCE:
            yield from _encode_some(waiting, processor, coder)
            waiting, media = [], 0
    yield from _encode_some(waiting, processor, coder)


def _encode_some(
    documents: Sequence[Mapping[str, Any]], processor: Processor, coder: Coder
) -> Iterator[tuple[Mapping[str, Any], Outcome]]:
    for document in coder.spell(documents):
        try:
            encoded = [processor.encode(messages) for messages in conversations(document)]
            joined = join(
                [(np.asarray(e.ids, np.uint32), np.asarray(e.loss, np.uint8)) for e in encoded]
            )
            if holds_pairs(task_of(document)):
                see_pair(*joined)
            outcome: Outcome = joined
        except (MessageError, MediaError, ValueError) as error:
            outcome = str(error)
        yield document, outcome


def _limited(
    documents: Iterable[Mapping[str, Any]], limit: int | None, task_limits: Mapping[str, int]
) -> Iterator[Mapping[str, Any]]:
    seen: Counter[str] = Counter()
    for document in documents:
        if limit is not None and seen.total() >= limit:
            return
        task = str(document["task"])
        if seen[task] < task_limits.get(task, 1 << 60):
            seen[task] += 1
            yield document
