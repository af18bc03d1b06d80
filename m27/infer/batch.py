"""Many short answers at once: prompts of different lengths, prefilled and decoded together.

Evaluation asks hundreds of questions whose answers are a few tokens; one by one, each token would
read every weight. Rows are padded at their ends, each keeps its own length in the cache, and what
comes out equals the naive `generate` row by row (a test holds it to that). Knows no messages and no
media; for streaming, guidance and everything interactive there is the engine.

Shapes: B rows, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from m27.model.attention import Cache
from m27.model.decoder import Decoder
from m27.model.generate import Constraint, mask_logits

Choose = Callable[[Tensor, list[int]], int]  # masked logits [V], ids so far -> one id


class Ranges:
    """A constraint that never changes: the half-open id ranges `allowed`, all of them text."""

    def __init__(self, allowed: Sequence[tuple[int, int]]) -> None:
        self._allowed = list(allowed)

    def allowed(self) -> list[tuple[int, int]]:
        """The ranges given at the start."""
        return self._allowed

    def advance(self, id: int) -> None:
        """Nothing: every id leaves the same ranges allowed."""

    def done(self) -> bool:
        """Never: the stop ids or the budget end the row."""
        return False

    def medium(self) -> str:
        """Always text."""
        return "text"


def greedy(logits_V: Tensor, ids: list[int]) -> int:
    """The likeliest id."""
    return int(logits_V.argmax())


@torch.inference_mode()
def generate_batch(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: Collection[int],
    max_tokens: int,
    constraints: Sequence[Constraint] | None = None,
    choose: Choose | Sequence[Choose] = greedy,
    batch: int = 16,
    progress: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """Answers to `prompts`, in their order; each ends with its stop id, or after `max_tokens`.

    `constraints[i]` masks the ids of row i and is advanced by what was chosen (give each row its
    own); `choose` is one function for all rows, or one a row. `progress` is told how many rows were
    finished. Rows of similar length run together, `batch` at a time. Raises ValueError for an empty
    prompt.
    """
    if any(len(prompt) == 0 for prompt in prompts):
        raise ValueError(f"prompt {[len(p) for p in prompts].index(0)} is empty")
    answers: list[list[int]] = [[] for _ in prompts]
    for rows in _by_length(prompts, batch):
        _run(model, prompts, rows, answers, set(stop_ids), max_tokens, constraints, choose)
        if progress is not None:
            progress(len(rows))
    return answers


def _by_length(prompts: Sequence[Sequence[int]], batch: int) -> Iterator[list[int]]:
    """Row numbers in groups of at most `batch`, longest first, so that a shortage of memory shows
    at once."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    for start in range(0, len(order), batch):
        yield order[start : start + batch]


def _run(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    rows: list[int],
    answers: list[list[int]],
    stop_ids: set[int],
    max_tokens: int,
    constraints: Sequence[Constraint] | None,
    choose: Choose | Sequence[Choose],
) -> None:
    """Fill `answers` for one group of rows."""
    weight = model.output_weight
    longest = max(len(prompts[i]) for i in rows)
    cache = Cache(model.config, len(rows), longest + max_tokens, weight.dtype, weight.device)
    next_ids: list[list[int]] = [list(prompts[i]) for i in rows]
    open_rows = {
        slot for slot, i in enumerate(rows) if constraints is None or not constraints[i].done()
    }
    for _ in range(max_tokens):
        if not open_rows:
            break
        h_BD = _last_hidden(model, next_ids, cache)
        slots = sorted(open_rows)
        logits = model.logits(h_BD[slots]).float()
        next_ids = [[] for _ in rows]
        for slot, logits_V in zip(slots, logits, strict=True):
            row = rows[slot]
            if constraints is not None:
                logits_V = mask_logits(logits_V, constraints[row].allowed())
            pick = choose if callable(choose) else choose[row]
            id = pick(logits_V, [*prompts[row], *answers[row]])
            answers[row].append(id)
            next_ids[slot] = [id]
            if constraints is not None:
                constraints[row].advance(id)
            if id in stop_ids or (constraints is not None and constraints[row].done()):
                open_rows.discard(slot)
                next_ids[slot] = []


def _last_hidden(model: Decoder, ids: list[list[int]], cache: Cache) -> Tensor:
    """States (B, D) of the last new token of each row; rows without new tokens give a meaningless
    one."""
    device = model.output_weight.device
    width = max(len(row) for row in ids)
    ids_BT = torch.tensor([row + [0] * (width - len(row)) for row in ids], device=device)
    documents_BT = torch.tensor([[0] * len(row) + [-1] * (width - len(row)) for row in ids])
    full = all(len(row) == width for row in ids)
    h_BTD = model.hidden(
        model.embed(ids_BT), documents_BT=None if full else documents_BT, cache=cache
    )
    last = torch.tensor([max(len(row) - 1, 0) for row in ids], device=device)
    return h_BTD[torch.arange(len(ids), device=device), last]


@torch.inference_mode()
def log_likelihoods(
    model: Decoder,
    rows: Sequence[Sequence[int]],
    batch: int = 4,
    chunk: int = 256,
    size: int | None = None,
) -> list[Tensor]:
    """For each row of T ids the natural-log probabilities (T − 1,) of its ids after the first.

    With `size` only the first `size` ids of the vocabulary share the probability. Scores are formed
    `chunk` positions at a time, so memory stays at chunk · V floats. The result is on the CPU.
    """
    out: list[Tensor] = [torch.zeros(0) for _ in rows]
    device = model.output_weight.device
    for group in _by_length(rows, batch):
        width = max(len(rows[i]) for i in group)
        ids_BT = torch.tensor(
            [[*rows[i], *[0] * (width - len(rows[i]))] for i in group], device=device
        )
        h_BTD = model.hidden(model.embed(ids_BT))  # causal: what pads a row's end is never seen
        for slot, i in enumerate(group):
            h_TD, target_T = h_BTD[slot, : len(rows[i]) - 1], ids_BT[slot, 1 : len(rows[i])]
            parts = [
                -F.cross_entropy(model.logits(h)[:, :size].float(), target, reduction="none").cpu()
                for h, target in zip(h_TD.split(chunk), target_T.split(chunk), strict=True)
            ]
            out[i] = torch.cat(parts) if parts else torch.zeros(0)
    return out
