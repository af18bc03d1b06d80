"""The simple engine: one request at a time, in this process, over the naive `generate`.

It is the oracle of `m27.infer.engine.Engine`: the same requests, the same events, and in float32 the
same ids. The model is asked for nothing but logits.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from m27.infer.inline import Inline
from m27.infer.request import Event, Request, RequestError, Response
from m27.infer.respond import collect
from m27.infer.runner import Adapter
from m27.infer.turn import Answer, MakeRules, prepare
from m27.language.processor import Processor
from m27.model.decoder import Decoder
from m27.model.generate import generate


class NaiveEngine:
    """A decoder and its processor, answering requests. Not for several threads at once."""

    def __init__(
        self, model: Decoder, processor: Processor, make_rules: MakeRules | None = None
    ) -> None:
        self.model = model.eval()
        self.processor = processor
        self.make_rules = make_rules
        self._adapted: dict[str, Decoder] = {}

    def add_adapter(self, name: str, adapter: Adapter) -> None:
        """Keep a copy of the model with the adapter merged into it."""
        model = copy.deepcopy(self.model)
        with torch.no_grad():
            for matrix, (a, b) in adapter.matrices.items():
                weight = model.get_parameter(f"{matrix}.weight")
                weight.add_(torch.from_numpy(np.asarray(b) @ np.asarray(a)).to(weight))
        self._adapted[name] = model

    def stream(self, request: Request) -> Iterator[Event]:
        """Answer, giving events as soon as they are known; they are those of `Engine.stream`.

        Several answers (`n`) come one after the other. Raises as `Engine.stream` does.
        """
        started = time.perf_counter()
        if request.adapter is not None and request.adapter not in self._adapted:
            raise RequestError(f"no adapter is called {request.adapter!r}")
        model = self.model if request.adapter is None else self._adapted[request.adapter]
        turn = prepare(self.processor, request, model.config.max_len, self.make_rules)
        for index in range(request.n):
            answer, media = Answer(turn, index), Inline(self.processor)
            media.open(0, turn.stops())
            steered = _Steered(answer)
            told = {"index": index} if request.n > 1 else {}
            for token in generate(
                model,
                turn.prompt,
                choose=steered.choose,
                constraint=steered,
                max_tokens=turn.max_tokens,
                unconditional=turn.unconditional,
                guidance=request.guided,
            ):
                if steered.scored is not None:
                    media.put(0, steered.scored)
                wanted = media.push(0, [token])
                yield from (event | told for _, event in media.poll())
                if not wanted:
                    break
            media.finish(0)
            seconds = time.perf_counter() - started
            media.put(0, answer.last_event() | {"seconds": seconds})
            yield from (event | told for _, event in media.poll())

    def chat(self, request: Request) -> Response:
        """Answer as a whole; raises as `stream` does."""
        return collect(self.stream(request))


class _Steered:
    """An answer as `generate` sees it, with the ids from which it redirects let through, so that
    the sampler still finds their logits and can move them to where they are meant."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.scored: Event | None = None

    def choose(self, logits_V: Tensor, ids: list[int]) -> int:
        """The next id, of those that `allowed` left finite."""
        if self._answer.forced is not None:
            return self._answer.forced
        parts = [logits_V[start:end] for start, end in self._answer.spans]
        return self._answer.choose(torch.cat(parts).cpu().numpy())

    def allowed(self) -> list[tuple[int, int]]:
        return list(self._answer.spans)

    def advance(self, id: int) -> None:
        self.scored = self._answer.take(id)

    def done(self) -> bool:
        return self._answer.done

    def medium(self) -> str:
        return self._answer.medium
