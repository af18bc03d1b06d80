"""A model over several processes: each holds a share of every matrix, and all run the same steps.

Queries, keys, values and the MLP's first two matrices are cut by rows (heads, inner width), the
matrices that follow by columns, whose partial products are added up over the processes (Shoeybi et
al. 2019). Embedding, norms and head are whole everywhere. Each process reads one matrix after another
and keeps its share. The first has the engine (`lead`); the others `follow` its steps. Dense families
only, through torch; steps are neither fused nor captured as graphs.

Shapes: T tokens, S sequences, M most blocks of a sequence.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from m27 import runtime
from m27.infer.processes import (
    LOAD,
    STEP,
    ParallelError,
    Patience,
    Processes,
    from_numbers,
    join,
    to_numbers,
)
from m27.infer.request import RequestError
from m27.infer.runner import Adapter, Answered, Batch, Ints, RunnerError
from m27.infer.torch_runner import TorchRunner
from m27.model import checkpoint
from m27.model.config import Config
from m27.model.decoder import Decoder
from m27.model.files import CheckpointError
from m27.model.gguf import Blocks

_ROWS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
_COLUMNS = ("o_proj", "down_proj")


class Summed(nn.Module):
    """The share of a matrix cut by columns; what comes out is added up over the processes."""

    def __init__(self, weight: Tensor, group: Processes | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self._group = group

    def forward(self, x: Tensor) -> Tensor:
        """The whole product of the shares of `x`; without a group, that of this share alone."""
        y = nn.functional.linear(x, self.weight)
        return y if self._group is None else self._group.sum(y)


def check(config: Config, world: int) -> None:
    """Raise RequestError where a model cannot be cut: heads or inner width do not divide by the
    number of processes, or it has experts."""
    if config.n_experts:
        raise RequestError("a model with experts is not cut over processes")
    sizes = {"n_heads": config.n_heads, "n_kv_heads": config.n_kv_heads, "ffn_dim": config.ffn_dim}
    for name, size in sizes.items():
        if size % world:
            raise RequestError(f"{name} {size} cannot be shared by {world} processes")


def share(name: str, whole: Tensor, rank: int, world: int) -> Tensor:
    """What a process holds of the tensor called `name` ("….q_proj.weight"): a copy, so that nothing
    keeps the rest; the tensor itself where it is not cut."""
    part = name.split(".")[-2]
    if part not in (*_ROWS, *_COLUMNS):
        return whole
    return whole.chunk(world, int(part in _COLUMNS))[rank].clone(
        memory_format=torch.contiguous_format
    )


def read_share(
    folder: str | Path,
    rank: int,
    world: int,
    dtype: torch.dtype,
    device: torch.device,
    group: Processes | None = None,
) -> Decoder:
    """The share of one process of a checkpoint folder of any layout, read a matrix at a time.

    Raises RequestError as `check` does, and CheckpointError as `checkpoint.load` does.
    """
    config, state = checkpoint.open_state(folder)
    check(config, world)
    with torch.device("meta"):
        model = Decoder(config)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for block in model.model.layers:
        for part in (block.get_submodule("self_attn"), block.get_submodule("mlp")):
            for name, linear in list(part.named_children()):
                if name in _COLUMNS:
                    setattr(part, name, Summed(linear.get_parameter("weight"), group))
    held = {}
    for name in shapes:
        whole = _whole(state, name, shapes[name], str(folder))
        held[name] = share(name, whole, rank, world).to(device, dtype)
        del whole  # one of them at a time
    for name, parameter in held.items():
        owner, _, kind = name.rpartition(".")
        model.get_submodule(owner).register_parameter(
            kind, nn.Parameter(parameter, requires_grad=False)
        )
    return model.eval()


def _whole(
    state: Mapping[str, Tensor | Blocks], name: str, shape: torch.Size, where: str
) -> Tensor:
    whole = state[name]
    if isinstance(whole, Blocks):
        whole = whole.dequantize()[:, : shape[-1]]  # blocks are filled up with zeros
    if whole.shape != shape:
        found, want = list(whole.shape), list(shape)
        raise CheckpointError(f"{where}: {name} is {found}, config.json asks for {want}")
    return whole


class ParallelRunner(TorchRunner):
    """The runner of each process over its share; the engine's is that of the first, which the others
    follow. `run` raises ParallelError where a process has failed or gone: then it is over for all."""

    def __init__(self, model: Decoder, group: Processes, **options: Any) -> None:
        super().__init__(model, **options)
        self.group = group
        # Neither has been seen to run with sums over processes inside.
        self._graphs = self.fused = None

    def run(self, batch: Batch) -> list[Answered]:
        """One step, in all processes; in the first one alone it is told to the others."""
        if self.group.rank:
            return super().run(batch)
        if _led is not self:
            raise RunnerError("another model has been loaded over these processes since")
        # Whatever can be refused is so before the others begin.
        if len(batch.ids) and not 0 <= int(batch.ids.min()) <= int(batch.ids.max()) < self._rows:
            raise RunnerError(f"ids must lie within 0..{self._rows - 1}")
        if bool((batch.adapters >= 0).any()):
            raise RunnerError("a model over several processes takes no adapters")
        self.group.send(STEP, pack(batch))
        try:
            return super().run(batch)
        except (ParallelError, RunnerError):
            raise
        except BaseException as error:  # the others wait within the step
            self.group.fail(error)
            if not isinstance(error, Exception):
                raise
            told = ParallelError(
                f"process 0 of {self.group.world}: {type(error).__name__}: {error}"
            )
            told.told = True
            raise told from error

    def add_adapter(self, adapter: Adapter) -> int:
        """Refused: an adapter is merged before the model is cut."""
        raise RunnerError("a model over several processes takes no adapters; merge them first")

    def facts(self) -> dict[str, Any]:
        """Those of this process's share, and how many processes there are."""
        return super().facts() | {"processes": self.group.world}


_led: ParallelRunner | None = None  # the one whose steps the others follow


def lead(
    folder: str | Path,
    dtype: torch.dtype,
    device: torch.device,
    threads: int = 0,
    **options: Any,
) -> ParallelRunner:
    """Load a checkpoint folder, which all machines have at the same place, in all processes; for the
    first one, whose runner comes back. A model loaded before is let go.

    `options` are JSON values of `TorchRunner`'s, `cache_dtype` by its name. Raises RequestError where
    some process cannot load it, as `read_share` does for this one, and ParallelError.
    """
    global _led
    _led = None
    group = join()
    spec = {
        "folder": str(Path(folder).absolute()), "dtype": str(dtype).removeprefix("torch."),
        "device": device.type, "threads": threads, **options,
    }  # fmt: skip
    group.send(LOAD, to_numbers(spec))
    _led = _load(group, spec)
    return _led


def _load(group: Processes, spec: Mapping[str, Any]) -> ParallelRunner:
    """This process's part of a model that all of them load."""
    options = dict(spec)
    folder, dtype, kind, threads = (
        options.pop(x) for x in ("folder", "dtype", "device", "threads")
    )
    if options.get("cache_dtype"):
        options["cache_dtype"] = runtime.DTYPES[options["cache_dtype"]]
    if threads:
        torch.set_num_threads(threads)
    try:
        where = group.device(kind)
        weights = read_share(folder, group.rank, group.world, runtime.DTYPES[dtype], where, group)
        runner = ParallelRunner(weights, group, **options)
        runtime.trim_freed_memory()  # what whole matrices took while they were cut
    except Exception as error:
        with suppress(RequestError):  # of another: this one has its own to tell
            group.agree(" ".join(str(error).split()) or type(error).__name__)
        raise
    group.agree(None)
    return runner


def follow() -> int:
    """Do what the first process does until it ends; for the others. The exit status comes back: 0, or 1
    where a process of the group failed, which is told in one line by one of them."""
    group = join()
    patience = Patience()
    runner: ParallelRunner | None = None
    try:
        while True:
            kind, numbers = group.receive()
            if kind == LOAD:
                runner = None  # let go before the next one comes
                try:
                    runner = _load(group, from_numbers(numbers))
                except ParallelError:
                    raise
                except Exception:
                    runner = None  # the first process knows, and ends or loads another
            elif kind == STEP and runner is not None:
                runner.run(unpack(numbers))
            else:
                group.end()
                return 0
    except ParallelError as error:
        if patience.wait():
            return group.exit(0)
        if not error.told:
            print(f"m27: process {group.rank} of {group.world}: {error}", file=sys.stderr)
        return group.exit(1)
    except Exception as error:
        group.fail(error)
        return group.exit(1)


def release() -> None:
    """Let the others go; for the first process, whether or not it has loaded a model."""
    join().end()


def pack(batch: Batch) -> Ints:
    """What a step computes, as numbers: T, S, M and the arrays. What is asked of the head is not in
    it: that is the first process's affair."""
    count, longest = batch.tables.shape
    sizes = np.array([len(batch.ids), count, longest], dtype=np.int32)
    arrays = (batch.ids, batch.positions, batch.slots, batch.starts, batch.tables.ravel())
    return np.concatenate((sizes, *arrays))


def unpack(numbers: Ints) -> Batch:
    """The step of `pack`."""
    tokens, count, longest = numbers[:3].tolist()
    edges = np.cumsum([3, tokens, tokens, tokens, count + 1])
    ids, positions, slots, starts, tables = np.split(numbers, edges)[1:]
    adapters = np.full(count, -1, dtype=np.int32)
    return Batch(ids, positions, slots, starts, tables.reshape(count, longest), adapters)
