"""A plain loop over a whole decoder: next-token training, or distillation from a teacher's logits.

Small on purpose. It is the way from experts back to a dense model (`m27.model.upcycle.merge`, then this
with the mixture as the teacher), and, without a teacher, the even ground on which the two are compared;
`m27.train.loop` is the loop for everything else. The logits of all targets never exist at once. A run
killed and started again ends where the uninterrupted one does, bit for bit on CPU.

Shapes: B rows, T tokens a row, M targets, D width, V vocabulary, S ids a target is scored among.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from m27.data.loader import MEDIA, Batch
from m27.data.mixture import State
from m27.model.decoder import Decoder
from m27.train import checkpoint
from m27.train.optim import OptimConfig, Optimiser
from m27.train.routing import Balancer, RouterConfig, strength

Stream = Iterator[tuple[list[Batch], State]]
# For each medium of MEDIA the ids (ascending) its targets are scored among; None: the vocabulary.
Candidates = Sequence[Tensor] | None


@dataclass(frozen=True)
class FitConfig:
    """`steps` optimiser steps of every weight. With a teacher a share `share` of each target's loss is
    KL(teacher ‖ student), the rest cross-entropy. A snapshot is kept every `save_every` steps."""

    steps: int
    share: float = 1.0
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(beta2=0.95, weight_decay=0.1))
    router: RouterConfig = field(default_factory=RouterConfig)
    save_every: int = 50
    piece: int = 128


@torch.no_grad()
def head(
    h_MD: Tensor,
    table_VD: Tensor,
    batch: Batch,
    candidates: Candidates = None,
    teacher: tuple[Tensor, Tensor] | None = None,
    share: float = 1.0,
    grad_VD: Tensor | None = None,
    piece: int = 128,
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropies [M], KL(teacher ‖ student) [M] (zero without one), both in nats, and the gradient
    [M, D] of the mean loss, weighted by the batch's weights.

    `h` are the states at the batch's targets, `table` the output rows; the latter's gradient is added to
    `grad_VD`. `teacher` is its states [M, D'] there and its own rows [V, D'].
    """
    losses, apart = torch.zeros(len(h_MD)), torch.zeros(len(h_MD))
    g_MD = torch.zeros_like(h_MD)
    weights_M = batch.weights_M / batch.weights_M.sum().clamp_min(1e-9)
    share = share if teacher is not None else 0.0
    for index_S, members in _scored_among(batch, candidates):
        rows_SD = table_VD if index_S is None else table_VD[index_S]
        targets = batch.targets_M[members]
        local = targets if index_S is None else torch.searchsorted(index_S, targets)
        grad_SD = torch.zeros_like(rows_SD)
        theirs = None if teacher is None else teacher[1]
        if theirs is not None and index_S is not None:
            theirs = theirs[index_S]
        for begin in range(0, len(members), piece):
            at, target = members[begin : begin + piece], local[begin : begin + piece, None]
            h = h_MD[at]
            log_q = torch.log_softmax((h @ rows_SD.t()).float(), dim=-1)
            losses[at] = -log_q.gather(1, target).flatten()
            d = log_q.exp()
            if teacher is not None and theirs is not None:
                log_p = torch.log_softmax((teacher[0][at] @ theirs.t()).float(), dim=-1)
                p = log_p.exp()
                apart[at] = (p * (log_p - log_q)).sum(-1)
                d -= share * p
            d.scatter_add_(1, target, torch.full_like(target, share - 1.0, dtype=d.dtype))
            weight = weights_M[at, None]
            g_MD[at] = (d @ rows_SD) * weight
            if grad_VD is not None:
                grad_SD.addmm_(d.t(), h * weight)
        if grad_VD is None:
            continue
        if index_S is None:
            grad_VD += grad_SD
        else:
            grad_VD.index_add_(0, index_S, grad_SD)
    return losses, apart, g_MD


def _scored_among(batch: Batch, candidates: Candidates) -> Iterator[tuple[Tensor | None, Tensor]]:
    """(ids scored among, places of the targets that are), media with the same ids together."""
    if candidates is None:
        yield None, torch.arange(len(batch.targets_M))
        return
    groups: dict[int, list[int]] = {}
    for medium, ids in enumerate(candidates):
        groups.setdefault(id(ids), []).append(medium)
    for media in groups.values():
        members = torch.isin(batch.media_M, torch.tensor(media)).nonzero().flatten()
        if len(members):
            yield candidates[media[0]], members


@torch.no_grad()
def target_losses(decoder: Decoder, batch: Batch, candidates: Candidates = None) -> Tensor:
    """The cross-entropy in nats [M] of each target of a batch."""
    h_MD = _states(decoder, batch)
    return head(h_MD, decoder.output_weight, batch, candidates)[0]


def _states(decoder: Decoder, batch: Batch, routing: list[Tensor] | None = None) -> Tensor:
    h_BTD = decoder.hidden(
        decoder.embed(batch.ids_BT), batch.positions_BT, batch.documents_BT, routing=routing
    )
    return h_BTD.flatten(0, 1).index_select(0, batch.places_M)


def fit(
    student: Decoder,
    stream: Callable[[State | None], Stream],
    config: FitConfig,
    run: Path,
    vocabulary: Mapping[str, Any],
    teacher: Decoder | None = None,
    candidates: Candidates = None,
    say: Callable[[str], None] = print,
) -> Balancer:
    """Train `student` in place, on batches from `stream(state)`, and keep its snapshots under `run`.

    Takes up the newest snapshot there, so a finished run is read and not run again. `run/log.jsonl` gets
    a line every 20 steps: loss by medium, the load of the experts since the last. `vocabulary` is that of
    the corpus's `meta`. Back comes the balancer with its counts. Raises as `checkpoint.latest` does.
    """
    parameters = dict(student.named_parameters())
    optimiser = Optimiser(parameters, config.optim)
    balancer = Balancer(student, config.router, vocabulary)
    step, tokens, seconds, loader_state = 0, 0, 0.0, None
    found = checkpoint.latest(run)
    if found is not None:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(found.trained[name])
        optimiser.load(found.optimiser)
        balancer.load_state(found.optimiser)
        step, loader_state = found.step, found.state["loader"]
        tokens, seconds = found.state["tokens"], found.state["seconds"]
    batches = stream(loader_state)
    student.train()
    begun = time.perf_counter() - seconds
    tally = torch.zeros(len(MEDIA), 2, dtype=torch.float64)
    run.mkdir(parents=True, exist_ok=True)
    _cut_log(run / "log.jsonl", step)
    while step < config.steps:
        micro, loader_state = next(batches)
        total_apart = 0.0
        for batch in micro:
            routing: list[Tensor] = []
            h_MD = _states(student, batch, routing)
            seen = None if teacher is None else _teach(teacher, batch)
            rows = student.output_weight
            grad_VD = torch.zeros_like(rows)
            losses, apart, g_MD = head(
                h_MD.detach(), rows, batch, candidates, seen, config.share, grad_VD, config.piece
            )
            loss = (h_MD * g_MD).sum() + (balancer(routing, batch) if routing else 0.0)
            loss.div(len(micro)).backward()
            _add_gradient(rows, grad_VD / len(micro))
            counted = torch.stack((losses, torch.ones_like(losses)), 1).double()
            tally.index_add_(0, batch.media_M, counted)
            total_apart += float(apart.mean())
            tokens += int((batch.documents_BT >= 0).sum())
        optimiser.step((step + 1) / config.steps)
        step += 1
        balancer.update(strength(config.router, config.optim, step / config.steps))
        seconds = time.perf_counter() - begun
        if step % 20 == 0 or step == config.steps:
            means = (tally[:, 0] / tally[:, 1].clamp_min(1)).tolist()
            line = {
                "step": step, "tokens": tokens, "seconds": round(seconds, 1),
                "loss": {m: round(v, 4) for m, v in zip(MEDIA, means, strict=True) if v},
            }  # fmt: skip
            if teacher is not None:
                line["divergence"] = round(total_apart / len(micro), 4)
            if balancer.layers:
                line["load"] = balancer.load(clear=step < config.steps).record()
            with open(run / "log.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            say(json.dumps(line))
            tally.zero_()
        if step % config.save_every == 0 or step == config.steps:
            state = {"loader": loader_state, "tokens": tokens, "seconds": seconds}
            kept = {**optimiser.state(), **balancer.state()}
            checkpoint.save(run, step, parameters, kept, state, keep=1)
    student.eval()
    return balancer


def _cut_log(path: Path, step: int) -> None:
    """Drop the lines of steps that are gone through again."""
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


@torch.no_grad()
def _teach(teacher: Decoder, batch: Batch) -> tuple[Tensor, Tensor]:
    return _states(teacher, batch), teacher.output_weight


def _add_gradient(rows: Tensor, grad_VD: Tensor) -> None:
    """Add to the gradient of the output rows, which may have one as the embedding."""
    rows.grad = grad_VD if rows.grad is None else rows.grad.add_(grad_VD)
