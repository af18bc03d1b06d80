"""The processes that `torchrun` started, as one group: the first tells the others what to do.

What is told is a kind and int32 numbers (JSON as its bytes), never a pickle. Nobody is left behind: a
process that fails says so in one line, and its connections close, by which the others know and end.
Knows no model and no request.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta
from types import FrameType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from m27 import runtime
from m27.infer.request import RequestError
from m27.infer.runner import Ints

END, LOAD, STEP = range(3)
_FIRST = 1024  # numbers of the first message; what is longer comes in a second one
_IDLE = timedelta(days=3650)  # the others wait this long for something to do
_STUCK = timedelta(minutes=10)  # and so long for each other within a step
_LINE = 400  # bytes of an error that the others are told


class ParallelError(RuntimeError):
    """A process of the group has failed or gone, and the group with it. `told`: a line that says
    why has been written."""

    told = False


class Processes:
    """The group, seen from one process; `join` makes it. Not for several threads at once."""

    def __init__(self) -> None:
        self.rank, self.world = runtime.ranks()
        self._store, _, _ = next(rendezvous("env://", timeout=_STUCK))
        # Numbers on the host go through gloo everywhere, tensors on a GPU through NCCL.
        self._nccl = torch.cuda.is_available() and dist.is_nccl_available()
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if self._nccl else "gloo", timeout=_STUCK,
            store=self._store, rank=self.rank, world_size=self.world,
        )  # fmt: skip
        # To wait for something to do is no fault, so those who wait have a group of their own.
        self._orders = dist.new_group(backend="gloo", timeout=_IDLE)
        self._lock = threading.Lock()  # the end may be told from another thread than the steps
        self._over = False

    def device(self, kind: str) -> torch.device:
        """This process's own device of a kind, "cpu" or "cuda". Raises RequestError where there are
        fewer GPUs than processes."""
        if kind != "cuda":
            return torch.device("cpu")
        number, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if number >= count:
            raise RequestError(
                f"{number + 1} processes on this machine need as many GPUs, not {count}"
            )
        torch.cuda.set_device(number)
        return torch.device("cuda", number)

    def send(self, kind: int, numbers: Ints) -> None:
        """Tell the others; for the first process. Raises ParallelError where one is gone."""
        whole = np.zeros(max(_FIRST, 2 + len(numbers)), dtype=np.int32)
        whole[:2] = kind, len(numbers)
        whole[2 : 2 + len(numbers)] = numbers
        with self._lock:
            self._spread(torch.from_numpy(whole[:_FIRST]))
            if len(whole) > _FIRST:
                self._spread(torch.from_numpy(whole[_FIRST:]))

    def receive(self) -> tuple[int, Ints]:
        """Wait for what the first process tells. Raises ParallelError where it is gone."""
        first = torch.zeros(_FIRST, dtype=torch.int32)
        self._spread(first)
        kind, count = first[:2].tolist()
        rest = torch.zeros(max(0, 2 + count - _FIRST), dtype=torch.int32)
        if len(rest):
            self._spread(rest)
        return kind, torch.cat((first, rest)).numpy()[2 : 2 + count]

    def sum(self, x: Tensor) -> Tensor:
        """Add `x` up over the processes, in place. Raises ParallelError where one is gone."""
        try:
            dist.all_reduce(x)
        except (RuntimeError, ValueError) as error:
            raise self._lost() from error
        return x

    def agree(self, fault: str | None) -> None:
        """Wait for all to be ready; `fault`: why this one is not. Raises RequestError in each process
        where another is not, ParallelError where one is gone."""
        mine = torch.zeros(_LINE, dtype=torch.uint8)
        said = (fault or "").encode()[:_LINE]
        mine[: len(said)] = torch.tensor(list(said), dtype=torch.uint8)
        each = [torch.empty_like(mine) for _ in range(self.world)]
        try:
            dist.all_gather(each, mine, group=self._orders)
        except (RuntimeError, ValueError) as error:
            raise self._lost() from error
        for rank, other in enumerate(each):
            line = bytes(other.tolist()).rstrip(b"\0").decode(errors="ignore")
            if line and rank != self.rank:
                raise RequestError(f"process {rank} of {self.world}: {line}")

    def fail(self, error: BaseException) -> None:
        """Say why this process cannot go on, unless that was said or is an interrupt, and break with
        the others, who then know."""
        if self._claim() and isinstance(error, Exception):
            line = " ".join(f"{type(error).__name__}: {error}".split())
            print(f"m27: process {self.rank} of {self.world}: {line}", file=sys.stderr, flush=True)
        self._break()

    def exit(self, status: int) -> int:
        """The exit status of a process whose group is broken. Where NCCL may yet wait for one that is
        gone, the process ends here instead."""
        if self._nccl:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        return status

    def end(self) -> None:
        """Let the others go, and leave the group; in the others, only leave. May be repeated."""
        if self._over:
            return
        if self.rank == 0:
            with suppress(ParallelError):  # one that is gone need not be told
                self.send(END, np.zeros(0, dtype=np.int32))
        if not self._over:
            self._over = True
            with suppress(RuntimeError, ValueError):
                dist.destroy_process_group()

    def _spread(self, numbers: Tensor) -> None:
        try:
            dist.broadcast(numbers, src=0, group=self._orders)
        except (RuntimeError, ValueError) as error:
            raise self._lost() from error

    def _lost(self) -> ParallelError:
        """The error for a connection that is broken; whoever else failed has said why by then."""
        error = ParallelError("another process has ended or does not answer")
        error.told = not self._claim()
        self._break()  # who waits for this process is to know, too
        return error

    def _claim(self) -> bool:
        """Whether it is this process that has to say why all of them end."""
        try:
            return self._store.add("m27-told", 1) == 1
        except RuntimeError:  # the store has gone with its process, which has been seen to end
            return False

    def _break(self) -> None:
        self._over = True
        # To end NCCL's part, all of them would have to be there.
        with suppress(RuntimeError, ValueError):
            dist.destroy_process_group(self._orders if self._nccl else None)


_joined: Processes | None = None


def join() -> Processes:
    """The group of the processes that `torchrun` started, joined at the first call, which waits for
    all of them. It is left, and the others are let go, when the interpreter ends at the latest."""
    global _joined
    if _joined is None:
        _joined = Processes()
        atexit.register(_joined.end)
    return _joined


class Patience:
    """How a process that follows takes SIGTERM and Ctrl-C, which come to all at once: the first one
    decides when to end. `asked`: one came."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def wait(self, seconds: float = 0.3) -> bool:
        """Whether one came, or comes within a moment."""
        ends = time.monotonic() + seconds
        while not self.asked and time.monotonic() < ends:
            time.sleep(0.02)
        return self.asked

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


def to_numbers(value: Any) -> Ints:
    """A JSON value as int32 numbers."""
    text = json.dumps(value).encode()
    return np.frombuffer(text.ljust(-(-len(text) // 4) * 4), dtype=np.int32)


def from_numbers(numbers: Ints) -> Any:
    """The JSON value of `to_numbers`."""
    return json.loads(numbers.tobytes())
