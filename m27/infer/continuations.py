"""How probable continuations are, many at once: what multiple choice and perplexity are made of.

Rows are packed into full steps, whole prompts beside the rest of longer ones; a beginning that several rows share is
computed once and found again, as an engine's own prompts are. `m27.infer.likelihood` is the oracle, one row at a time.
Knows runners and blocks; no messages and no text.

Shapes: T tokens of a step, W tokens whose followers are scored, V ids.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from m27.infer.cache import Blocks, Name, name_of, salt_of
from m27.infer.runner import Batch, Runner, Wanted

_LOGITS = 64 << 20  # bytes of logits that a step may give


@dataclass(frozen=True)
class Scored:
    """The row at `place`: natural-log probability of its continuation, and whether each of its ids is the likeliest."""

    place: int
    logprob: float
    greedy: bool


@dataclass
class _Row:
    """Ids that go in, the first place that is scored, and who waits for it: (place, the id behind the last)."""

    ids: list[int]
    first: int
    waits: list[tuple[int, int]]
    table: list[int] = field(default_factory=list)
    names: list[Name] = field(default_factory=list)  # of all full blocks before `first`
    computed: int = 0
    logprob: float = 0.0
    greedy: bool = True
    ends: list[tuple[float, bool]] = field(default_factory=list)  # of each who waits, its last id


def continuations(
    runner: Runner, rows: Iterable[tuple[Sequence[int], int]], blocks: Blocks | None = None, tokens: int = 512
) -> Iterator[Scored]:
    """Score each row (ids, n): its last n ids, given those before. In any order, as they are done.

    Rows that differ in their last id alone are one. `blocks` are those of the engine that has the runner; without an
    engine all are free. `tokens` of a step. All ids share the probability. Raises ValueError for a row without a
    beginning or without an end, IndexError where a row is longer than the blocks suffice for.
    """
    blocks = blocks or Blocks(runner.blocks, runner.block_size)
    waiting = deque(_grouped(rows, blocks.size))
    most = max(1, _LOGITS // (4 * runner.config.vocab_size))
    begun: list[_Row] = []
    try:
        while waiting or begun:
            step = _filled(waiting, begun, blocks, tokens, most)
            _run(runner, blocks, step)
            for row, _ in step:
                if row.computed == len(row.ids):
                    begun.remove(row)
                    blocks.release(row.table)
                    yield from _told(row)
    finally:
        for row in begun:
            blocks.release(row.table)


def _grouped(rows: Iterable[tuple[Sequence[int], int]], size: int) -> list[_Row]:
    """Rows by what goes in, in an order that has common beginnings side by side."""
    found: dict[tuple[tuple[int, ...], int], _Row] = {}
    for place, (ids, count) in enumerate(rows):
        if not 0 < count < len(ids):
            raise ValueError(f"row {place}: {count} of {len(ids)} ids cannot be scored")
        given = tuple(ids[:-1])
        row = found.setdefault((given, count), _Row(list(given), len(ids) - 1 - count, []))
        row.waits.append((place, ids[-1]))
    ordered = sorted(found.values(), key=lambda row: row.ids)
    for row in ordered:
        name = salt_of("", "")  # that of an engine's requests without tenant and adapter
        for start in range(0, row.first - size + 1, size):
            name = name_of(name, row.ids[start : start + size])
            row.names.append(name)
    return ordered


Step = list[tuple[_Row, int]]  # rows, and how many tokens of each


def _filled(waiting: deque[_Row], begun: list[_Row], blocks: Blocks, tokens: int, most: int) -> Step:
    """The next step: first what was begun, then rows that nothing in this step is about to be shared with."""
    step: Step = []
    pending: set[Name] = set()

    def take(row: _Row) -> None:
        nonlocal tokens, most
        count = min(len(row.ids) - row.computed, tokens)
        wanted = row.computed + count - max(row.computed, row.first)
        if wanted > most:
            count, wanted = count - (wanted - most), most
        if count > 0:
            step.append((row, count))
            tokens, most = tokens - count, most - max(0, wanted)

    for row in begun:
        take(row)
        pending.update(row.names)
    later: list[_Row] = []
    while waiting and tokens > 0 and most > 0:
        row = waiting.popleft()
        known, _ = blocks.count_found(row.ids[: row.first + 1], salt_of("", ""))
        if known < len(row.names) and row.names[known] in pending:
            later.append(row)
            if len(later) > 64:  # enough of one beginning; look no further
                break
            continue
        need = -(-len(row.ids) // blocks.size) - known
        if need > blocks.free and (step or begun):
            later.append(row)
            break
        row.table, _ = blocks.find(row.ids[: row.first + 1], salt_of("", ""))
        begun.append(row)
        row.computed = len(row.table) * blocks.size
        while len(row.table) * blocks.size < len(row.ids):
            row.table.append(blocks.take())
        take(row)
        pending.update(row.names)
    waiting.extendleft(reversed(later))
    return step


def _run(runner: Runner, blocks: Blocks, step: Step) -> None:
    """Compute one step, add to the rows' sums, and let what is whole be found."""
    ids, places, slots = [], [], []
    wanted: list[int] = []
    starts = [0]
    scored: list[tuple[_Row, range]] = []
    for row, count in step:
        reach = np.arange(row.computed, row.computed + count)
        begin = starts[-1]
        ids.append(row.ids[row.computed : row.computed + count])
        places.append(reach)
        slots.append(np.array(row.table)[reach // blocks.size] * blocks.size + reach % blocks.size)
        starts.append(begin + count)
        first = max(row.first, row.computed)
        if first < row.computed + count:
            scored.append((row, range(first, row.computed + count)))
            wanted += range(begin + first - row.computed, begin + count)
        row.computed += count
    longest = max(len(row.table) for row, _ in step)
    tables = [row.table + [-1] * (longest - len(row.table)) for row, _ in step]
    spans = ((0, runner.config.vocab_size),)
    batch = Batch(
        np.concatenate(ids).astype(np.int32), np.concatenate(places).astype(np.int32),
        np.concatenate(slots).astype(np.int32), np.array(starts, np.int32), np.array(tables, np.int32),
        np.full(len(step), -1, np.int32), [Wanted(spans, wanted)] if wanted else [],
    )  # fmt: skip
    answered = runner.run(batch)
    for row, _ in step:
        for number in range(min(len(row.names), row.computed // blocks.size)):
            blocks.publish(row.table[number], row.names[number])
    if wanted:
        logits_WV = torch.from_numpy(np.asarray(answered[0]))
        _add(scored, logits_WV, torch.logsumexp(logits_WV, 1), logits_WV.argmax(1).tolist())


def _add(scored: list[tuple[_Row, range]], logits_WV: torch.Tensor, sums_W: torch.Tensor, best_W: list[int]) -> None:
    """Add what a step says of its rows; behind a row's last place several ids may wait, each with an end of its own."""
    at = 0
    for row, reach in scored:
        for place in reach:
            last = place + 1 == len(row.ids)
            followers = [id for _, id in row.waits] if last else [row.ids[place + 1]]
            told = [(float(logits_WV[at, id]) - float(sums_W[at]), best_W[at] == id) for id in followers]
            if last:
                row.ends = told
            else:
                row.logprob += told[0][0]
                row.greedy &= told[0][1]
            at += 1


def _told(row: _Row) -> Iterator[Scored]:
    for (place, _), (logprob, greedy) in zip(row.waits, row.ends, strict=True):
        yield Scored(place, row.logprob + logprob, row.greedy and greedy)
