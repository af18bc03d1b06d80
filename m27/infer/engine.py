"""The engine: many requests at once, text, pictures and sounds, a step at a time.

A step is schedule, run, postprocess: which tokens are computed is decided by the scheduler, logits
come from the runner, and each answer draws its next id among those that its grammar allows. Ids
become events in the decoders of the answers. The engine knows no model and no device.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m27.infer.batching import Rows, assemble
from m27.infer.cache import Blocks, salt_of
from m27.infer.inline import Inline, Media
from m27.infer.request import Event, Refused, Request, RequestError, Response
from m27.infer.respond import collect
from m27.infer.runner import Adapter, Answered, Batch, Runner, RunnerError, Spans
from m27.infer.scheduler import Feed, Limits, Scheduler
from m27.infer.sequence import Sequence as Row
from m27.infer.sequence import Work, most_blocks
from m27.infer.turn import Answer, MakeRules, Turn, prepare
from m27.language.processor import Processor

Draft = Callable[[Sequence[int], int], list[int]]  # ids so far, most -> ids that may follow


@dataclass
class _Plan:
    """What a step computes, and where its answers find their logits."""

    feeds: list[Feed]
    batch: Batch | None = None
    rows: list[Rows] = field(default_factory=list)


class Engine:
    """A runner and a processor, answering requests. Not for several threads at once.

    `make_rules` turns a request's schema into rules for its text; `draft` proposes ids ahead;
    `media` turns ids into events, beside the step or within it.
    """

    def __init__(
        self,
        runner: Runner,
        processor: Processor,
        limits: Limits | None = None,
        *,
        make_rules: MakeRules | None = None,
        draft: Draft | None = None,
        media: Media | None = None,
    ) -> None:
        self.runner, self.processor = runner, processor
        self.limits = limits or Limits()
        self.blocks = Blocks(runner.blocks, runner.block_size, self.limits.reuse)
        self.scheduler = Scheduler(self.blocks, self.limits)
        self.media: Media = media or Inline(processor)
        self._make_rules, self._draft = make_rules, draft
        self._adapters: dict[str, tuple[int, str]] = {}  # name -> the runner's number, salt
        self.adapter = ("", -1)  # of requests that name none: its name and the runner's number
        self._open: dict[int, Work] = {}  # by key: answers whose last event was not told yet
        self._requests: dict[int, set[int]] = {}  # number -> keys of its open answers
        self._streams: dict[int, deque[Event]] = {}  # events that somebody in here waits for
        self._told: list[tuple[int, Event]] = []
        self._numbers = self._keys = 0
        self._count = dict.fromkeys(
            ("steps", "tokens", "completion_tokens", "drafted", "accepted", "finished", "cancelled",
             "refused", "failed"), 0,
        )  # fmt: skip
        self._seconds = {"schedule": 0.0, "run": 0.0, "postprocess": 0.0}
        self._mean = 1.0  # seconds that an answer took, of late

    @classmethod
    def load(cls, folder: str | Path, **options: Any) -> Engine:
        """The engine of a checkpoint folder; the options are those of `m27.infer.load.load_engine`."""
        from m27.infer.load import load_engine

        return load_engine(folder, cls, **options)

    # Requests in

    def add(self, request: Request, live: bool = True) -> int:
        """Take on a request; its number, which its events carry. Nothing is computed yet. With
        `live` off, sounds come whole and pictures without previews, where `media` can do that.

        Raises MessageError, GrammarError or RequestError where it cannot be answered, and Refused
        where limits keep it out.
        """
        try:
            return self._add(request, live)
        except Refused as error:
            self._count["refused"] += 1
            if error.reason == "queue":
                line = len(self.scheduler.waiting) / self.limits.sequences
                error.retry_after = round(max(1.0, self._mean * line), 1)
            raise

    def _add(self, request: Request, live: bool) -> int:
        started = time.perf_counter()
        limits, config = self.limits, self.runner.config
        self.scheduler.check_queue(request.n)  # before any work is put into it
        if request.adapter is not None and request.adapter not in self._adapters:
            raise RequestError(f"no adapter is called {request.adapter!r}")
        turn = prepare(self.processor, request, config.max_len, self._make_rules)
        long = len(turn.prompt)
        if limits.prompt_tokens is not None and long > limits.prompt_tokens:
            why = f"the prompt is {long} tokens long; {limits.prompt_tokens} is the most"
            raise Refused(why, "limit")
        total = long + turn.max_tokens
        if limits.total_tokens is not None and total > limits.total_tokens:
            why = f"the request may take {total} tokens; {limits.total_tokens} is the most"
            raise Refused(why, "limit")
        self._numbers += 1
        works: list[Work] = []
        for index in range(request.n):
            works.append(self._work(turn, index, started, works[0] if works else None))
        self.scheduler.admit(works, most_blocks(turn, self.blocks.size))
        self._requests[self._numbers] = {work.key for work in works}
        for work in works:
            self._open[work.key] = work
            self.media.open(work.key, turn.stops(), live)
            self._force(work)
        return self._numbers

    def _work(self, turn: Turn, index: int, started: float, after: Work | None) -> Work:
        request = turn.request
        number, version = self._adapters.get(request.adapter or self.adapter[0], (-1, ""))
        salt = salt_of(request.tenant, version)
        self._keys += 1
        return Work(
            self._keys, self._numbers, Answer(turn, index), Row(turn.prompt, salt),
            salt, request.priority, request.tenant, number, arrival=self._keys, started=started,
            after=after if self.limits.reuse else None,
        )  # fmt: skip

    def cancel(self, number: int) -> None:
        """Let go of a request, finished or not: its blocks are free at once, and no event of it
        comes any more. Unknown numbers are let pass."""
        keys = self._requests.pop(number, None)
        if keys is None:
            return
        for key in keys:
            work = self._open.pop(key)
            self.media.cancel(key)
            if not work.over:
                self.scheduler.remove(work)
        self._told = [(other, event) for other, event in self._told if other != number]
        self._count["cancelled"] += 1

    def add_adapter(self, name: str, adapter: Adapter) -> int:
        """Let requests name an adapter, in place of one so called; the runner's number of it. Raises
        RunnerError where it does not fit the model, and RequestError where the former is in use."""
        if name in self._adapters:
            self.remove_adapter(name)
        self._keys += 1  # what was computed with the former one must not be found
        self._adapters[name] = (self.runner.add_adapter(adapter), f"{name}\n{self._keys}")
        return self._adapters[name][0]

    def remove_adapter(self, name: str) -> None:
        """Let go of an adapter. Raises RequestError where none is so called, or it is in use."""
        if name not in self._adapters:
            raise RequestError(f"no adapter is called {name!r}")
        number, _ = self._adapters[name]
        if any(work.adapter == number and not work.over for work in self._open.values()):
            raise RequestError(f"the adapter {name!r} is in use")
        self.runner.remove_adapter(number)
        del self._adapters[name]

    # Events out

    def step(self) -> list[tuple[int, Event]]:
        """Compute one step; the events that are due, each with the number of its request.

        Events are those of `m27.language.stream.StreamDecoder`, "logprobs" where asked for, and at
        the very end of an answer {"type": "done", "usage", "seconds": wall clock, "ids"}; instead of
        it {"type": "error", "message"} for a request that failed. With `n` > 1 each has its "index".
        """
        self._advance()
        told, self._told = self._told, []
        return told

    def _advance(self) -> None:
        """One step: schedule, run, postprocess."""
        begun = time.perf_counter()
        plan = self._schedule()
        scheduled = time.perf_counter()
        logits = self._run(plan)
        ran = time.perf_counter()
        self._postprocess(plan, logits)
        self._seconds["schedule"] += scheduled - begun
        self._seconds["run"] += ran - scheduled
        self._seconds["postprocess"] += time.perf_counter() - ran

    def busy(self) -> bool:
        """Whether some request still has events to come."""
        return bool(self._requests)

    def stream(self, request: Request) -> Iterator[Event]:
        """Answer one request, giving its events (see `step`) as soon as they are known.

        Other requests go on meanwhile. Raises as `add` does, before the first event; a stream that
        is closed cancels its request.
        """
        number = self.add(request)
        events = self._streams[number] = deque()
        try:
            while number in self._requests or events:
                while events:
                    yield events.popleft()
                if number in self._requests:
                    self._advance()
        finally:
            del self._streams[number]
            self.cancel(number)

    def chat(self, request: Request) -> Response:
        """Answer as a whole; raises as `stream` does, and EngineError for a request that failed."""
        return collect(self.stream(request))

    def answer(
        self, requests: Sequence[Request], progress: Callable[[int], None] | None = None
    ) -> list[Response]:
        """The answers to many requests, in their order; `progress` is told how many were finished.

        Raises as `chat` does; the other requests are then cancelled.
        """
        waiting = deque(enumerate(requests))
        places: dict[int, int] = {}
        made: dict[int, Response] = {}
        try:
            while waiting or places:
                while waiting and len(self.scheduler.waiting) <= self.limits.waiting // 2:
                    if places and len(places) >= 2 * self.limits.sequences:
                        break
                    place, request = waiting.popleft()
                    number = self.add(request, live=False)
                    self._streams[number], places[number] = deque(), place
                self._advance()
                for number in [number for number in places if number not in self._requests]:
                    made[places.pop(number)] = collect(self._streams.pop(number))
                    if progress is not None:
                        progress(1)
        finally:
            for number in places:
                self._streams.pop(number, None)
                self.cancel(number)
        return [made[place] for place in range(len(requests))]

    def metrics(self) -> dict[str, Any]:
        """Counts since the start, what is under way, the use of blocks, and seconds by part."""
        blocks = self.blocks
        return {
            "running": len(self.scheduler.running), "waiting": len(self.scheduler.waiting),
            "preempted": self.scheduler.preempted, **self._count,
            "blocks": {"all": blocks.count, "used": blocks.used, "kept": blocks.kept,
                       "evicted": blocks.evicted, "size": blocks.size},
            "prompt_tokens_found": blocks.found, "prompt_tokens_asked": blocks.asked,
            "seconds": dict(self._seconds), "runner": self.runner.facts(),
        }  # fmt: skip

    def close(self) -> None:
        """Cancel what is under way and let `media` end its threads."""
        for number in list(self._requests):
            self.cancel(number)
        self.media.close()

    # The three parts of a step

    def _schedule(self) -> _Plan:
        feeds = self.scheduler.schedule(self._propose)
        able = (getattr(self.runner, name, False) for name in ("picks", "draws"))
        return _Plan(feeds, *assemble(feeds, self.blocks.size, *able)) if feeds else _Plan([])

    def _run(self, plan: _Plan) -> list[Answered]:
        if plan.batch is None:
            return []
        self._count["steps"] += 1
        self._count["tokens"] += len(plan.batch.ids)
        try:
            return self.runner.run(plan.batch)
        except RunnerError as error:
            for feed in plan.feeds:
                self._fail(feed.work, str(error))
            plan.feeds, plan.rows = [], []
            return []

    def _postprocess(self, plan: _Plan, logits: list[Answered]) -> None:
        for feed in plan.feeds:
            for sequence, count in zip(feed.work.sequences, feed.counts, strict=True):
                sequence.settle(sequence.computed + count, self.blocks)
        for row in plan.rows:
            work = row.feed.work
            if work.over:  # another answer to the request has failed
                continue
            try:
                self._continue(row, logits)
            except Exception as error:  # one answer must not take the others with it
                self._fail(work, f"{type(error).__name__}: {error}")
        events = self.media.poll()
        for key, event in events:
            self._tell(key, event)
        if not plan.feeds and not events and self._requests:
            time.sleep(0.0005)  # only decoding beside the step is under way

    def _continue(self, row: Rows, logits: list[Answered]) -> None:
        """Draw the next id of an answer, and further ones as long as they are those tried ahead."""
        work, answer, drafts = row.feed.work, row.feed.work.answer, row.feed.drafts
        drawing, sequences, accepted = answer.medium == "image", work.sequences, 0
        for number in range(len(row.rows)):
            id = row.id(logits) if row.settled else answer.choose(row.logits_of(number, logits))
            length = len(work.main.ids)
            self._take(work, id)
            self._force(work)
            agrees = number < len(drafts) and drafts[number] == id
            same = len(work.main.ids) == length + 1 and work.sequences == sequences
            if not agrees or work.over or not same:
                accepted += agrees and not work.over
                break
            accepted += 1
        if drawing and not work.over:
            behind = [row.logits_of(k, logits) for k in range(number + 1, len(row.rows))]
            answer.guesses = [answer.guess(logits_K, k) for k, logits_K in enumerate(behind)]
        self._count["drafted"] += len(drafts)
        self._count["accepted"] += accepted
        if accepted and not work.over:
            for sequence in set(work.sequences) & set(sequences):  # no partner that is new or gone
                sequence.settle(sequence.computed + accepted, self.blocks)

    def _take(self, work: Work, id: int) -> None:
        """Append an id to an answer; its events come out of `media` in their time."""
        scored = work.take(id, self.blocks)
        self._count["completion_tokens"] += 1
        if scored is not None:
            self.media.put(work.key, scored)
        wanted = self.media.push(work.key, (id,))
        if work.answer.done or not wanted:
            self.media.finish(work.key)
            self.media.put(work.key, work.answer.last_event(max(work.cached, 0)))
            self.scheduler.remove(work)

    def _force(self, work: Work) -> None:
        """Append the ids that are the only ones allowed; no logits are needed for them."""
        while not work.over and work.answer.forced is not None:
            self._take(work, work.answer.forced)

    def _propose(self, work: Work, most: int) -> tuple[list[int], list[Spans]]:
        """Ids that may follow an answer, and the ids to be asked for after each."""
        request = work.answer.turn.request
        if work.answer.in_span:
            drafts = work.answer.codes_ahead(min(most, request.picture_window - 1))
            return drafts, [work.answer.spans] * len(drafts)
        most = min(most, self.limits.drafts)
        if self._draft is None or not (request.speculate and most):
            return [], []
        drafts = self._draft(work.main.ids, most)[:most]
        ahead = work.answer.ahead(drafts)
        return drafts[: len(ahead)], ahead

    def _tell(self, key: int, event: Event) -> None:
        """Pass an event on, and close its answer with the last one."""
        work = self._open.get(key)
        if work is None:
            return
        if event["type"] == "error":
            self._fail(work, event["message"])
            return
        number = work.number
        if event["type"] == "done":
            event["seconds"] = time.perf_counter() - work.started
            self._mean += 0.1 * (event["seconds"] - self._mean)
            del self._open[key]
            self._requests[number].discard(key)
            if not self._requests[number]:
                del self._requests[number]
                self._count["finished"] += 1
        if work.answer.turn.request.n > 1:
            event["index"] = work.answer.index
        self._pass(number, event)

    def _pass(self, number: int, event: Event) -> None:
        stream = self._streams.get(number)
        if stream is not None:
            stream.append(event)
        else:
            self._told.append((number, event))

    def _fail(self, work: Work, message: str) -> None:
        """End a request that cannot go on; its other answers end with it."""
        if work.number in self._requests:
            self._pass(work.number, {"type": "error", "message": message})
            told, self._told = self._told, []
            self.cancel(work.number)
            self._told = told
            self._count["cancelled"] -= 1
            self._count["failed"] += 1
