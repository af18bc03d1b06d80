"""What is scheduled as one step for the runner: ids, positions, slots and tables as arrays.

Knows the runner's `Batch` and the state of sequences; decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence as Ordered
from dataclasses import dataclass

import numpy as np

from m27.infer.runner import Answered, Batch, Draw, Floats, Spans, Wanted
from m27.infer.sampler import guide
from m27.infer.scheduler import Feed
from m27.infer.sequence import Sequence
from m27.infer.turn import Answer

Place = tuple[int, int]  # which of `wanted`, and the row in it


@dataclass
class Rows:
    """Where the logits of one answer are to be found: a row for its next id and after each draft,
    and the rows that guide these, if any do. With `settled` it is the next id that stands there."""

    feed: Feed
    rows: list[Place]
    guides: list[Place]
    settled: bool = False

    def id(self, logits: Ordered[Answered]) -> int:
        """The next id, where the runner settles it. Raises ValueError where it could not."""
        wanted, place = self.rows[0]
        id = int(logits[wanted][place])
        if id < 0:
            raise ValueError("no id is allowed here")
        return id

    def logits_of(self, number: int, logits: Ordered[Answered]) -> Floats:
        """The logits of the `number`-th of these, guided where something guides it."""
        wanted, place = self.rows[number]
        if not self.guides:
            return logits[wanted][place]
        other, second = self.guides[number]
        guidance = self.feed.work.answer.guidance
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
        self.wanted: dict[tuple[Spans, str], tuple[int, list[int], list[Draw]]] = {}

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

    def want(self, spans: Spans, token: int, what: str = "logits") -> Place:
        """Ask for logits after a token, or for the "best" id."""
        number, tokens, _ = self.wanted.setdefault((spans, what), (len(self.wanted), [], []))
        tokens.append(token)
        return number, len(tokens) - 1

    def draw(self, answer: Answer, places: Ordered[int]) -> Place:
        """Ask for the next id of an answer, after the token at the first place, guided by those after
        one at a second."""
        number, row = self.want(answer.spans, places[0], "draw")
        other = self.want(answer.spans, places[1], "draw")[1] if len(places) > 1 else -1
        draws = self.wanted[answer.spans, "draw"][2]
        draws.append(answer.draw(row, other))
        return number, len(draws) - 1

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
            [
                Wanted(spans, tokens, what == "best", draws)
                for (spans, what), (_, tokens, draws) in self.wanted.items()
            ],
        )


def assemble(
    feeds: Ordered[Feed], size: int, picks: bool = False, draws: bool = False
) -> tuple[Batch, list[Rows]]:
    """The step that computes `feeds`, with blocks of `size`; and where each answer that can go on
    finds its logits, or its next id where that is the best one and the runner `picks` it, or where the
    runner `draws` it."""
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
        if draws and not feed.drafts and work.answer.drawable:
            rows.append(Rows(feed, [writer.draw(work.answer, places)], [], True))
            continue
        if picks and len(places) == 1 and not feed.drafts and work.answer.plain:
            rows.append(Rows(feed, [writer.want(work.answer.spans, places[0], "best")], [], True))
            continue
        spans = [work.answer.spans, *feed.ahead]
        asked: list[list[Place]] = [[], []]
        for of_sequence, last in zip(asked, places, strict=False):
            first = last - len(feed.drafts)
            of_sequence += [writer.want(ids, first + number) for number, ids in enumerate(spans)]
        rows.append(Rows(feed, asked[0], asked[1]))
    return writer.batch(), rows
