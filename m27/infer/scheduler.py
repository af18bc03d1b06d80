"""Which tokens of which answers the next step computes.

What is nearest to its next id goes first, then prompts in pieces, then new answers as long as there
is room: by priority, then the tenant that was served least (virtual counters as in VTC, Sheng et
al. 2024), then arrival. Where blocks run out, the least important and latest answer gives up its own
and computes them anew later. Knows counts and blocks; no ids' meaning, no runner.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from m27.infer.cache import Blocks
from m27.infer.request import Refused, RequestError
from m27.infer.runner import Spans
from m27.infer.sequence import Sequence, Work

_FEW = 8  # an answer that lacks no more tokens than this is in the midst of being written


@dataclass(frozen=True)
class Limits:
    """What an engine takes on. `sequences`: answers under way at once; `waiting`: answers that may
    wait besides; `tokens`: of a step, at least two; `chunk`: tokens of one prompt in a step;
    `prompt_tokens` and `total_tokens`: of one request, None for what the model holds.

    `cache_bytes` is the room for keys and values, or `blocks` so many blocks. `reuse`: whether what
    was computed is found again. `drafts`: ids of text tried ahead at most, where a request asks for
    that. `patience`: seconds after which what waits counts as one level of priority higher.
    """

    sequences: int = 64
    waiting: int = 256
    tokens: int = 512
    chunk: int = 512
    prompt_tokens: int | None = None
    total_tokens: int | None = None
    cache_bytes: int = 768 << 20
    blocks: int | None = None
    reuse: bool = True
    drafts: int = 4
    patience: float = 10.0

    def __post_init__(self) -> None:
        least = {"sequences": 1, "waiting": 0, "tokens": 2, "chunk": 1, "drafts": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise RequestError(f"{name} must be at least {low}, not {getattr(self, name)}")


@dataclass
class Feed:
    """What one answer has computed in a step: of each of its sequences so many ids, and `drafts`
    behind those. `whole` says whether the next id can be chosen after it."""

    work: Work
    counts: list[int]
    whole: bool
    drafts: list[int] = field(default_factory=list)
    ahead: list[Spans] = field(default_factory=list)  # the ids asked for after each draft


Propose = Callable[[Work, int], tuple[list[int], list[Spans]]]


class Scheduler:
    """The answers that wait and those under way, and the blocks that these hold."""

    def __init__(
        self, blocks: Blocks, limits: Limits, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.blocks, self.limits, self._clock = blocks, limits, clock
        self.waiting: list[Work] = []
        self.running: list[Work] = []
        self.preempted = 0
        self._service: dict[str, float] = {}  # tokens computed for each tenant that has work
        self._step = 0
        self._few = min(_FEW, max(2, limits.chunk))
        self._feeds: dict[Work, Feed] = {}
        self._budget = 0

    # Coming and going

    def admit(self, works: list[Work], most: int) -> None:
        """Let the answers of one request wait; each takes up to `most` blocks of the cache.

        Raises Refused where too many wait already, or one alone would not fit.
        """
        if most > self.blocks.count:
            size, room = self.blocks.size, self.blocks.count
            why = f"the request may take {most * size} tokens, the cache holds {room * size}"
            raise Refused(why, "cache")
        self.check_queue(len(works))
        for work in works:
            self._lift(work.tenant)
            work.waiting_since = self._clock()
            self.waiting.append(work)

    def check_queue(self, more: int) -> None:
        """Raise Refused where `more` answers are too many beside those that wait and are under way."""
        room = self.limits.sequences + self.limits.waiting - len(self.running) - len(self.waiting)
        if more > room:
            raise Refused(f"{len(self.waiting)} answers wait already; try again later", "queue")

    def remove(self, work: Work) -> None:
        """Take an answer out, whatever its state, and free its blocks."""
        work.over = True
        work.release(self.blocks)
        (self.running if work.running else self.waiting).remove(work)
        work.running = False
        self._feeds.pop(work, None)
        if all(work.tenant != other.tenant for other in [*self.running, *self.waiting]):
            self._service.pop(work.tenant, None)

    def _lift(self, tenant: str) -> None:
        """A tenant that comes back after a pause has no claim to what it did not use meanwhile."""
        if tenant not in self._service:
            self._service[tenant] = min(self._service.values(), default=0.0)

    # One step

    def schedule(self, propose: Propose | None = None) -> list[Feed]:
        """What the next step computes; [] where there is nothing to do."""
        self._step += 1
        self._feeds, self._budget = {}, self.limits.tokens
        self._displace()
        near = [work for work in self.running if work.left <= self._few]
        if len(near) > 1:
            near.sort(key=lambda work: work.served)
        for work in near:
            if work.running:
                self._feed(work)
        if len(near) < len(self.running):
            far = [work for work in self.running if work.left > self._few]
            for work in sorted(far, key=_importance):
                if work.running:
                    self._feed(work)
        if self.waiting:
            self._start()
        if propose is not None:
            self._draft(propose)
        for feed in self._feeds.values():
            feed.work.served = self._step
            self._service[feed.work.tenant] += sum(feed.counts)
        return list(self._feeds.values())

    def _feed(self, work: Work) -> None:
        """Give an answer as much of the step as it needs and may have."""
        sequences = work.sequences
        lefts = [sequence.left for sequence in sequences]
        room = self._budget
        if sum(lefts) > self._few:
            room = min(room, self.limits.chunk)
        counts = lefts
        if sum(lefts) > room and sum(lefts) > len(lefts):
            # The last id of each is kept for the step in which the next one is chosen.
            counts = []
            for left in lefts:
                counts.append(min(left - 1, room))
                room -= counts[-1]
        if sum(counts) > self._budget or not any(counts):
            return
        if self._make_room(work, sequences, counts):
            self._budget -= sum(counts)
            self._feeds[work] = Feed(work, counts, whole=counts == lefts)

    def _make_room(self, work: Work, sequences: Iterable[Sequence], counts: list[int]) -> bool:
        """Blocks for the next `counts` ids, taken from less important answers if need be; False
        where the answer itself had to give way."""
        for sequence, count in zip(sequences, counts, strict=True):
            tokens = sequence.computed + count
            while sequence.lacks(tokens, self.blocks.size) > self.blocks.free:
                victim = max(self.running, key=_importance)
                self._preempt(victim)
                if victim is work:
                    return False
            sequence.grow(tokens, self.blocks)
        return True

    def _preempt(self, work: Work) -> None:
        work.release(self.blocks)
        self.running.remove(work)
        work.running = False
        self.waiting.append(work)
        self.preempted += 1
        if feed := self._feeds.pop(work, None):
            self._budget += sum(feed.counts)

    # Starting what waits

    def _displace(self) -> None:
        """Where something waits that is more important than what is under way, make room for it."""
        if self.waiting and self.running:
            least = min(work.priority for work in self.running)
            urgent = [work for work in self.waiting if work.priority > least and work.settled()]
            if urgent:
                self._fits(min(urgent, key=_importance))

    def _start(self) -> None:
        """Begin waiting answers, the most urgent first, until one finds no room."""
        if len(self.running) >= self.limits.sequences and (
            max(work.priority for work in self.waiting)
            <= min(work.priority for work in self.running)
        ):
            return
        now = self._clock()
        order = list(self.waiting)
        taken: dict[str, int] = {}
        while order and self._budget > 0:
            # Of equal priority, the tenant that was served least, what starts now included.
            best = min(order, key=lambda work: self._urgency(work, now, taken))
            order.remove(best)
            if not best.settled():
                continue
            if not self._fits(best):
                break
            self.waiting.remove(best)
            self.running.append(best)
            best.running = True
            found = [sequence.find(self.blocks) for sequence in best.sequences]
            if best.cached < 0:
                best.cached = min(found[0], len(best.answer.turn.prompt))
            before = self._budget
            self._feed(best)
            taken[best.tenant] = taken.get(best.tenant, 0) + before - self._budget

    def _urgency(
        self, work: Work, now: float, taken: dict[str, int] | None = None
    ) -> tuple[float, float, int]:
        aged = int((now - work.waiting_since) / self.limits.patience)
        served = self._service[work.tenant] + (taken.get(work.tenant, 0) if taken else 0)
        return (-(work.priority + aged), served, work.arrival)

    def _fits(self, work: Work) -> bool:
        """Whether there is a place and blocks for all ids so far and one more, those of less
        important answers included, which then give way."""
        while True:
            lacking = 0
            for sequence in work.sequences:
                full, free = self.blocks.count_found(sequence.ids, work.salt)
                lacking += -(-(len(sequence.ids) + 1) // self.blocks.size) - full + free
            spare = len(self.running) if self.running else 0  # the others grow too
            room = lacking + min(spare, self.blocks.count // 8) <= self.blocks.free
            if len(self.running) < self.limits.sequences and (room or not self.running):
                return True
            victim = max(self.running, key=_importance, default=None)
            if victim is None or victim.priority >= work.priority or victim in self._feeds:
                return False
            self._preempt(victim)

    # Ids tried ahead

    def _draft(self, propose: Propose) -> None:
        """Let answers that are about to choose try ids ahead, with what the step has left."""
        size = self.blocks.size
        for feed in self._feeds.values():
            work = feed.work
            sequences, request = work.sequences, work.answer.turn.request
            most = self._budget // len(sequences)
            if not (feed.whole and most and (request.speculate or request.picture_window)):
                continue
            drafts, ahead = propose(work, most)
            tokens = [
                sequence.computed + count + len(drafts)
                for sequence, count in zip(sequences, feed.counts, strict=True)
            ]
            pairs = list(zip(sequences, tokens, strict=True))
            if sum(max(row.lacks(count, size), 0) for row, count in pairs) > self.blocks.free:
                continue
            for sequence, count in pairs:
                sequence.grow(count, self.blocks)
            feed.drafts, feed.ahead = drafts, ahead
            self._budget -= len(drafts) * len(sequences)


def _importance(work: Work) -> tuple[int, int]:
    """Sorts the most important first: by priority, then arrival."""
    return (-work.priority, work.arrival)
