"""A run's batches, planned: made as they are asked for, or ahead by a process of its own beside a GPU.

Packing rows in Python takes a third of the time of a step on a fast GPU, and the thread that starts the
kernels must not wait for it. The process makes the very stream that the run would make itself, so that a run
resumes exactly. An item goes over as a line of JSON, which says how it is put together, and its tensors.
"""

from __future__ import annotations

import json
import multiprocessing
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load, save
from torch import Tensor

from m27.data.loader import Batch, Loader
from m27.data.mixture import Corpus, Mixture, State
from m27.data.pack import Packer
from m27.train import preference, ragged
from m27.train.pairs import Pairs, PreferenceConfig
from m27.train.scoring import Group, Plan, Scoring, Teacher
from m27.train.settings import SettingError, TrainConfig

Planned = tuple[Batch, Plan, Any]  # and what the pass has prepared, see `m27.train.passes`
_T = TypeVar("_T")


@dataclass(frozen=True)
class Source:
    """Where a run's batches come from: shards, configuration, the stream's place, and whose share it is."""

    folders: tuple[Path, ...]
    config: TrainConfig
    state: State | None
    rank: int = 0
    world: int = 1


def share_of(step: Sequence[_T], rank: int, world: int) -> Sequence[_T]:
    """What rank `rank` of `world` takes of the rows of a step: as many as each other, in their order.

    The step is the same whatever the world, so a run that goes on with more or fewer ranks sees the same
    rows in the same steps. Raises SettingError for rows that cannot be shared out evenly.
    """
    if len(step) % world:
        raise SettingError(
            f"a step of {len(step)} rows cannot be shared out among {world} ranks; "
            "set data.step_rows to a multiple of them"
        )
    each = len(step) // world
    return step[rank * each : (rank + 1) * each]


def packer(corpus: Corpus, config: TrainConfig, state: State | None) -> Packer:
    """Rows of the run's mixture, from `state` on."""
    data = config.data
    mixture = Mixture(
        corpus, data.tasks, drop=data.drop_prompt, drop_rate=data.drop_rate, seed=config.seed,
        state=None if state is None else state["mixture"],
    )  # fmt: skip
    return Packer(mixture, data.row, data.pool, state)


def loader(rows: Packer, config: TrainConfig, rank: int = 0, world: int = 1) -> Loader:
    """Batches of those rows, or of a rank's share of them."""
    data = config.data
    return Loader(
        rows, rows=data.rows, accumulate=data.accumulate, weights=data.media_weights,
        task_weights=data.task_weights, step_rows=data.step_rows,
        share=lambda step: share_of(step, rank, world),
    )  # fmt: skip


def scoring(corpus: Corpus, config: TrainConfig) -> Scoring:
    """How the run's targets are scored. Raises SettingError."""
    data = config.data
    weights = data.tasks or dict.fromkeys(corpus.tasks, 1.0)
    try:
        tasks = [name for name in corpus.tasks if weights.get(name, 0) > 0]
        preference.refuse(corpus, tasks, config.objective)
    except preference.PreferenceError as error:
        raise SettingError(str(error)) from None
    try:
        if config.objective == "preference":
            return preference.PairScoring(
                corpus.meta["vocabulary"], corpus.tasks, config.preference, data.full_share,
                data.full_tasks, data.media_weights, data.task_weights,
            )  # fmt: skip
        return Scoring(
            corpus.meta["vocabulary"], corpus.tasks, data.full_share, data.full_tasks, data.kl_tasks,
            config.z_loss,
        )  # fmt: skip
    except ValueError as error:
        raise SettingError(f"data.{error}") from None


def planned(batches: Loader, scores: Scoring, way: Any) -> Iterator[tuple[list[Planned], State]]:
    """Each step's batches with their plans and what `way.prepare` says, and the state after them."""
    for step, state in batches:
        yield [(batch, scores.plan(batch), way.prepare(batch)) for batch in step], state


class _Ragged:
    @staticmethod
    def prepare(batch: Batch) -> ragged.Ragged:
        return ragged.plan(batch.documents_BT, batch.branches_BT)


class _Nothing:
    @staticmethod
    def prepare(_: Batch) -> None:
        return None


def _taken_apart(item: tuple[list[Planned], State]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A step as JSON values and named tensors."""
    tensors: dict[str, Tensor] = {}

    def named(prefix: str, value: Any) -> dict[str, Any]:
        """The fields of a dataclass that are no tensors; those that are go to `tensors`."""
        held = {} if value is None else vars(value)
        tensors.update({f"{prefix}.{k}": v for k, v in held.items() if isinstance(v, Tensor)})
        return {k: v for k, v in held.items() if not isinstance(v, Tensor)}

    steps, state = item
    told: list[dict[str, Any]] = []
    for number, (batch, plan, prepared) in enumerate(steps):
        named(f"{number}.batch", batch)
        named(f"{number}.teacher", plan.teacher)
        pairs = named(f"{number}.pairs", plan.pairs)
        groups = [
            named(f"{number}.group{i}", group)["spans"] for i, group in enumerate(plan.groups)
        ]
        compared = asdict(pairs["config"]) if pairs else None
        told.append(
            {
                "groups": groups, "z_loss": plan.z_loss, "preference": compared,
                "runs": named(f"{number}.runs", prepared),
            }
        )  # fmt: skip
    return {"steps": told, "state": state}, tensors


def _put_together(about: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[list[Planned], State]:
    """What `_taken_apart` took apart."""

    def of(prefix: str) -> dict[str, Tensor]:
        start = f"{prefix}."
        return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}

    steps: list[Planned] = []
    for number, told in enumerate(about["steps"]):
        groups = tuple(
            Group(tensors[f"{number}.group{i}.index_m"], spans and tuple(map(tuple, spans)))
            for i, spans in enumerate(told["groups"])
        )
        teacher, runs = of(f"{number}.teacher"), of(f"{number}.runs")
        prepared = ragged.Ragged(**told["runs"] | runs) if runs else None
        plan = Plan(groups, Teacher(**teacher) if teacher else None, z_loss=told["z_loss"])
        if told["preference"]:
            config = PreferenceConfig(**told["preference"])
            plan = replace(plan, pairs=Pairs(**of(f"{number}.pairs"), config=config))
        steps.append((Batch(**of(f"{number}.batch")), plan, prepared))
    return steps, about["state"]


def _make(source: Source, runs: bool, pipe: Connection) -> None:
    """The child: sends item after item until the pipe closes."""
    try:
        torch.set_num_threads(1)
        corpus = Corpus(source.folders)
        rows = packer(corpus, source.config, source.state)
        batches = loader(rows, source.config, source.rank, source.world)
        way = _Ragged if runs else _Nothing
        for item in planned(batches, scoring(corpus, source.config), way):
            about, tensors = _taken_apart(item)
            pipe.send_bytes(json.dumps(about).encode())
            # Copies: safetensors refuses tensors that share memory, as the edges of plain runs do.
            pipe.send_bytes(save({name: t.clone() for name, t in tensors.items()}))
    except (BrokenPipeError, EOFError, KeyboardInterrupt):
        return
    except BaseException as error:  # to the parent, which would else wait for ever
        pipe.send_bytes(json.dumps({"error": f"making batches: {error!r}"}).encode())


def _received(source: Source, runs: bool) -> Iterator[tuple[list[Planned], State]]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_make, args=(source, runs, there), daemon=True)
    process.start()
    there.close()
    try:
        while True:
            try:
                about = json.loads(here.recv_bytes())
                if "error" in about:
                    raise RuntimeError(about["error"])
                yield _put_together(about, load(here.recv_bytes()))
            except EOFError:
                raise RuntimeError("the process that makes batches has ended") from None
    finally:
        here.close()
        process.terminate()


def ahead(source: Source, runs: bool) -> Iterator[tuple[list[Planned], State]]:
    """The run's steps, made ahead by a process of their own; `runs`: with plans of ragged attention."""
    return by_thread(_received(source, runs), 3)


def by_thread(items: Iterator[_T], count: int = 2) -> Iterator[_T]:
    """`items` in their order, `count` of them fetched beforehand by a thread; its error is raised here."""
    made: queue.Queue[_T | BaseException] = queue.Queue(count)

    def make() -> None:
        try:
            for item in items:
                made.put(item)
        except BaseException as error:  # to the consumer, which would else wait for ever
            made.put(error)

    threading.Thread(target=make, daemon=True).start()
    while True:
        item = made.get()
        if isinstance(item, BaseException):
            raise item
        yield item
