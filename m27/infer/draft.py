"""Ids tried ahead without a second model: prompt lookup for text, the last draws for pictures.

Where the end of a text was there before, what followed it then may follow again (prompt lookup, Saxena
2023): quotes, lists, code. The codes of a picture are tried several at once and drawn anew in every
step until they stay (speculative Jacobi decoding, Teng et al. 2024). Which ids are taken is decided by
the model alone; see `Engine`. Knows ids and nothing of what they mean.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

SIZES = (4, 3, 2)  # ids that must agree, the longest first
KEPT = 256  # sequences whose index is kept


def next_codes(
    codes: Sequence[int], width: int, guesses: Sequence[int], most: int, first: int
) -> list[int]:
    """`most` codes that may follow the `codes` of a picture, `width` to a row: first the `guesses`,
    behind them the code above each place, or to its left, or `first` where there is neither."""
    row = [*codes, *guesses[:most]]
    while len(row) < len(codes) + most:
        row.append(row[-width] if len(row) >= width else row[-1] if row else first)
    return row[len(codes) :]


class PromptLookup:
    """Proposes how a sequence goes on: `lookup(ids, most)`, the `draft` of an engine.

    The index of a sequence is kept from call to call and grows by what is new, so a call costs what
    was appended since the last one, not the length. Sequences are told apart by identity and may only
    grow; the last 256 asked for are remembered.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[int, _Index] = OrderedDict()

    def __call__(self, ids: Sequence[int], most: int) -> list[int]:
        """Up to `most` ids that may follow `ids`; [] where its end was never there before."""
        index = self._kept.get(id(ids))
        if index is None or index.ids is not ids or index.seen > len(ids):
            index = self._kept[id(ids)] = _Index(ids)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(id(ids))
        return index.propose(most)


class _Index:
    """Where each run of ids was last followed by another id."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = ids  # held, so that its identity is not given to another
        self.seen = 1
        self._next: dict[tuple[int, ...], int] = {}

    def propose(self, most: int) -> list[int]:
        """What followed the longest run that ends the ids, the last time it was there."""
        ids = self.ids
        for at in range(self.seen, len(ids)):
            for size in SIZES:
                if size <= at:
                    self._next[tuple(ids[at - size : at])] = at
        self.seen = max(len(ids), 1)
        for size in SIZES:
            at = self._next.get(tuple(ids[-size:]), 0) if size <= len(ids) else 0
            if at:
                return list(ids[at : at + most])
        return []
