"""The state of what the engine works on: sequences of the cache, and answers made of one or two.

A `Sequence` is ids, how many of them are computed, and the blocks that hold those. A `Work` is one
answer under way: its sequence, and, while a guided picture or sound is open, a second one that has
read the prompt that asks for nothing. Knows blocks, but neither the runner nor when what is run.
"""

from __future__ import annotations

from collections.abc import Sequence as Ordered
from dataclasses import dataclass

import numpy as np

from m27.infer.cache import Blocks, Name, name_of
from m27.infer.request import Event
from m27.infer.turn import Answer


class Sequence:
    """One row of the cache: `computed` of its `ids` have their keys and values in `blocks`."""

    __slots__ = ("_names", "blocks", "computed", "ids", "salt", "table")

    def __init__(self, ids: Ordered[int], salt: Name) -> None:
        self.ids = list(ids)
        self.salt = salt
        self.computed = 0
        self.blocks: list[int] = []
        self.table = np.zeros(8, dtype=np.int32)  # the same blocks, with room to grow
        self._names: list[Name] = []  # of the full blocks, as far as they are computed

    @property
    def left(self) -> int:
        """How many ids are to be computed."""
        return len(self.ids) - self.computed

    def lacks(self, tokens: int, size: int) -> int:
        """How many more blocks of `size` the first `tokens` tokens need."""
        return -(-tokens // size) - len(self.blocks)

    def find(self, blocks: Blocks) -> int:
        """Take over what is already computed of the ids, which must have no blocks yet; how many."""
        found, self._names = blocks.find(self.ids, self.salt)
        for block in found:
            self._append(block)
        self.computed = len(found) * blocks.size
        return self.computed

    def grow(self, tokens: int, blocks: Blocks) -> None:
        """Take blocks for the first `tokens` tokens. Raises IndexError where there are not enough."""
        for _ in range(self.lacks(tokens, blocks.size)):
            self._append(blocks.take())

    def settle(self, computed: int, blocks: Blocks) -> None:
        """Note that so many ids are computed, and let full blocks be found by others."""
        self.computed = computed
        size = blocks.size
        if not blocks.reuse:
            return
        while (len(self._names) + 1) * size <= computed:
            number = len(self._names)
            before = self._names[-1] if self._names else self.salt
            name = name_of(before, self.ids[number * size : (number + 1) * size])
            self._names.append(name)
            blocks.publish(self.blocks[number], name)

    def release(self, blocks: Blocks) -> None:
        """Let go of all blocks; the ids stay, and are to be computed again."""
        blocks.release(self.blocks)
        self.blocks = []
        self._names = []
        self.computed = 0

    def _append(self, block: int) -> None:
        if len(self.blocks) == len(self.table):
            self.table = np.concatenate([self.table, np.zeros_like(self.table)])
        self.table[len(self.blocks)] = block
        self.blocks.append(block)


@dataclass(eq=False)
class Work:
    """One answer under way. `key` is its own number, `number` that of its request.

    `adapter` is the runner's number. `after` is the work whose prompt is the same and is computed
    first, so that this one finds it. `served` is the step in which it last had its turn.
    """

    key: int
    number: int
    answer: Answer
    main: Sequence
    salt: Name
    priority: int = 0
    tenant: str = ""
    adapter: int = -1
    arrival: int = 0
    waiting_since: float = 0.0
    started: float = 0.0
    after: Work | None = None
    partner: Sequence | None = None
    served: int = -1
    cached: int = -1  # tokens of the prompt that were found; -1 until it was first looked for
    running: bool = False
    over: bool = False

    @property
    def sequences(self) -> tuple[Sequence, ...]:
        """The sequence, and its partner where there is one."""
        return (self.main,) if self.partner is None else (self.main, self.partner)

    @property
    def left(self) -> int:
        """How many ids are to be computed before the next can be chosen."""
        return self.main.left + (self.partner.left if self.partner is not None else 0)

    def take(self, id: int, blocks: Blocks) -> Event | None:
        """Append the next id of the answer, and follow it into or out of a picture or sound.

        Its log probability comes back as an event where one was asked for.
        """
        answer = self.answer
        scored = answer.take(id)
        self.main.ids.append(id)
        if answer.done:
            return scored
        if self.partner is not None:
            if answer.in_span:
                self.partner.ids.append(id)
            else:
                self.partner.release(blocks)
                self.partner = None
        elif answer.in_span and answer.turn.unconditional:
            self.partner = Sequence([*answer.turn.unconditional, id], self.salt)
            if self.running:
                self.partner.find(blocks)
        return scored

    def settled(self) -> bool:
        """Whether the work that this one waits for has its prompt computed, or never will."""
        before = self.after
        if before is None or before.over:
            return True
        return before.main.computed >= min(len(before.answer.turn.prompt), len(before.main.ids) - 1)

    def release(self, blocks: Blocks) -> None:
        """Let go of all blocks; what was produced stays."""
        for sequence in self.sequences:
            sequence.release(blocks)
