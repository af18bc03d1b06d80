"""Several conversations that begin alike, as one document: what they share is spelled and computed once.

A picture costs 68 tokens and a question about it some 15, so a picture with eight questions costs a quarter of
what eight documents do. Each question still stands alone: it sees the shared beginning and itself, at the
positions it would have had by itself, and no other question or answer. So none is answered from the words of
another, and each is trained in the form in which it is asked. Likewise two answers of which one is preferred:
in a task whose name begins with "preference" branch 1 is the chosen one, branch 2 the rejected. Shapes: L ids of
a document.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Flat = tuple[NDArray[np.uint32], NDArray[np.uint8]]  # ids and loss flags of one conversation
MOST = 255
PAIRS = "preference"


def join(
    conversations: Sequence[Flat],
) -> tuple[NDArray[np.uint32], NDArray[np.uint8], NDArray[np.uint8]]:
    """Ids, loss flags and branches of all in one: the branch is 0 in what they share, then 1, 2 ….

    Raises ValueError for none, or for more than `MOST`.
    """
    if not 0 < len(conversations) <= MOST:
        raise ValueError(f"{len(conversations)} conversations in one document; 1 to {MOST} can be")
    if len(conversations) == 1:
        ids, loss = conversations[0]
        return ids, loss, np.zeros(len(ids), np.uint8)
    shared = _shared(conversations)
    (ids, loss), count = conversations[0], len(conversations)
    parts = [
        (ids[:shared], loss[:shared]),
        *((one[shared:], flags[shared:]) for one, flags in conversations),
    ]
    branches = np.repeat(np.arange(count + 1, dtype=np.uint8), [len(one) for one, _ in parts])
    return np.concatenate([i for i, _ in parts]), np.concatenate([f for _, f in parts]), branches


def _shared(conversations: Sequence[Flat]) -> int:
    """How many ids all begin with; shorter where a branch would begin with a target.

    A target is predicted from the id before it in the row, which is another branch's.
    """
    shortest = min(len(ids) for ids, _ in conversations) - 1
    ids = np.stack([one[:shortest] for one, _ in conversations])
    loss = np.stack([flags[:shortest] for _, flags in conversations])
    same = (ids == ids[0]).all(0) & (loss == loss[0]).all(0)
    shared = shortest if same.all() else int(same.argmin())
    while shared and any(flags[shared] for _, flags in conversations):
        shared -= 1
    return shared


def holds_pairs(task: str) -> bool:
    """Whether the documents of a task are pairs of a chosen and a rejected answer: by its name's beginning."""
    return task.startswith(PAIRS)


def task_of(document: Mapping[str, Any]) -> str:
    """A document's task as a shard has it: a pair that is marked as one and named otherwise is renamed, so
    that nobody learns both of its answers."""
    task = str(document["task"])
    return f"{PAIRS}_{task}" if document.get("preference") and not holds_pairs(task) else task


def see_pair(
    ids_L: NDArray[np.uint32], loss_L: NDArray[np.uint8], branches_L: NDArray[np.uint8]
) -> None:
    """Raise ValueError where a joined document is not two answers, each with a target, that differ."""
    count = int(branches_L.max(initial=0))
    if count != 2:
        raise ValueError(f"a pair has two answers, the chosen and the rejected; here are {max(count, 1)}")
    one, other = (ids_L[branches_L == number] for number in (1, 2))
    if np.array_equal(one, other):
        raise ValueError("the chosen and the rejected answer are the same")
    for number, name in ((1, "chosen"), (2, "rejected")):
        if not loss_L[branches_L == number].any():
            raise ValueError(f"nothing of the {name} answer is to be learnt")


def positions(branches_L: NDArray[np.integer]) -> NDArray[np.int64]:
    """Where each id stands in its own conversation: every branch goes on where the beginning ended."""
    count = np.arange(len(branches_L), dtype=np.int64)
    if not branches_L.any():
        return count
    begins = np.flatnonzero(np.diff(branches_L, prepend=branches_L[:1]) != 0)
    shared = int(begins[0]) if branches_L[0] == 0 else 0
    starts = np.zeros(len(branches_L), np.int64)
    starts[begins] = begins - shared
    return count - np.maximum.accumulate(starts)
