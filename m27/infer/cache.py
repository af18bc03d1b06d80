"""Who holds which block of the paged cache, and which blocks hold what has been computed before.

A block is free, or held by one or more sequences. A full block has a name: the hash of its ids and
of the name of the block before it, beginning with a salt, so that a name stands for all ids up to
there. A free block keeps its name, and so can be found again, until it is needed for something else;
the one unused longest goes first. Knows nothing of what the blocks hold in memory.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence as Ordered

import numpy as np

Name = bytes


def salt_of(*parts: str) -> Name:
    """The name before the first block: only sequences with equal parts find each other's blocks."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.digest()


def name_of(before: Name, ids: Ordered[int]) -> Name:
    """The name of a full block that follows the block called `before`."""
    data = np.asarray(ids, dtype=np.int32).tobytes()
    return hashlib.blake2b(before + data, digest_size=16).digest()


class Blocks:
    """`count` blocks of `size` tokens. With `reuse` off nothing is ever found again.

    `found` counts the tokens that were found computed, `asked` those that were looked for.
    """

    def __init__(self, count: int, size: int, reuse: bool = True) -> None:
        self.count, self.size, self.reuse = count, size, reuse
        self.found = self.asked = self.evicted = 0
        self._held = [0] * count  # by how many sequences
        self._names: list[Name | None] = [None] * count
        self._places: dict[Name, int] = {}
        self._blank = list(range(count - 1, -1, -1))  # free and nameless, the last one goes first
        self._kept: OrderedDict[int, None] = (
            OrderedDict()
        )  # free and named, the first one goes first

    @property
    def free(self) -> int:
        """How many blocks can be had, named ones included."""
        return len(self._blank) + len(self._kept)

    @property
    def kept(self) -> int:
        """How many free blocks can be found again."""
        return len(self._kept)

    @property
    def used(self) -> int:
        """How many blocks are held by some sequence."""
        return self.count - self.free

    def take(self) -> int:
        """A block for one sequence, whose former content is lost. Raises IndexError if none is free."""
        if self._blank:
            block = self._blank.pop()
        elif self._kept:
            block, _ = self._kept.popitem(last=False)
            self._forget(block)
            self.evicted += 1
        else:
            raise IndexError("no block is free")
        self._held[block] = 1
        return block

    def find(self, ids: Ordered[int], salt: Name) -> tuple[list[int], list[Name]]:
        """The longest run of full blocks that hold the beginning of `ids`, now held once more, and
        their names. The last id is never among them: its logits are wanted."""
        blocks: list[int] = []
        names: list[Name] = []
        if not self.reuse:
            return blocks, names
        self.asked += len(ids)
        for start in range(0, len(ids) - self.size, self.size):
            salt = name_of(salt, ids[start : start + self.size])
            block = self._places.get(salt)
            if block is None:
                break
            if not self._held[block]:
                del self._kept[block]
            self._held[block] += 1
            blocks.append(block)
            names.append(salt)
        self.found += len(blocks) * self.size
        return blocks, names

    def count_found(self, ids: Ordered[int], salt: Name) -> tuple[int, int]:
        """How many blocks `find` would give, and how many of them are free at present."""
        full = free = 0
        if self.reuse:
            for start in range(0, len(ids) - self.size, self.size):
                salt = name_of(salt, ids[start : start + self.size])
                block = self._places.get(salt)
                if block is None:
                    break
                full += 1
                free += not self._held[block]
        return full, free

    def publish(self, block: int, name: Name) -> None:
        """Let a full, held block be found under its name; another that is so called goes before."""
        if self.reuse and name not in self._places:
            self._forget(block)
            self._names[block] = name
            self._places[name] = block

    def release(self, blocks: Ordered[int]) -> None:
        """One sequence lets go of its blocks, given from first to last."""
        for block in reversed(blocks):  # the end of a text is the first to be evicted
            self._held[block] -= 1
            if self._held[block] < 0:
                raise ValueError(f"block {block} was not held")
            if not self._held[block]:
                if self._names[block] is None:
                    self._blank.append(block)
                else:
                    self._kept[block] = None

    def check(self) -> None:
        """Raise AssertionError unless every block is in exactly one state; for tests."""
        blank, kept = set(self._blank), set(self._kept)
        assert len(blank) == len(self._blank) and not blank & kept
        for block, held in enumerate(self._held):
            assert (held == 0) == (block in blank or block in kept), (block, held)
            name = self._names[block]
            assert (block in blank) <= (name is None)
            assert (block in kept) <= (name is not None)
            assert name is None or self._places[name] == block
        assert len(self._places) == sum(name is not None for name in self._names)

    def _forget(self, block: int) -> None:
        name = self._names[block]
        if name is not None:
            del self._places[name]
            self._names[block] = None
