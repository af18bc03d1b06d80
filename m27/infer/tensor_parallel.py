"""A model over several processes: each holds a share of every matrix, and all run the same steps.

Queries, keys, values and the MLP's first two matrices are cut by rows (heads, inner width), the
matrices that follow by columns, whose partial products are added up over the processes (Shoeybi et
al. 2019). Embedding, norms and head are whole everywhere. The first process has the engine; it sends
each step to the others, which `follow`. Start with `torchrun`; dense families only.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from m27.infer.request import RequestError
from m27.infer.runner import Adapter, Answered, Batch, RunnerError
from m27.infer.torch_runner import TorchRunner
from m27.model.decoder import Decoder

_ROWS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
_COLUMNS = ("o_proj", "down_proj")


class Summed(nn.Module):
    """The share of a matrix cut by columns; what comes out is added up over the processes."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """The whole product of the shares of `x`."""
        y = nn.functional.linear(x, self.weight)
        dist.all_reduce(y)
        return y


def shard(model: Decoder, rank: int, world: int) -> Decoder:
    """Cut the decoder's matrices, in place, to the share of one process; the same decoder comes back.

    Raises RequestError where heads or inner width do not divide, or the model has experts.
    """
    config = model.config
    if config.n_experts:
        raise RequestError("a model with experts is not cut over processes")
    for name, size in (("n_kv_heads", config.n_kv_heads), ("ffn_dim", config.ffn_dim)):
        if size % world:
            raise RequestError(f"{name} {size} cannot be shared by {world} processes")

    def cut(weight: Tensor, dim: int) -> Tensor:
        return weight.detach().chunk(world, dim)[rank].contiguous()

    for block in model.model.layers:
        for part in (block.get_submodule("self_attn"), block.get_submodule("mlp")):
            for name, linear in list(part.named_children()):
                if name in _ROWS:
                    weight = cut(linear.get_parameter("weight"), 0)
                    linear.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
                elif name in _COLUMNS:
                    setattr(part, name, Summed(cut(linear.get_parameter("weight"), 1)))
    return model


class ParallelRunner(TorchRunner):
    """The runner of each process; the engine's is that of rank 0, which the others follow."""

    def __init__(self, model: Decoder, **options: Any) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        super().__init__(shard(model, self.rank, self.world), **options)

    def run(self, batch: Batch) -> list[Answered]:
        """One step, in all processes."""
        dist.broadcast_object_list([batch], src=0)
        return super().run(batch)

    def follow(self) -> None:
        """Run the steps that rank 0 runs, until it is closed."""
        while True:
            sent: list[Batch | None] = [None]
            dist.broadcast_object_list(sent, src=0)
            if sent[0] is None:
                return
            # The logits are rank 0's affair.
            super().run(replace(sent[0], wanted=()))

    def close(self) -> None:
        """Let the others go; for rank 0."""
        dist.broadcast_object_list([None], src=0)

    def add_adapter(self, adapter: Adapter) -> int:
        """Refused: an adapter is merged before the model is cut."""
        raise RunnerError("a model over several processes takes no adapters; merge them first")

    def facts(self) -> dict[str, Any]:
        """Those of this process's share, and how many processes there are."""
        return super().facts() | {"processes": self.world}


def join() -> torch.device:
    """Join the processes that `torchrun` started; the device of this one."""
    cuda = torch.cuda.is_available()
    if not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo")
    if not cuda:
        return torch.device("cpu")
    device = torch.device("cuda", dist.get_rank() % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device
