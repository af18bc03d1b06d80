"""Training on preferences: pairs of answers as documents of two branches, scored against the run's beginning.

A pair is one document: what both answers share, the chosen answer as branch 1, the rejected as branch 2. So it
never comes apart in packing and its prompt is computed once. Here pairs are told from other documents, laid out
for `m27.train.pairs`, and their gradient is formed; passes know nothing of it. See `m27.data.branches`.

Shapes: B rows, T tokens, N = B*T, M targets, P pairs, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from m27.data.branches import holds_pairs
from m27.data.loader import MEDIA, Batch
from m27.data.mixture import Corpus
from m27.train.objective import cross_entropy, target_losses
from m27.train.pairs import Outcome, Pairs, PreferenceConfig
from m27.train.rows import Rows
from m27.train.scoring import Plan, Scoring, Teacher


class PreferenceError(ValueError):
    """Documents that the objective cannot learn from; the message names the task or the document."""


class PairScoring(Scoring):
    """`Scoring` of a corpus of pairs. `media_weights` weigh the parts of an answer, `task_weights` pairs."""

    def __init__(
        self,
        vocabulary: Mapping[str, Any],
        tasks: Sequence[str],
        config: PreferenceConfig,
        full_share: float = 1.0,
        full_tasks: Sequence[str] = (),
        media_weights: Mapping[str, float] | None = None,
        task_weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(vocabulary, tasks, full_share, full_tasks)
        self.config = config
        self._medium = torch.tensor([(media_weights or {}).get(m, 1.0) for m in MEDIA])
        self._task = torch.tensor([(task_weights or {}).get(t, 1.0) for t in tasks])

    def plan(self, batch: Batch) -> Plan:
        """How the targets of `batch` (on the host) are scored; the teacher is asked about all of it."""
        if batch.branches_BT is None:
            raise PreferenceError("a batch without pairs")
        branches_N, documents_N = batch.branches_BT.flatten(), batch.documents_BT.flatten()
        branch_M, pair_M = branches_N[batch.places_M], documents_N[batch.places_M]
        pairs = int(documents_N.max()) + 1
        halves_M = torch.where(branch_M > 0, 2 * pair_M + branch_M - 1, 2 * pairs)
        weights_P = torch.zeros(pairs).index_copy_(0, pair_M, self._task[batch.tasks_M])
        found = Pairs(halves_M, self._medium[batch.media_M], weights_P, self.config)
        plan = super().plan(batch)
        return replace(plan, teacher=_everything(batch, branches_N), pairs=found)


def _everything(batch: Batch, branches_N: Tensor) -> Teacher:
    """All documents of a batch, end to end, and all of its targets."""
    documents_N = batch.documents_BT.flatten()
    keep_N = documents_N >= 0
    places_M = (keep_N.cumsum(0) - 1)[batch.places_M]
    return Teacher(
        batch.ids_BT.flatten()[keep_N], batch.positions_BT.flatten()[keep_N], documents_N[keep_N][None],
        torch.arange(len(places_M)), places_M, torch.zeros(len(places_M)), branches_N[keep_N][None],
    )  # fmt: skip


@torch.no_grad()
def pair_head(
    rows: Rows, h_ND: Tensor, batch: Batch, plan: Plan, base_MD: Tensor, total_weight: float
) -> tuple[Tensor, Tensor, Outcome]:
    """Cross-entropies [M] of the targets, the gradient [M, D] of their states, and what the pairs cost.

    Two sweeps over the vocabulary: how much each target's loss weighs is known after the first. Where
    nothing is to be learnt, the second is left out and the gradient means nothing.
    """
    if plan.pairs is None:
        raise PreferenceError("a plan without pairs")
    h_MD = h_ND.index_select(0, batch.places_M)
    own_M, base_M = (torch.empty_like(batch.weights_M) for _ in range(2))
    for group in plan.groups:
        at, spans = group.index_m, group.spans
        own_M[at] = target_losses(h_MD[at], rows.table_VD, batch.targets_M[at], spans)
        base_M[at] = target_losses(base_MD[at], rows.base_VD, batch.targets_M[at], spans)
    outcome = plan.pairs.outcome(own_M, base_M)
    weights_M = outcome.weights_M / total_weight
    g_MD = torch.empty_like(h_MD)
    for group in plan.groups if plan.learn else ():
        at = group.index_m
        _, g_MD[at] = cross_entropy(
            h_MD[at], rows.table_VD, batch.targets_M[at], weights_M[at], rows.first, rows.grad_VD,
            spans=group.spans,
        )  # fmt: skip
    return own_M, g_MD, outcome


def refuse(corpus: Corpus, tasks: Iterable[str], objective: str) -> None:
    """Raise `PreferenceError` where a document of `tasks` is not what `objective` learns from.

    For "likelihood" that is a task of pairs, whose second answers would be learnt as well as the first;
    for "preference" a task of anything else, or a document that is no pair.
    """
    for task in tasks:
        if objective != "preference":
            if holds_pairs(task):
                raise PreferenceError(
                    f"task {task!r} holds pairs of a chosen and a rejected answer: set "
                    "objective=preference, or leave it out of data.tasks"
                )
        elif not holds_pairs(task):
            raise PreferenceError(
                f"objective=preference: task {task!r} holds no pairs (the name of a task of pairs begins "
                "with 'preference'); leave it out of data.tasks"
            )
    if objective != "preference":
        return
    wanted = {corpus.tasks.index(task) for task in tasks}
    for number, task in enumerate(corpus.task_of.tolist()):
        if task in wanted:
            found = corpus.branches(number)
            _, loss = corpus.document(number)
            answers = set() if found is None else set(found[1:][loss[1:]].tolist()) - {0}
            if found is None or int(found.max()) != 2 or answers != {1, 2}:
                raise PreferenceError(
                    f"objective=preference: document {number} of task {corpus.tasks[task]!r} has "
                    f"{0 if found is None else int(found.max())} answers; a pair has a chosen and a "
                    "rejected one, each with something to learn"
                )
