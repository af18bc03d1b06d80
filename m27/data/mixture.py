"""Token shards → an endless stream of documents in given proportions, with its state.

Each draw goes to the task that lies furthest behind its share of the tokens, so every stretch of the stream
has the mixture's proportions; within a task documents come in a shuffled order, anew each epoch. The
state is a few numbers a task. For classifier-free guidance a share of the documents of given tasks loses
its prompt. It knows nothing of rows.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m27.data.build import FORMAT, ShardError

State = dict[str, Any]


class MixtureError(ValueError):
    """A mixture that names no task, or a task that is not there; the message says which."""


class Corpus:
    """Several shards as one list of documents. Raises ShardError for a broken or unlike shard."""

    def __init__(self, folders: Sequence[str | Path]) -> None:
        if not folders:
            raise ShardError("no shards given")
        self.folders = tuple(map(Path, folders))
        self.meta: dict[str, Any] = {}
        self.tasks: list[str] = []
        self._tokens: list[NDArray[np.uint32]] = []
        self._loss: list[NDArray[np.uint8]] = []
        self._branches: list[NDArray[np.uint8] | None] = []
        self._index: list[NDArray[np.int64]] = []
        task_parts, digest = [], hashlib.sha256()
        for folder in map(Path, folders):
            meta = self._open(folder)
            number = np.asarray([self._task(name) for name in meta["tasks"]], dtype=np.int64)
            task_parts.append(number[np.load(folder / "tasks.npy")])
            digest.update(json.dumps([folder.name, meta["documents"], meta["tokens"]]).encode())
        self.task_of = np.concatenate(task_parts)
        lengths = [np.diff(index) for index in self._index]
        self.lengths = np.concatenate(lengths)
        self._first = np.cumsum([0, *(len(part) for part in lengths)])
        self.fingerprint = digest.hexdigest()[:12]

    def _open(self, folder: Path) -> dict[str, Any]:
        try:
            meta: dict[str, Any] = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
            index = np.load(folder / "index.npy")
            tokens = np.memmap(folder / "tokens.bin", dtype=np.uint32, mode="r")
            loss = np.memmap(folder / "loss.bin", dtype=np.uint8, mode="r")
            path, branches = folder / "branches.bin", None
            if path.is_file():
                branches = np.memmap(path, dtype=np.uint8, mode="r")
        except (OSError, ValueError) as error:
            raise ShardError(f"{folder}: not a whole shard ({error})") from None
        parts = [part for part in (tokens, loss, branches) if part is not None]
        if meta.get("format") != FORMAT or any(len(part) != index[-1] for part in parts):
            raise ShardError(f"{folder}: not a whole shard of format {FORMAT!r}")
        for key in ("vocabulary", "vocabulary_hash", "unconditional", "image_codec", "audio_codec"):
            if self.meta.setdefault(key, meta[key]) != meta[key]:
                raise ShardError(
                    f"{folder}: its {key} is not that of the other shards; build again"
                )
        self._tokens.append(tokens)
        self._loss.append(loss)
        self._branches.append(branches)
        self._index.append(index)
        return meta

    def _task(self, name: str) -> int:
        if name not in self.tasks:
            self.tasks.append(name)
        return self.tasks.index(name)

    def __len__(self) -> int:
        return len(self.lengths)

    def _place(self, number: int) -> tuple[int, int, int]:
        """The shard of a document, and where it begins and ends there."""
        shard = int(np.searchsorted(self._first, number, side="right")) - 1
        index = self._index[shard]
        begin, end = (int(index[number - self._first[shard] + i]) for i in (0, 1))
        return shard, begin, end

    def branches(self, number: int) -> NDArray[np.int64] | None:
        """Which of its conversations each id of a document belongs to; None where it is one."""
        shard, begin, end = self._place(number)
        found = self._branches[shard]
        if found is None or not found[begin:end].any():
            return None
        return np.asarray(found[begin:end], dtype=np.int64)

    def document(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Ids and loss flags of a document, by number."""
        shard, begin, end = self._place(number)
        ids = np.asarray(self._tokens[shard][begin:end], dtype=np.int64)
        return ids, np.asarray(self._loss[shard][begin:end], dtype=np.bool_)

    def tokens_by_task(self) -> dict[str, int]:
        """How many tokens each task has, all shards together."""
        sums = np.bincount(self.task_of, weights=self.lengths, minlength=len(self.tasks))
        return {task: int(sums[i]) for i, task in enumerate(self.tasks)}


@dataclass(frozen=True)
class Draw:
    """One document of the stream: its number in the corpus, its length, whether it lost its prompt."""

    document: int
    length: int
    bare: bool = False


class Mixture:
    """The endless stream of (Draw, state) over `corpus`.

    `weights` gives each task's share of the tokens (they need not add up to one); a task without a weight
    is left out; None takes each task as it is in the corpus. `drop` lists tasks whose prompt is emptied in
    a share `drop_rate` of the draws. Raises MixtureError for an unknown task, with the nearest name.
    """

    def __init__(
        self,
        corpus: Corpus,
        weights: Mapping[str, float] | None = None,
        *,
        drop: Collection[str] = (),
        drop_rate: float = 0.1,
        seed: int = 0,
        state: State | None = None,
    ) -> None:
        held = corpus.tokens_by_task()
        weights = dict(held if weights is None else weights)
        for name in weights:
            if name not in held:
                near = difflib.get_close_matches(name, held, 1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; there are: {', '.join(held)}"
                raise MixtureError(f"the mixture names task {name!r}, which no shard has{hint}")
            if not weights[name] >= 0:
                raise MixtureError(f"the weight of task {name!r} is {weights[name]}")
        self.names = [name for name in weights if weights[name] > 0]
        if not self.names:
            raise MixtureError("every task has weight 0")
        total = sum(weights[name] for name in self.names)
        self.share = np.asarray([weights[name] / total for name in self.names])
        self.corpus, self.seed = corpus, seed
        self._drop = [name in drop for name in self.names]
        self._drop_rate = drop_rate
        self._members = [
            np.flatnonzero(corpus.task_of == corpus.tasks.index(n)) for n in self.names
        ]
        self._bare_prefix = len(corpus.meta["unconditional"])
        # State: tokens drawn of each task, and (epoch, place in its order).
        state = state or {"drawn": {}, "cursor": {}}
        self._drawn = np.asarray([float(state["drawn"].get(n, 0)) for n in self.names])
        self._cursor = [list(state["cursor"].get(n, [0, 0])) for n in self.names]
        self._order = [self._shuffled(i, self._cursor[i][0]) for i in range(len(self.names))]

    def _shuffled(self, task: int, epoch: int) -> NDArray[np.int64]:
        rng = np.random.default_rng([self.seed, epoch, *self.names[task].encode()])
        return rng.permutation(self._members[task])

    def state(self) -> State:
        """The stream's place, as plain JSON values."""
        return {
            "drawn": {n: int(self._drawn[i]) for i, n in enumerate(self.names)},
            "cursor": {n: list(self._cursor[i]) for i, n in enumerate(self.names)},
        }

    def epochs(self) -> dict[str, float]:
        """How often each task has been gone through."""
        return {
            n: self._cursor[i][0] + self._cursor[i][1] / len(self._order[i])
            for i, n in enumerate(self.names)
        }

    def draw(self) -> Draw:
        """The next document."""
        task = int(np.argmax(self.share * (self._drawn.sum() + 1.0) - self._drawn))
        epoch, place = self._cursor[task]
        number = int(self._order[task][place])
        bare = self._drop[task] and _coin(self.seed, epoch, number) < self._drop_rate
        length = self._bare_length(number) if bare else int(self.corpus.lengths[number])
        self._drawn[task] += length
        if place + 1 == len(self._order[task]):
            self._cursor[task] = [epoch + 1, 0]
            self._order[task] = self._shuffled(task, epoch + 1)
        else:
            self._cursor[task] = [epoch, place + 1]
        return Draw(number, length, bare)

    def _bare_length(self, number: int) -> int:
        _, loss = self.corpus.document(number)
        return self._bare_prefix + len(loss) - int(loss.argmax())

    def __iter__(self) -> Iterator[tuple[Draw, State]]:
        while True:
            item = self.draw()
            yield item, self.state()


def _coin(seed: int, epoch: int, number: int) -> float:
    digest = hashlib.sha256(f"bare:{seed}:{epoch}:{number}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / float(1 << 48)


def content(corpus: Corpus, draw: Draw) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Ids and loss flags of a draw; without its prompt, the answer follows the empty one."""
    ids, loss = corpus.document(draw.document)
    if not draw.bare:
        return ids, loss
    begin = int(loss.argmax())
    prefix = np.asarray(corpus.meta["unconditional"], dtype=np.int64)
    bare_loss = np.concatenate([np.zeros(len(prefix), dtype=np.bool_), loss[begin:]])
    return np.concatenate([prefix, ids[begin:]]), bare_loss
