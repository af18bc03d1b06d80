"""The one loop: batches in, a trained part out, with a log, checkpoints, and exact resumption.

A run killed at any step and started again by the same command ends where the uninterrupted one does, bit for
bit on CPU when its length is given in steps. (By the clock, the learning rate follows the clock.) It does
not know what the ids mean or how a checkpoint is shipped.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor

from m27 import runtime
from m27.data.loader import MEDIA, Batch, Loader
from m27.data.mixture import Corpus, Mixture, State
from m27.data.pack import Packer
from m27.model.decoder import Decoder
from m27.train import checkpoint
from m27.train.lora import Adapters
from m27.train.meter import Meter
from m27.train.objective import Tally
from m27.train.optim import Optimiser
from m27.train.passes import choose
from m27.train.rows import Rows
from m27.train.settings import SettingError, TrainConfig

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
        if config.steps is None and config.minutes is None:
            raise SettingError("a run needs `steps` or `minutes`")
        self.config, self.rows, self.corpus, self.run_folder = config, rows, corpus, run
        self.device = rows.table_VD.device
        runtime.seed_everything(config.seed)
        self.adapters = Adapters(decoder, config.lora, config.seed)
        self.parameters = {**self.adapters.parameters(), **rows.parameters()}
        self.optimiser = Optimiser(self.parameters, config.optim)
        self.step = self.tokens = 0
        self.seconds = 0.0
        self._stop = threading.Event()
        loader_state = self._resume()
        data = config.data
        mixture = Mixture(
            corpus, data.tasks, drop=data.drop_prompt, drop_rate=data.drop_rate, seed=config.seed,
            state=None if loader_state is None else loader_state["mixture"],
        )  # fmt: skip
        self.packer = Packer(mixture, data.row, data.pool, loader_state)
        self.loader = Loader(
            self.packer, rows=data.rows, accumulate=data.accumulate,
            weights=data.media_weights, task_weights=data.task_weights,
        )  # fmt: skip
        self.loader_state = self.packer.state() if loader_state is None else loader_state
        self.meter = Meter(run, self.step, quiet)
        self.tally = Tally(MEDIA, corpus.tasks)
        self.way = choose(
            config.path, decoder, self.adapters, rows, rows.table_VD.dtype, config.compile
        )

    def _resume(self) -> State | None:
        found = checkpoint.latest(self.run_folder)
        if found is None:
            return None
        where = f"{self.run_folder}/step-{found.step:06d}"
        if found.state["corpus"] != self.corpus.fingerprint:
            raise checkpoint.ResumeError(f"{where}: it was trained on other shards; name a new run")
        self._take(found.trained, where)
        self.optimiser.load(found.optimiser)
        torch.set_rng_state(found.optimiser["rng"])
        self.step, self.tokens = found.step, int(found.state["tokens"])
        self.seconds = float(found.state["seconds"])
        state: State = found.state["loader"]
        return state

    def begin_from(self, run: Path) -> None:
        """Begin with the trained part of another run's newest snapshot; optimiser and data anew."""
        found = checkpoint.latest(run)
        if found is None:
            raise checkpoint.ResumeError(f"{run}: no snapshot to begin from")
        self._take(found.trained, str(run))

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

    def run(self, until: int | None = None) -> Result:
        """Train to the end, to step `until`, or until SIGTERM or SIGINT; saved in each case."""
        begun, earlier, first = time.monotonic(), self.seconds, self.tokens
        saved_at, saved_step = begun, self.step
        steps = iter(self.loader)
        with _on_signal(self._stop):
            while self.progress < 1 and not self._stop.is_set() and self.step != until:
                batches, state = next(steps)
                record = self._train_step(batches)
                self.loader_state = state
                if self.step % _TRIM_EVERY == 0:
                    runtime.trim_freed_memory()
                self.seconds = earlier + time.monotonic() - begun
                rate = self.meter.rate(self.tokens - first)
                record |= {"tokens_per_second": round(rate, 1), "seconds": round(self.seconds, 2)}
                done = self.progress
                left = None if done == 0 else self.seconds / done * (1 - done)
                self.meter.log(record, done, left)
                if time.monotonic() - saved_at > self.config.save_minutes * 60:
                    self.save()
                    saved_at, saved_step = time.monotonic(), self.step
            if saved_step != self.step:
                self.save()
        finished = self.progress >= 1
        what = "done" if finished else "stopped and saved; the same command goes on"
        self.meter.close(
            f"{what}: step {self.step}, {self.tokens:,} tokens, {self.seconds / 60:.1f} min, "
            f"packing {self.packer.efficiency:.2%}"
        )
        return Result(self.step, self.tokens, self.seconds, finished, self.trained())

    def _train_step(self, batches: list[Batch]) -> dict[str, object]:
        progress = self.progress
        self.rows.refresh()
        self.way.refresh()
        self.tally.clear()
        total = float(sum(batch.weights_M.sum().item() for batch in batches))
        loss = 0.0
        for batch in batches:
            batch = batch.to(self.device)
            losses = self.way.run(batch, total)
            loss += float((losses * batch.weights_M).sum()) / total
            self.tally.add(losses, batch.media_M, batch.tasks_M)
            self.tokens += batch.ids_BT.numel()
        self.rows.backward()
        scale, norm = self.optimiser.step(progress)
        self.step += 1
        media, tasks, targets = self.tally.means()
        return {
            "step": self.step, "tokens": self.tokens, "targets": targets, "loss": round(loss, 5),
            "media": {name: round(value, 4) for name, value in media.items()},
            "tasks": {name: round(value, 4) for name, value in tasks.items()},
            "rate": round(scale, 5), "gradient_norm": round(norm, 4),
        }  # fmt: skip

    def trained(self) -> dict[str, Tensor]:
        """A copy of the trained part, float32, under the names of the shipped checkpoint."""
        return {name: p.detach().cpu().clone() for name, p in self.parameters.items()}

    def save(self) -> Path:
        """Write a snapshot of the present step."""
        state = {
            "tokens": self.tokens, "seconds": self.seconds, "loader": self.loader_state,
            "corpus": self.corpus.fingerprint, "packing": self.packer.efficiency,
            "config": json.loads(json.dumps(asdict(self.config))),
        }  # fmt: skip
        return checkpoint.save(
            self.run_folder, self.step, self.trained(), self.optimiser.state(), state,
            self.config.keep,
        )  # fmt: skip


@contextmanager
def _on_signal(stop: threading.Event) -> Iterator[None]:
    """SIGTERM and SIGINT ask for the end of the step; a second one has its usual effect."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def ask(number: int, _: FrameType | None) -> None:
        stop.set()
        signal.signal(number, usual[signal.Signals(number)])

    for number in usual:
        signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


def prepare_machine(config: TrainConfig) -> tuple[torch.device, torch.dtype]:
    """Set threads and allocator for a run; its device and dtype come back."""
    # Idle threads must sleep: where cores are shared, spinning ones take time from the working ones.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    runtime.keep_freed_memory()
    runtime.set_threads(config.threads)
    device = runtime.device(config.device)
    return device, runtime.dtype(config.dtype, device)
