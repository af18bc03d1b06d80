"""A request made ready, and the state of one answer to it: what may come next, and what was taken.

Both engines go through this, so that they differ only in how logits are computed. Knows the grammar
and the sampler; no model, no cache and no batch.
"""

from __future__ import annotations

import copy
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from m27.infer.draft import next_codes
from m27.infer.request import Event, Request, RequestError, Usage
from m27.infer.runner import Draw
from m27.infer.sampler import Floats, Sampler, Spans, log_probabilities, place_of
from m27.infer.stops import Stops
from m27.language.grammar import Grammar
from m27.language.processor import Processor

Bools = npt.NDArray[np.bool_]


class TextRules(Protocol):
    """What a JSON schema asks of the text; see `Request.schema`."""

    def mask(self) -> Bools:
        """Which text ids may come next, [text_size]; at the id that ends the turn, whether it may."""
        ...

    def advance(self, id: int) -> None:
        """Take note of a text id."""
        ...

    def clone(self) -> TextRules:
        """An independent copy in the same state."""
        ...


Schema = Mapping[str, Any] | str
MakeRules = Callable[[Schema], TextRules]


@dataclass
class Turn:
    """The prompt's ids, what may follow, how it is drawn, and what guides it. `unconditional` is
    empty where nothing does."""

    request: Request
    prompt: list[int]
    grammar: Grammar
    max_tokens: int
    seed: int
    unconditional: list[int]
    rules: TextRules | None

    def stops(self) -> Stops | None:
        """What looks for the stop strings of one answer."""
        return Stops(self.request.stop) if self.request.stop else None


def prepare(
    processor: Processor, request: Request, max_len: int, make_rules: MakeRules | None = None
) -> Turn:
    """The request as ids and rules, nothing computed yet. `max_len`: tokens that the model holds.

    Raises MessageError, GrammarError or RequestError for a request that cannot be answered.
    """
    prompt = processor.encode(request.messages, generate=True).ids
    room = max_len - len(prompt)
    if room < 1:
        raise RequestError(f"the conversation is {len(prompt)} tokens long; {max_len} is the most")
    max_tokens = min(request.max_tokens, room)
    grammar = Grammar(
        processor.vocabulary,
        modalities=request.modalities,
        plan=request.plan,
        max_images=request.max_images,
        max_sounds=request.max_sounds,
        image_grid=request.image_grid,
        max_audio_codes=request.max_audio_codes,
        min_audio_codes=request.min_audio_codes,
        max_text=request.max_text,
        min_text=request.min_text,
    )
    grammar.budget(max_tokens)
    rules = None
    if request.schema is not None:
        if make_rules is None:
            raise RequestError("this engine has nothing that keeps an answer to a JSON schema")
        rules = make_rules(request.schema)
    seed = secrets.randbits(32) if request.seed is None else request.seed
    guided = any(request.guided[medium] != 1.0 for medium in request.modalities)
    unconditional = processor.unconditional() if guided else []
    turn = Turn(request, prompt, grammar, max_tokens, seed, unconditional, rules)
    turn.stops()  # raises where one cannot be looked for
    return turn


class Answer:
    """One answer under way, the `index`-th to its request. `ids` are those produced so far."""

    def __init__(self, turn: Turn, index: int = 0) -> None:
        request = turn.request
        self.turn, self.index = turn, index
        self.grammar = turn.grammar.clone()
        self.rules = turn.rules.clone() if turn.rules is not None else None
        self.sampler = Sampler(request.sampling, turn.seed, index)
        self.ids: list[int] = []
        self.guesses: list[int] = []  # of the codes that come next in an open picture
        self.images = self.sounds = 0
        self.done = False
        self._vocabulary = turn.grammar.vocabulary
        self._logprobs = request.logprobs
        self._scored: Event | None = None
        self._look()

    @property
    def in_span(self) -> bool:
        """Whether the next id belongs to an open picture or sound (the id that opens one does not)."""
        return self.medium != "text"

    def _look(self) -> None:
        """What may come next: `forced` is the only id that may, or else None; `spans` are the ids
        whose logits are needed, those included from which the sampler redirects."""
        grammar = self.grammar
        self.medium = grammar.medium()
        allowed = grammar.allowed()
        self.forced: int | None = None
        self.redirects: list[tuple[int, int]] = []
        self.mask_K: Bools | None = None
        if len(allowed) == 1:
            start, end = allowed[0]
            self.forced = start if end == start + 1 else None
        elif self.medium == "text":
            self.redirects = grammar.redirects()
            allowed += [(source, source + 1) for source, _ in self.redirects]
            allowed.sort()
        self.spans: Spans = tuple(allowed)
        if self.rules is not None and self.forced is None and not grammar.done():
            self._look_at_rules()

    def _look_at_rules(self) -> None:
        assert self.rules is not None
        mask = self.rules.mask()
        # What lies behind the text ids opens a medium, which no schema asks for.
        missing = max(0, self.spans[-1][1] - len(mask))
        whole = np.concatenate([mask, np.zeros(missing, bool)]) if missing else mask
        self.mask_K = np.concatenate([whole[start:end] for start, end in self.spans])
        if np.count_nonzero(self.mask_K) == 1:
            place = int(self.mask_K.argmax())
            for start, end in self.spans:
                if place < end - start:
                    self.forced = start + place
                    break
                place -= end - start

    @property
    def plain(self) -> bool:
        """Whether `choose` would take the id of `spans` with the highest logit, and ask no more."""
        asks = self.mask_K is not None or self._logprobs is not None or bool(self.redirects)
        return not asks and self.sampler.settings[self.medium].greedy

    @property
    def guidance(self) -> float:
        """How much the next id is guided, where a second sequence guides it."""
        return self.turn.request.guided[self.medium]

    @property
    def drawable(self) -> bool:
        """Whether a runner may draw in the place of `choose`: the logits are asked for by nobody else."""
        return self.mask_K is None and self._logprobs is None

    def draw(self, row: int, other: int) -> Draw:
        """What `choose` would do, for a runner that draws; see `Sampler.draw`."""
        return self.sampler.draw(self.spans, self.medium, self.redirects, row, other, self.guidance)

    def choose(self, logits_K: Floats) -> int:
        """The next id, given the logits of the ids of `spans` (which may be changed); `take` it."""
        raw = logits_K.copy() if self._logprobs is not None else logits_K
        id = self.sampler.choose(logits_K, self.spans, self.medium, self.redirects, self.mask_K)
        if self._logprobs is not None:
            self._scored = log_probabilities(raw, self.spans, id, self._logprobs)
        return id

    def take(self, id: int) -> Event | None:
        """Take note of the next id; the event of its log probability, where asked for.

        Raises GrammarError for an id that is not allowed.
        """
        vocabulary = self._vocabulary
        text = self.medium == "text" and not vocabulary.is_control(id)
        self.grammar.advance(id)
        if text and self.rules is not None:
            self.rules.advance(id)
        self.ids.append(id)
        self.sampler.take(id)
        if id >= vocabulary.image.start:
            if id < vocabulary.image.stop:
                self.images += 1
            else:
                self.sounds += 1
        scored = None
        if self._logprobs is not None:
            only = {"id": id, "logprob": 0.0, "top": [(id, 0.0)][: self._logprobs]}
            scored = {"type": "logprobs", **(self._scored or only)}
            self._scored = None
        self.done = self.grammar.done() or len(self.ids) >= self.turn.max_tokens
        if not self.done:
            self._look()
        return scored

    def ahead(self, drafts: Sequence[int]) -> list[Spans]:
        """The ids to be asked for after each of `drafts`, as if they had been taken; as many as are
        allowed, within the text, and followed by a choice."""
        fork = copy.copy(self)
        fork.grammar, fork.ids, fork.sampler = self.grammar.clone(), [], Sampler({}, 0)
        fork.rules = self.rules.clone() if self.rules is not None else None
        spans: list[Spans] = []
        for id in drafts:
            place = place_of(fork.spans, id)
            if place < 0 or (fork.mask_K is not None and not fork.mask_K[place]):
                break
            if any(id == source for source, _ in fork.redirects):
                break
            fork.take(id)
            if fork.done or fork.forced is not None or fork.in_span:
                break
            spans.append(fork.spans)
        return spans

    def codes_ahead(self, most: int) -> list[int]:
        """Up to `most` codes that may come next in the open picture, at least one being left for a
        choice behind them; [] elsewhere."""
        picture = self.grammar.picture()
        if picture is None or most <= 0:
            return []
        height, width, made = picture
        most = min(most, height * width - made - 1)
        codes = self.ids[len(self.ids) - made :]
        first = self._vocabulary.image.start
        return next_codes(codes, width, self.guesses, most, first) if most else []

    def guess(self, logits_K: Floats, ahead: int) -> int:
        """The code that `choose` would draw in the open picture `ahead` codes after the next one, had
        it these logits (which may be changed)."""
        self.sampler.number += ahead
        try:
            return self.sampler.choose(logits_K, self.spans, self.medium)
        finally:
            self.sampler.number -= ahead

    def last_event(self, cached: int = 0) -> Event:
        """What is told at the end, but for the seconds; `cached` tokens of the prompt were found."""
        finish = "length" if self.grammar.truncated else "stop"
        counts = (len(self.turn.prompt), len(self.ids), self.images, self.sounds)
        usage = Usage(*counts, self.turn.seed, finish, cached)
        return {"type": "done", "usage": usage, "seconds": 0.0, "ids": self.ids}
