"""The one loop: batches in, a trained part out, with a log, checkpoints, and exact resumption.

A run killed at any step and started again by the same command ends where the uninterrupted one does, bit for
bit on CPU when its length is given in steps. (By the clock, the learning rate follows the clock.) It may stop
after some minutes and go on in another call. It does not know what the ids mean or how a checkpoint is shipped.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from m27 import runtime
from m27.data.loader import MEDIA
from m27.data.mixture import Corpus, State
from m27.model.decoder import Decoder
from m27.train import checkpoint, demands, feed
from m27.train.feed import Planned
from m27.train.flops import Flops, peak
from m27.train.interrupt import on_signal
from m27.train.lora import Adapters, LoraError, merged, refit
from m27.train.merged import MergedPass
from m27.train.meter import Meter
from m27.train.objective import Tally
from m27.train.optim import Optimiser
from m27.train.parallel import Parallel, own_device, own_threads
from m27.train.passes import Pass, choose, half_of
from m27.train.routing import Balancer, strength
from m27.train.rows import Rows
from m27.train.settings import TrainConfig
from m27.train.watch import Sample, Watch
from m27.train.whole import WholePass

_TRIM_EVERY = 20  # steps


@dataclass(frozen=True)
class Result:
    """How a run ended: `finished`, or stopped by a signal with everything saved."""

    step: int
    tokens: int
    seconds: float
    finished: bool
    trained: dict[str, Tensor]


class Trainer:
    """A run of `config` over `corpus` in the folder `run`, on a frozen `decoder` and its `rows`.

    Takes up the newest snapshot in `run`, if there is one. Raises SettingError for a run of no length and
    ResumeError for a snapshot of other data or other shapes.
    """

    def __init__(
        self,
        config: TrainConfig,
        decoder: Decoder,
        rows: Rows,
        corpus: Corpus,
        run: Path,
        quiet: bool = False,
    ) -> None:
        demands.see(config, rows)
        self.config, self.rows, self.corpus, self.run_folder = config, rows, corpus, run
        self.device = rows.table_VD.device
        runtime.seed_everything(config.seed)
        full = config.body == "full"
        # Before any weight is taken up: what text is held to is the base as it was published.
        self._base = copy.deepcopy(decoder) if full and config.data.kl_tasks else None
        decoder.recompute = config.recompute
        demands.hold_base(config, decoder)
        lora = replace(config.lora, targets=()) if full else config.lora
        self.decoder, self.adapters = decoder, Adapters(decoder, lora, config.seed)
        self.parallel = Parallel(config.parallel, self.device, config.rows == "free")
        self._way: Pass | None = self.parallel.whole_pass(decoder, rows, config.compile)
        body = dict(self.adapters.parameters())
        if full:
            free = config.rows == "free"  # else text rows stay: the table of all rows is built from them
            body = {n: p for n, p in decoder.named_parameters() if free or "embed_tokens" not in n}
        for parameter in body.values():
            parameter.requires_grad_(config.body != "frozen")
        self.parameters = self.parallel.local({**body, **rows.parameters()})
        self._reference: str | None = None  # the digest of what the run began with, where that is on disk
        if config.objective == "preference":
            self._refer()
        learned = {name: p for name, p in self.parameters.items() if p.requires_grad}
        self.optimiser = Optimiser(learned, config.optim, self.parallel)
        self.balancer = Balancer(decoder, config.router, corpus.meta["vocabulary"], self.parallel.sums)
        self.step = self.tokens = 0
        self.seconds = 0.0
        self._stop = threading.Event()
        loader_state = self._resume()
        self.packer = feed.packer(corpus, config, loader_state)
        self.loader = feed.loader(self.packer, config, self.parallel.rank, self.parallel.world)
        self.loader_state = self.packer.state() if loader_state is None else loader_state
        self.scoring = feed.scoring(corpus, config)
        self.meter = Meter(run, self.step, quiet, config.log, config.name, self.parallel.leads)
        self.cost = Flops(decoder.config, full, config.rows != "frozen")
        self.flops = 0.0  # of this call, on this rank
        self.watch = Watch(run, config.name, self.step) if self.parallel.leads else None
        self.writer = self.parallel.writer(run, config.keep)
        self.tally = Tally(MEDIA, corpus.tasks)

    @property
    def way(self) -> Pass:
        """The pass over a micro-batch, made at its first use: what it begins from may be set before."""
        if self._way is None:
            config = self.config
            self._way = choose(
                config.path, self.decoder, self.adapters, self.rows, self.rows.dtype,
                config.compile, full=config.body == "full", base=self._base,
            )  # fmt: skip
        if isinstance(self._way, WholePass):
            self._way.balancer = self.balancer
        return self._way

    def _resume(self) -> State | None:
        found = checkpoint.latest(self.run_folder, self.parallel)
        if found is None:
            return None
        where = f"{self.run_folder}/step-{found.step:06d}"
        if (digest := found.state.get("reference")) is not None:
            self._take(checkpoint.reference(self.run_folder, digest), where)
            self._refer()
            self._reference = digest
        if found.state["corpus"] != self.corpus.fingerprint:
            raise checkpoint.ResumeError(f"{where}: it was trained on other shards; name a new run")
        self._take(found.trained, where)
        self.optimiser.load(found.optimiser)
        self.balancer.load_state(found.optimiser)
        torch.set_rng_state(found.optimiser["rng"])
        self.step, self.tokens = found.step, int(found.state["tokens"])
        self.seconds = float(found.state["seconds"])
        state: State = found.state["loader"]
        return state

    def begin_from(self, folder: Path) -> None:
        """Begin with the trained part of another run or of a shipped model; optimiser and data anew.

        Adapters of a smaller rank are widened, and merged into the weights where every weight is trained.
        Raises ResumeError for a folder that holds neither, or a part that does not fit.
        """
        found = checkpoint.beginning(folder)
        try:
            if self.config.body == "full":
                trained: dict[str, Tensor] = {**self.parameters}
                trained |= {n: t for n, t in found.trained.items() if ".lora_" not in n}
                trained |= merged(self.parameters, found.trained, found.scale)
            else:
                own = self.adapters.parameters()
                trained = refit(own, found.trained, self.adapters.scale, found.scale)
        except LoraError as error:
            raise checkpoint.ResumeError(f"{folder}: {error}") from None
        self._take(trained, str(folder))
        if self.config.objective == "preference":
            self._reference = checkpoint.keep_reference(self.run_folder, self.trained())
            self._refer()

    def _refer(self) -> None:
        """Keep the model as it is now: answers are measured against it."""
        if self.config.body == "full":
            self._base = copy.deepcopy(self.decoder)
        self.adapters.hold()
        self.rows.refresh()
        self.rows.hold()

    def _take(self, trained: Mapping[str, Tensor], where: str) -> None:
        for name, parameter in self.parameters.items():
            tensor = trained.get(name)
            if tensor is None or tensor.shape != parameter.shape:
                raise checkpoint.ResumeError(f"{where}: {name} is missing or of another shape")
            with torch.no_grad():
                parameter.copy_(tensor)

    @property
    def progress(self) -> float:
        """How much of the run is done, 0..1: by steps or by the clock, whichever is further."""
        done = [0.0]
        if self.config.steps is not None:
            done.append(self.step / max(self.config.steps, 1))
        if self.config.minutes is not None:
            done.append(self.seconds / max(self.config.minutes * 60, 1e-9))
        return min(max(done), 1.0)

    def run(
        self,
        until: int | None = None,
        call_minutes: float | None = None,
        sample: Callable[[Mapping[str, Tensor], int], list[Sample]] | None = None,
    ) -> Result:
        """Train to the end, to step `until`, for `call_minutes`, or until SIGTERM or SIGINT; saved in each case.

        `sample` is called with the trained part and the step every `sample_minutes` of the run, and at its
        end; what it gives is shown on the run's page. Its time counts as the run's.
        """
        steps = self._steps()
        if self.device.type == "cuda":
            steps = self._rehearsed(steps)
        at_most = None if self.meter.quiet else peak(self.device, self.rows.dtype, half_of(self.way))
        begun, earlier, first = time.monotonic(), self.seconds, self.tokens
        saved_at, saved_step = self.seconds, self.step
        budget = math.inf if call_minutes is None else call_minutes * 60
        sample_at = self.seconds + self.config.sample_minutes * 60
        with on_signal(self._stop):
            while self.progress < 1 and self.step != until and self.seconds - earlier < budget:
                if self.parallel.any(self._stop.is_set()):
                    break
                batches, state = next(steps)
                record = self._train_step(batches)
                self.loader_state = state
                if self.step % _TRIM_EVERY == 0 and self.device.type == "cpu":
                    runtime.trim_freed_memory()
                self.seconds = self.parallel.told(earlier + time.monotonic() - begun)
                rate, flops = self.meter.rate(self.tokens - first, self.flops)
                record |= {"tokens_per_second": round(rate, 1), "seconds": round(self.seconds, 2)}
                if at_most is not None:
                    record["mfu"] = round(flops / at_most, 4)
                done = self.progress
                left = None if done == 0 else self.seconds / done * (1 - done)
                self.meter.log(record, done, left)
                if self.watch:
                    self.watch.add(record, done, left)
                due = self.config.sample_minutes > 0 and (self.seconds >= sample_at or done >= 1)
                if sample is not None and due:
                    trained = self.trained()
                    if self.watch:
                        self.watch.add_samples(self.step, sample(trained, self.step))
                    self.seconds = self.parallel.told(earlier + time.monotonic() - begun)
                    sample_at = self.seconds + self.config.sample_minutes * 60
                if self.seconds - saved_at > self.config.save_minutes * 60:
                    self.save()
                    saved_at, saved_step = self.seconds, self.step
            if saved_step != self.step:
                self.save()
            self.parallel.settle(self.writer)
        if self.watch:
            self.watch.write()
        finished = self.progress >= 1
        what = "done" if finished else "stopped and saved; the same command goes on"
        self.meter.close(
            f"{what}: step {self.step}, {self.tokens:,} tokens, {self.seconds / 60:.1f} min, "
            f"packing {self.packing:.2%}"
        )
        return Result(self.step, self.tokens, self.seconds, finished, self.trained())

    def _steps(self) -> Iterator[tuple[list[Planned], State]]:
        """Batches with their plans; beside a GPU they are made ahead, while it computes."""
        if self.device.type == "cuda":
            source = feed.Source(
                self.corpus.folders, self.config, self.loader_state, self.parallel.rank,
                self.parallel.world,
            )  # fmt: skip
            return feed.ahead(source, isinstance(self.way, MergedPass))
        return feed.planned(self.loader, self.scoring, self.way)

    def _rehearsed(
        self, steps: Iterator[tuple[list[Planned], State]]
    ) -> Iterator[tuple[list[Planned], State]]:
        """`steps`, the first of them gone through once for nothing.

        Kernels are compiled then, which would else count as minutes of the run, and its warm-up be over.
        """
        first = next(steps)
        self.rows.refresh()
        self.way.refresh()
        for host, plan, prepared in first[0]:
            batch = replace(host.to(self.device), documents_BT=host.documents_BT)
            self.way.run(batch, plan.to(self.device), 1.0, prepared)
        self.optimiser.clear()
        self.parallel.clear()
        self.balancer.forget()
        return itertools.chain([first], steps)

    def _train_step(self, batches: list[Planned]) -> dict[str, object]:
        self.rows.refresh()
        self.way.refresh()
        self.tally.clear()
        own = float(sum(plan.weight(batch) for batch, plan, _ in batches))
        total = float(self.parallel.sums(torch.tensor(own, dtype=torch.float64)))
        sums = torch.zeros(len(batches), dtype=torch.float64, device=self.device)
        for i, (host, plan, prepared) in enumerate(batches):
            # Documents stay on the host, where attention is planned; nothing below waits for the device.
            batch = replace(host.to(self.device), documents_BT=host.documents_BT)
            self.parallel.last(i + 1 == len(batches))
            losses = self.way.run(batch, plan.to(self.device), total, prepared)
            sums[i] = losses.whole(batch.weights_M) / total
            self.tally.add(losses.targets_M, batch.media_M, batch.tasks_M)
            if losses.apart_m is not None:
                self.tally.add_divergence(losses.apart_m)
            if losses.figures_P4 is not None:
                self.tally.add_pairs(losses.figures_P4)
            self.tokens += host.ids_BT.numel() * self.parallel.world
            self.flops += self.cost.of(host, plan)
        self.rows.backward()
        self.way.collect()
        self.parallel.collect(self.parameters)
        scale, norm = self.optimiser.step(self.progress)
        self.step += 1
        self.balancer.update(strength(self.config.router, self.config.optim, self.progress))
        loss = float(self.parallel.sums(sums.sum()))
        self.tally.over(self.parallel.sums)
        media, tasks, targets = self.tally.means()
        apart, pairs = self.tally.mean_divergence(), self.tally.mean_pairs() or {}
        return {
            "step": self.step, "tokens": self.tokens, "targets": targets, "loss": round(loss, 5),
            "media": {name: round(value, 4) for name, value in media.items()},
            "tasks": {name: round(value, 4) for name, value in tasks.items()},
            "rate": round(scale, 5), "gradient_norm": round(norm, 4),
            **({} if apart is None else {"divergence": round(apart, 4)}),
            **({"preference": {name: round(value, 4) for name, value in pairs.items()}} if pairs else {}),
            **({"load": self.balancer.load(clear=True).record()} if self.balancer.layers else {}),
        }  # fmt: skip

    def trained(self, average: bool = False) -> dict[str, Tensor]:
        """A copy of the trained part (or of its average, where one is kept), float32, under the names of the
        shipped checkpoint. All of several ranks must ask; where weights are cut, the leading one is answered.
        """
        held: Mapping[str, Tensor] = self.parameters
        if average and self.optimiser.average is not None:
            held = {**held, **self.optimiser.average.tensors}
        out = {}
        for name, part in held.items():
            whole = self.parallel.gather(name, part.detach())
            if self.parallel.leads or not self.parallel.cuts:
                out[name] = whole.cpu().clone()
        return out

    @property
    def packing(self) -> float:
        """Tokens of documents over tokens of rows, so far."""
        rows = int(self.loader_state["rows"])
        return int(self.loader_state["filled"]) / (rows * self.config.data.row) if rows else 1.0

    def save(self) -> Path:
        """Write a snapshot of the present step; several ranks begin to, and go on."""
        state = {
            "tokens": self.tokens, "seconds": self.seconds, "loader": self.loader_state,
            "corpus": self.corpus.fingerprint, "packing": self.packing, "reference": self._reference,
            "model": asdict(self.decoder.config),
            "config": json.loads(json.dumps(asdict(self.config))),
        }  # fmt: skip
        optimiser = {**self.optimiser.state(), **self.balancer.state(), "rng": torch.get_rng_state()}
        if self.writer is None:
            return checkpoint.save(
                self.run_folder, self.step, self.trained(), optimiser, state, self.config.keep
            )
        groups: dict[str, Mapping[str, Tensor]] = {"trained": self.parameters, "optimiser": optimiser}
        token = int(self.parallel.told(time.time() * 1000))
        self.writer.save(self.step, token, groups, self.parallel.place, state)
        return self.run_folder / f"step-{self.step:06d}"


def prepare_machine(config: TrainConfig) -> tuple[torch.device, torch.dtype]:
    """Set threads and allocator for a run; its device and dtype come back."""
    # Idle threads must sleep: where cores are shared, spinning ones take time from the working ones.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    runtime.keep_freed_memory()
    runtime.set_threads(own_threads(config.threads))
    device = own_device(runtime.device(config.device))
    return device, runtime.dtype(config.dtype, device)
