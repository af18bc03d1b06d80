"""The naive `generate`: one row, one token a step, the oracle of every faster path.

It knows ids and ranges of ids. What may come next is the caller's `Constraint` (a grammar), which
token is taken is the caller's `choose` (a sampler); neither is known here.

Shapes: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from m27.model.attention import Cache
from m27.model.decoder import Decoder

Medium = Literal["text", "image", "audio"]


class Constraint(Protocol):
    """What may come next. `m27.language.grammar.Grammar` is one."""

    def allowed(self) -> Sequence[tuple[int, int]]:
        """Half-open ranges of ids, of which the next must be one."""
        ...

    def advance(self, id: int) -> None:
        """Take note of the id that was chosen."""
        ...

    def done(self) -> bool:
        """Whether the answer is complete, so that nothing may follow."""
        ...

    def medium(self) -> str:
        """Medium of the next id: "text", or "image" or "audio" within an open span.

        The id that opens a span still counts as text.
        """
        ...


def mask_logits(logits_V: Tensor, allowed: Sequence[tuple[int, int]]) -> Tensor:
    """Logits [V] with minus infinity outside the allowed ranges."""
    out = torch.full_like(logits_V, -torch.inf)
    for start, end in allowed:
        out[start:end] = logits_V[start:end]
    return out


def guide(conditional_V: Tensor, unconditional_V: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance u + g * (c - u) on logits [V] (Ho & Salimans 2022)."""
    return unconditional_V + guidance * (conditional_V - unconditional_V)


@torch.inference_mode()
def generate(
    model: Decoder,
    ids: Sequence[int],
    *,
    choose: Callable[[Tensor, list[int]], int],
    constraint: Constraint | None = None,
    max_tokens: int = 256,
    unconditional: Sequence[int] | None = None,
    guidance: float | Mapping[str, float] = 1.0,
    stop_ids: Collection[int] = (),
) -> Iterator[int]:
    """Continue the prompt `ids`, yielding each new id as it is chosen, a stop id included.

    `choose(logits_V float32, ids so far)` returns the next id. With a `constraint` the logits
    outside its allowed ranges are minus infinity, and, where its medium is not text and `guidance`
    (for all media, or by medium) is not 1, they are guided by a second branch with its own cache:
    it has read the prompt `unconditional` and the current span from its opening id on, so that
    earlier text keeps its whole effect. Ends after a stop id, when the constraint is done, or after `max_tokens`.

    Raises `ValueError` for an empty prompt, or an id that the constraint does not allow.
    """
    if not ids:
        raise ValueError("the prompt is empty")
    tokens = list(ids)
    main = _Branch(model, tokens)
    if not isinstance(guidance, Mapping):
        guidance = {"image": guidance, "audio": guidance}
    on = any(guidance[medium] != 1.0 for medium in ("image", "audio"))
    guided = on and unconditional and constraint is not None
    second = _Branch(model, unconditional) if guided and unconditional else None
    span_open = False
    for _ in range(max_tokens):
        if constraint is not None and constraint.done():
            return
        logits_V = main.logits_V
        if constraint is not None:
            in_span = constraint.medium() != "text"
            if second is not None and in_span:
                if not span_open:
                    second.restart(tokens[-1])
                logits_V = guide(logits_V, second.logits_V, guidance[constraint.medium()])
            span_open = in_span
            allowed = constraint.allowed()
            logits_V = mask_logits(logits_V, allowed)
        token = choose(logits_V, tokens)
        if constraint is not None:
            if not any(start <= token < end for start, end in allowed):
                raise ValueError(f"id {token} was chosen, which the constraint does not allow")
            constraint.advance(token)
        tokens.append(token)
        yield token
        if token in stop_ids:
            return
        main.feed([token])
        if second is not None and span_open:
            second.feed([token])


class _Branch:
    """One sequence with its cache, and the float32 logits [V] of what follows it."""

    def __init__(self, model: Decoder, prompt: Sequence[int]) -> None:
        weight = model.output_weight
        self.model, self.device = model, weight.device
        self.cache = Cache(model.config, dtype=weight.dtype, device=weight.device)
        self.feed(prompt)
        self.prompt_length = len(prompt)

    def feed(self, ids: Sequence[int]) -> None:
        """Read more ids."""
        ids_BT = torch.tensor([list(ids)], device=self.device)
        h_BTD = self.model.hidden(self.model.embed(ids_BT), cache=self.cache)
        self.logits_V = self.model.logits(h_BTD[0, -1]).float()

    def restart(self, opening: int) -> None:
        """Forget all but the prompt, then read the id that opens a span."""
        self.cache.truncate([self.prompt_length])
        self.feed([opening])
