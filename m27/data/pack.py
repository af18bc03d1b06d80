"""A stream of documents → rows of exactly T tokens, with next to no padding.

Best fit from a pool: a row begins with the document that has waited longest (so none is starved and the
mixture holds), takes the longest that fit while there is much room, and closes with the pair that fills what
is left best. No document is cut. The state is the stream's and the numbers in the pool.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator

from m27.data.mixture import Draw, Mixture, State


class PackError(ValueError):
    """A document that is longer than a row; the message says which."""


class Packer:
    """The endless stream of (rows of draws, state): each row's lengths add up to at most `length`.

    `pool` is how many documents are held to choose from. `efficiency` is the share of tokens so far that
    are not padding. Raises PackError for a document longer than a row.
    """

    def __init__(
        self, mixture: Mixture, length: int, pool: int = 256, state: State | None = None
    ) -> None:
        self.mixture, self.length, self.size = mixture, length, pool
        self.rows = 0
        self.filled = 0
        self._pool: list[Draw] = []
        if state is not None:
            self._pool = [Draw(int(d), int(n), bool(b)) for d, n, b in state["pool"]]
            self.rows, self.filled = int(state["rows"]), int(state["filled"])

    @property
    def efficiency(self) -> float:
        """Tokens of documents over tokens of rows, so far."""
        return self.filled / (self.rows * self.length) if self.rows else 1.0

    def state(self) -> State:
        """The packer's and the mixture's place, as plain JSON values."""
        return {
            "mixture": self.mixture.state(),
            "pool": [[d.document, d.length, int(d.bare)] for d in self._pool],
            "rows": self.rows,
            "filled": self.filled,
        }

    def row(self) -> list[Draw]:
        """The next row."""
        while len(self._pool) < self.size:
            draw = self.mixture.draw()
            if draw.length > self.length:
                raise PackError(
                    f"document {draw.document} has {draw.length} tokens, a row {self.length}"
                )
            self._pool.append(draw)
        row = [self._pool.pop(0)]
        room = self.length - row[0].length
        # By length; of equals the one that waited longest comes first.
        order = sorted(range(len(self._pool)), key=lambda i: (self._pool[i].length, -i))
        lengths = [self._pool[i].length for i in order]
        taken: list[int] = []
        while lengths and lengths[0] <= room:
            shortest_two = lengths[0] + lengths[min(1, len(lengths) - 1)]
            # Greedy while two more of the longest sort would still fit, then the best pair or single.
            if room >= 3 * lengths[-1] and room > shortest_two:
                picks = [len(lengths) - 1]
            else:
                picks = _best(lengths, room)
            for at in sorted(picks, reverse=True):
                room -= lengths.pop(at)
                taken.append(order.pop(at))
        row += [self._pool[i] for i in taken]
        gone = set(taken)
        self._pool = [draw for i, draw in enumerate(self._pool) if i not in gone]
        self.rows += 1
        self.filled += self.length - room
        return row

    def __iter__(self) -> Iterator[tuple[list[Draw], State]]:
        while True:
            row = self.row()
            yield row, self.state()


def _best(lengths: list[int], room: int) -> list[int]:
    """Up to three places of ascending `lengths` whose sum comes nearest to `room` from below."""
    best: list[int] = [bisect.bisect_right(lengths, room) - 1]
    filled = lengths[best[0]]
    # The third is tried among a few lengths only: with the pair exact, more choice gains nothing.
    step = max(1, len(lengths) // 16)
    for third in (None, *range(0, len(lengths), step)):
        left = room if third is None else room - lengths[third]
        low, high = 0, len(lengths) - 1
        while low < high and filled < room:
            if third in (low, high):
                low, high = (low + 1, high) if third == low else (low, high - 1)
                continue
            both = lengths[low] + lengths[high]
            if both > left:
                high -= 1
                continue
            if both + room - left > filled:
                filled = both + room - left
                best = [low, high] if third is None else [low, high, third]
            low += 1
    return best
