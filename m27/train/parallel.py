"""A run over several ranks: each goes through its own rows with its own part of the weights.

`Parallel` is what the loop asks: parameters and their parts, gradients and norms over all ranks, sums,
decisions that all ranks take alike, and who writes. The optimiser is given a rank's own parts as plain tensors,
so it knows no ranks. Passes that do not train every weight keep them whole on every rank and sum gradients.
With one process every method does nothing and nothing is loaded. How weights are cut is `m27.train.sharding`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from m27 import runtime
from m27.model.decoder import Decoder
from m27.train.rows import FreeRows, Rows
from m27.train.settings import ParallelConfig, SettingError
from m27.train.sharded_checkpoint import Place, Writer
from m27.train.whole import WholePass

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

    from m27.train.sharding import Sharding


def own_device(device: torch.device) -> torch.device:
    """The device of this rank, where `device` is that of all: on CUDA the one of its number on its machine."""
    if runtime.ranks()[1] > 1 and device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    return device


def own_threads(threads: int) -> int:
    """How many threads this rank computes with, where `threads` are asked for; 0: its part of the cores."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return threads or (max(1, len(os.sched_getaffinity(0)) // local) if local > 1 else 0)


def join(device: torch.device, timeout: float = 30.0) -> None:
    """Meet the other ranks that `torchrun` started. One that is silent for `timeout` minutes ends the others."""
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        patience = timedelta(minutes=timeout)
        store, rank, world = next(rendezvous("env://", timeout=patience))
        # After a restart the agent's store is the same one: ranks would look for those that have died.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = PrefixStore(f"attempt-{attempt}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=patience)


def met() -> bool:
    """Whether this process has joined others."""
    return dist.is_initialized()


def leave() -> None:
    """Part from the other ranks, at the end of the process."""
    if dist.is_initialized():
        dist.destroy_process_group()


class Parallel:
    """The ranks of one run, of which every weight is trained (`whole`) or not.

    Raises SettingError for a layout that does not go up with their number.
    """

    def __init__(self, config: ParallelConfig, device: torch.device, whole: bool) -> None:
        self.rank, self.world = runtime.ranks()
        self._sharding: Sharding | None = None
        self._cut: Mapping[str, DTensor] = {}
        self._places: dict[str, Place] = {}
        if self.world == 1:
            return
        shard = config.shard
        if whole:
            shard = shard or self.world // max(config.replicate, 1)
            _check(shard, config.replicate, config.expert, self.world)
        elif config.shard > 1 or config.expert > 1:
            raise SettingError("parallel: shard and expert want body=full and rows=free")
        join(device, config.timeout)
        if whole:
            from m27.train.sharding import Sharding

            self._sharding = Sharding(device, shard, config.replicate, config.expert)

    @property
    def leads(self) -> bool:
        """Whether this is the rank that writes the log and speaks."""
        return self.rank == 0

    @property
    def cuts(self) -> bool:
        """Whether weights lie in parts on the ranks."""
        return self._sharding is not None

    # Weights

    def whole_pass(self, decoder: Decoder, rows: Rows, compile: bool = False) -> WholePass | None:
        """The pass over `decoder` with its weights cut over the ranks, in place; None where they stay whole."""
        if self._sharding is None or not isinstance(rows, FreeRows):
            return None
        decoder.requires_grad_(True)
        way = WholePass(decoder, rows, compile, cut=True)
        self._sharding.spread(way.whole)
        return way

    def local(self, parameters: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """This rank's parts of `parameters` as plain ones, which share their memory."""
        copies = self.world
        self._places = {n: Place.all_of(p.shape, copies, self.leads) for n, p in parameters.items()}
        if self._sharding is None:
            return parameters
        from m27.train.sharding import cut_parts, own_part

        self._cut = cut_parts(parameters)
        self._places |= {name: self._sharding.place(p) for name, p in self._cut.items()}
        return {
            name: nn.Parameter(own_part(p), p.requires_grad) if name in self._cut else p
            for name, p in parameters.items()
        }

    def place(self, name: str, shape: Sequence[int]) -> Place:
        """Where the part of `name` lies: a parameter, or what is held beside one, as NAME.exp_avg is.

        `shape` is that of the whole or of the part; what has another shape than its parameter is held
        whole by every rank.
        """
        if name in self._places:
            return self._places[name]
        beside = self._places.get(name.rpartition(".")[0])
        if beside is not None and tuple(shape) in (beside.size, beside.shape):
            return beside
        return Place.all_of(shape, self.world, self.leads)

    def gather(self, name: str, part: Tensor) -> Tensor:
        """The whole tensor of which each rank holds its `part`, placed as the parameter `name` is."""
        if self._sharding is None or name not in self._cut:
            return part
        return self._sharding.gather(part, self._cut[name])

    def matrices(self, name: str, part: Tensor) -> Tensor:
        """The matrices of `name` whole, of which each rank holds a `part`; that itself where it has them whole."""
        if self._sharding is None or name not in self._cut:
            return part
        like = self._cut[name]
        return self._sharding.gather(part, like) if self._sharding.cuts_matrices(like) else part

    def part(self, name: str, whole: Tensor) -> Tensor:
        """This rank's part of a `whole` tensor that is placed as the parameter `name` is."""
        place = self.place(name, whole.shape)
        for dim, (begin, size) in enumerate(zip(place.offset, place.size, strict=True)):
            whole = whole.narrow(dim, begin, size)
        return whole

    # Gradients

    def last(self, last: bool) -> None:
        """Say whether the backward pass that follows is the step's last: only then replicas are summed."""
        if self._sharding is not None:
            self._sharding.last(last)

    def clear(self) -> None:
        """Forget the gradients that were not collected."""
        for parameter in self._cut.values():
            parameter.grad = None

    def collect(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Bring the gradients, summed over the ranks, to the local `parameters`; after a step's batches."""
        if self.world == 1:
            return
        for name, parameter in parameters.items():
            if name in self._cut:
                from m27.train.sharding import own_part

                grad = self._cut[name].grad
                parameter.grad = None if grad is None else own_part(grad)
            elif parameter.requires_grad:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)

    @torch.no_grad()
    def clip(self, parameters: Mapping[str, nn.Parameter], limit: float) -> Tensor:
        """Bound the norm of the whole gradient, all ranks' parts together, and return what it was."""
        held = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        if not self._cut:
            norm = nn.utils.get_total_norm(held.values())
        else:
            squares = [g.float().square().sum() / self._places[name].copies for name, g in held.items()]
            norm = self.sums(torch.stack(squares).sum()).sqrt()
        if norm <= limit:  # the same on all ranks; gradients need not be gone through once more
            return norm
        torch._foreach_mul_(list(held.values()), limit / (norm + 1e-6))
        return norm

    # Numbers and snapshots

    def sums(self, numbers: Tensor) -> Tensor:
        """Elementwise sums over the ranks, in place."""
        if self.world > 1:
            dist.all_reduce(numbers)
        return numbers

    def any(self, flag: bool) -> bool:
        """Whether any rank says so."""
        return float(self.sums(torch.tensor(float(flag)))) > 0

    def told(self, value: float) -> float:
        """What the leading rank says, on all of them: clocks differ, and decisions by them must not."""
        if self.world == 1:
            return value
        number = torch.tensor(value, dtype=torch.float64)
        dist.broadcast(number, 0)
        return float(number)

    def writer(self, run: Path, keep: int) -> Writer | None:
        """Who writes the snapshots of the ranks together; None for one process."""
        if self.world == 1:
            return None
        out = Writer(run, self.rank, self.world, keep)
        if self.leads:
            out.clean()
        dist.barrier()
        return out

    def settle(self, writer: Writer | None) -> None:
        """Wait until the last snapshot is whole, whoever writes it."""
        if writer is not None:
            writer.wait()
            dist.barrier()


def _check(shard: int, replicate: int, expert: int, world: int) -> None:
    if min(shard, replicate, expert) < 1:
        raise SettingError("parallel: shard, replicate and expert must be positive")
    if shard * replicate != world:
        raise SettingError(
            f"parallel: shard {shard} x replicate {replicate} is not the number of ranks, {world}"
        )
    if world % expert or (shard % expert and expert % shard):
        raise SettingError(
            f"parallel.expert: {expert} does not go up with shard {shard} on {world} ranks"
        )
