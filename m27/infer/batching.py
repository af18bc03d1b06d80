"""What is scheduled as one step for the runner: ids, positions, slots and tables as arrays.

Knows the runner's `Batch` and the state of sequences; decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence as Ordered
from dataclasses import dataclass

import numpy as np

from m27.infer.runner import Answered, Batch, Floats, Spans, Wanted
from m27.infer.sampler import guide
from m27.infer.scheduler import Feed
from m27.infer.sequence import Sequence

Place = tuple[int, int]  # which of `wanted`, and the row in it


@dataclass
class Rows:
    """Where the logits of one answer are to be found: a row for its next id and after each draft,
    and the rows that guide these, if any do. With `best` it is the id that stands there."""

    feed: Feed
    rows: list[Place]
    guides: list[Place]
    best: bool = False

    def id(self, logits: Ordered[Answered]) -> int:
        """The best id, where that was asked for."""
        wanted, place = self.rows[0]
        return int(logits[wanted][place])

    def logits_of(self, number: int, logits: Ordered[Answered]) -> Floats:
        """The logits of the `number`-th of these, guided where something guides it."""
        wanted, place = self.rows[number]
        if not self.guides:
            return logits[wanted][place]
        other, second = self.guides[number]
        guidance = self.feed.work.answer.turn.request.guidance
        return guide(logits[wanted][place], logits[other][second], guidance)


class _Writer:
    """The arrays of a batch under way."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.slots: list[int] = []
        self.starts = [0]
        self.sequences: list[Sequence] = []
        self.adapters: list[int] = []
        self.wanted: dict[tuple[Spans, bool], tuple[int, list[int]]] = {}

    def add(self, sequence: Sequence, ids: Ordered[int], adapter: int) -> int:
        """Add the next ids of a sequence; the place of the last of them."""
        at, size, table = sequence.computed, self.size, sequence.blocks
        self.ids += ids
        if len(ids) == 1:
            self.positions.append(at)
            self.slots.append(table[at // size] * size + at % size)
        else:
            positions = range(at, at + len(ids))
            self.positions += positions
            self.slots += [table[p // size] * size + p % size for p in positions]
        self.starts.append(len(self.ids))
        self.sequences.append(sequence)
        self.adapters.append(adapter)
        return len(self.ids) - 1

    def want(self, spans: Spans, token: int, best: bool = False) -> Place:
        """Ask for logits after a token, or for the best id."""
        number, tokens = self.wanted.setdefault((spans, best), (len(self.wanted), []))
        tokens.append(token)
        return number, len(tokens) - 1

    def batch(self) -> Batch:
        """All of it."""
        longest = max(len(sequence.blocks) for sequence in self.sequences)
        tables = np.full((len(self.sequences), longest), -1, dtype=np.int32)
        for row, sequence in zip(tables, self.sequences, strict=True):
            count = len(sequence.blocks)
            row[:count] = sequence.table[:count]
        return Batch(
            np.array(self.ids, dtype=np.int32),
            np.array(self.positions, dtype=np.int32),
            np.array(self.slots, dtype=np.int32),
            np.array(self.starts, dtype=np.int32),
            tables,
            np.array(self.adapters, dtype=np.int32),
            [Wanted(spans, tokens, best) for (spans, best), (_, tokens) in self.wanted.items()],
        )


def assemble(feeds: Ordered[Feed], size: int, picks: bool = False) -> tuple[Batch, list[Rows]]:
    """The step that computes `feeds`, with blocks of `size`; and where each answer that can go on
    finds its logits, or its next id where that is the best one and the runner `picks` it."""
    writer = _Writer(size)
    rows = []
    for feed in feeds:
        work = feed.work
        places = []
        for sequence, count in zip(work.sequences, feed.counts, strict=True):
            if not count:
                places.append(-1)
                continue
            ids = sequence.ids[sequence.computed : sequence.computed + count]
            places.append(writer.add(sequence, ids + feed.drafts, work.adapter))
        if not feed.whole:
            continue
        if picks and len(places) == 1 and not feed.drafts and work.answer.plain:
            rows.append(Rows(feed, [writer.want(work.answer.spans, places[0], True)], [], True))
            continue
        spans = [work.answer.spans, *feed.ahead]
        asked: list[list[Place]] = [[], []]
        for of_sequence, last in zip(asked, places, strict=False):
            first = last - len(feed.drafts)
            of_sequence += [writer.want(ids, first + number) for number, ids in enumerate(spans)]
        rows.append(Rows(feed, asked[0], asked[1]))
    return writer.batch(), rows
