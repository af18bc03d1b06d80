"""Many requests answered together, with pictures and sounds in and out.

What `Engine.chat` gives one by one, in batches: the same grammar, samplers, seeds and guidance, and
the same ids row by row (a test holds it to that). Guided rows have a second row in the same batch,
as in `generate`; the head scores only the ids that a row's grammar allows; rows that are done make
room for waiting ones. It streams nothing.

Shapes: B rows, T tokens, D width, K allowed ids.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from m27.infer.engine import Engine, Turn
from m27.infer.request import Request, Response, Usage
from m27.model.attention import Cache
from m27.model.decoder import Decoder
from m27.model.generate import guide

Spans = tuple[tuple[int, int], ...]  # half-open ranges of ids, ascending


@torch.inference_mode()
def answer_batch(
    engine: Engine,
    requests: Sequence[Request],
    batch: int = 32,
    progress: Callable[[int], None] | None = None,
) -> list[Response]:
    """The answers to `requests`, in their order, at most `batch` at a time.

    `progress` is told how many were finished. `seconds` of a response is the time from the call to
    its end. Raises what `Engine.stream` raises, before anything is computed, and ValueError for a
    batch below 1.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, not {batch}")
    started = time.perf_counter()
    rows = [
        _Row(number, engine.begin(request), request.guidance)
        for number, request in enumerate(requests)
    ]
    # What takes equally long runs together, the longest first.
    waiting = sorted(rows, key=lambda row: (row.turn.grammar.needed(), len(row.turn.prompt)))
    pool = _Pool(engine.model, engine.processor.unconditional())
    responses: dict[int, Response] = {}
    while waiting or pool.rows:
        if len(pool.rows) <= (batch if waiting else pool.width) // 2:
            count = min(len(waiting), batch - len(pool.rows))
            pool.admit([waiting.pop() for _ in range(count)])
        done = pool.step()
        for row in done:
            responses[row.number] = _response(engine, row, time.perf_counter() - started)
        if progress is not None and done:
            progress(len(done))
    return [responses[number] for number in range(len(requests))]


def _response(engine: Engine, row: _Row, seconds: float) -> Response:
    """The parts of a finished row."""
    vocabulary, turn = engine.processor.vocabulary, row.turn
    images = sum(id in vocabulary.image for id in row.made)
    sounds = sum(id in vocabulary.audio for id in row.made)
    finish = "length" if turn.grammar.truncated else "stop"
    usage = Usage(len(turn.prompt), len(row.made), images, sounds, turn.seed, finish)
    return Response(engine.processor.decode(row.made), usage, seconds)


@dataclass(eq=False)
class _Row:
    """One request under way. `second` is its guidance row's place in the cache, -1 for none."""

    number: int
    turn: Turn
    guidance: float
    made: list[int] = field(default_factory=list)
    second: int = -1
    in_span: bool = False

    def done(self) -> bool:
        return self.turn.grammar.done() or len(self.made) >= self.turn.max_tokens


class _Rows(Cache):
    """A cache that grows by a little, since it holds many rows."""

    def reserve(self, tokens: int) -> None:
        need = max(self.lengths) + tokens
        if self.capacity < need <= self.config.max_len:
            grown = min(need + 48, self.config.max_len)
            self.keys = F.pad(self.keys, (0, 0, 0, grown - self.capacity))
            self.values = F.pad(self.values, (0, 0, 0, grown - self.capacity))
            self.capacity = grown
        super().reserve(tokens)


class _Pool:
    """The rows under way: their cache, first the rows themselves, then the guidance rows."""

    def __init__(self, model: Decoder, unconditional: Sequence[int]) -> None:
        self.model, self.unconditional = model, list(unconditional)
        self.rows: list[_Row] = []
        self.slots: list[int] = []  # where each row stands in the cache
        self.width = 0  # how many rows the cache had when it was last put together
        self.cache = self._new(0, 1)
        self.h_BD = torch.zeros(0)
        self.prefix: Cache | None = None

    def _new(self, rows: int, capacity: int) -> _Rows:
        weight = self.model.output_weight
        return _Rows(self.model.config, rows, capacity, weight.dtype, weight.device)

    def admit(self, fresh: list[_Row]) -> None:
        """Put the cache together anew, from the rows still open and those of `fresh`, now read."""
        parts: list[tuple[Cache, list[int]]] = [(self.cache, self.slots)] if self.rows else []
        states = [self.h_BD[self.slots]] if self.rows else []
        if fresh:
            cache, h_BD = self._read([row.turn.prompt for row in fresh])
            parts.append((cache, list(range(len(fresh)))))
            states.append(h_BD)
        guided = [row for row in self.rows if row.second >= 0]
        if guided:
            parts.append((self.cache, [row.second for row in guided]))
            states.append(self.h_BD[[row.second for row in guided]])
        wanting = [row for row in fresh if row.guidance != 1.0]
        if wanting:
            if self.prefix is None:
                self.prefix, self.state = self._read([self.unconditional])
            parts.append((self.prefix, [0] * len(wanting)))
            states.append(self.state.expand(len(wanting), -1))
        self.rows += fresh
        self.slots = list(range(len(self.rows)))
        self.width = len(self.rows)
        for place, row in enumerate([*guided, *wanting]):
            row.second = self.width + place
        self.cache = self._joined(parts)
        self.h_BD = torch.cat(states)

    def _read(self, prompts: list[list[int]]) -> tuple[Cache, Tensor]:
        """The cache of `prompts`, and the states [B, D] of their last ids."""
        width = max(len(prompt) for prompt in prompts)
        cache = self._new(len(prompts), width)
        device = self.model.output_weight.device
        ids_BT = torch.tensor([p + [0] * (width - len(p)) for p in prompts], device=device)
        documents_BT = torch.tensor([[0] * len(p) + [-1] * (width - len(p)) for p in prompts])
        h_BTD = self.model.hidden(self.model.embed(ids_BT), documents_BT=documents_BT, cache=cache)
        last_B = torch.tensor([len(p) - 1 for p in prompts], device=device)
        return cache, h_BTD[torch.arange(len(prompts), device=device), last_B]

    def _joined(self, parts: list[tuple[Cache, list[int]]]) -> _Rows:
        lengths = [cache.lengths[slot] for cache, slots in parts for slot in slots]
        joined = self._new(len(lengths), max(lengths) + 72)  # a picture more, in most cases
        at = 0
        for cache, slots in parts:
            rows, end = slice(at, at + len(slots)), max(cache.lengths[slot] for slot in slots)
            joined.keys[:, rows, :, :end] = cache.keys[:, slots, :, :end]
            joined.values[:, rows, :, :end] = cache.values[:, slots, :, :end]
            at += len(slots)
        joined.lengths = lengths
        return joined

    def step(self) -> list[_Row]:
        """One id more for each row; those that are done are taken out and given back."""
        for row, token in zip(self.rows, self._chosen(), strict=True):
            row.turn.grammar.advance(token)
            row.made.append(token)
        ids: list[int | None] = [None] * len(self.cache.lengths)
        for slot, row in zip(self.slots, self.rows, strict=True):
            was, row.in_span = row.in_span, row.turn.grammar.medium() != "text"
            if row.done():
                continue
            ids[slot] = row.made[-1]
            if row.second >= 0 and row.in_span:
                if not was:  # the second row forgets all but its prompt, then reads the opening
                    self.cache.lengths[row.second] = len(self.unconditional)
                ids[row.second] = row.made[-1]
        done = [row for row in self.rows if row.done()]
        still = [(s, row) for s, row in zip(self.slots, self.rows, strict=True) if not row.done()]
        self.slots, self.rows = [s for s, _ in still], [row for _, row in still]
        if still:
            self._feed(ids)
        return done

    def _feed(self, ids: list[int | None]) -> None:
        """One id for each row of the cache, or None for none."""
        cache, count = self.cache, len(ids)
        if all(id is None for id in ids[self.width :]):  # no picture or sound is open
            count = self.width
        cache.reserve(1)
        view = self._new(0, 1)
        view.lengths, view.capacity = cache.lengths[:count], cache.capacity
        view.keys, view.values = cache.keys[:, :count], cache.values[:, :count]
        device = self.model.output_weight.device
        ids_B1 = torch.tensor([[id or 0] for id in ids[:count]], device=device)
        documents_B1 = torch.tensor([[-1 if id is None else 0] for id in ids[:count]])
        h_B1D = self.model.hidden(self.model.embed(ids_B1), documents_BT=documents_B1, cache=view)
        cache.lengths[:count] = view.lengths
        self.h_BD[:count] = h_B1D[:, 0]

    def _chosen(self) -> list[int]:
        """The next id of each row."""
        chosen = [0] * len(self.rows)
        groups: dict[Spans, list[int]] = {}
        for number, row in enumerate(self.rows):
            grammar = row.turn.grammar
            allowed = grammar.allowed()
            if len(allowed) == 1 and allowed[0][1] - allowed[0][0] == 1:
                chosen[number] = allowed[0][0]
                continue
            sources = [(source, source + 1) for source, _ in grammar.redirects()]
            groups.setdefault(tuple(sorted({*allowed, *sources})), []).append(number)
        for spans, numbers in groups.items():
            allowed_K = torch.cat([torch.arange(start, end) for start, end in spans])
            for number, logits_K in zip(numbers, self._logits(spans, numbers), strict=True):
                turn = self.rows[number].turn
                ids = [*turn.prompt, *self.rows[number].made]
                chosen[number] = turn.sampler.among(logits_K, allowed_K, ids)
        return chosen

    def _logits(self, spans: Spans, numbers: list[int]) -> Tensor:
        """Float32 logits [B, K] on the CPU of the rows `numbers`, guided where they are to be."""
        rows = [self.rows[number] for number in numbers]
        guided = [k for k, row in enumerate(rows) if row.in_span and row.second >= 0]
        logits_BK = self._head([self.slots[number] for number in numbers], spans)
        if guided:
            second_BK = self._head([rows[k].second for k in guided], spans)
            for place, k in enumerate(guided):
                logits_BK[k] = guide(logits_BK[k], second_BK[place], rows[k].guidance)
        return logits_BK.cpu()

    def _head(self, slots: list[int], spans: Spans) -> Tensor:
        """Float32 scores [B, K] of the ids in `spans` by the states in `slots`."""
        weight, h_BD = self.model.output_weight, self.h_BD[slots]
        return torch.cat([F.linear(h_BD, weight[a:b]) for a, b in spans], dim=1).float()
