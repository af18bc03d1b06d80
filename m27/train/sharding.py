"""How the weights of one model are cut over ranks: meshes, FSDP2, and experts dealt out.

Weights are cut over `shard` ranks by FSDP2 (Zhao et al. 2023), such groups are repeated `replicate` times
(hybrid sharding), and stacked experts may lie on `expert` ranks besides (`m27.train.expert_parallel`), each
rank's share of them cut over what is left. It knows no data, no files and no optimiser.

Tested with gloo on CPU; with NCCL it has not been run on several GPUs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from m27.model.moe import MoE
from m27.train.expert_parallel import SpreadExperts
from m27.train.settings import SettingError
from m27.train.sharded_checkpoint import Place
from m27.train.whole import Whole


class Sharding:
    """The meshes of shard * replicate ranks, and the weights cut over them."""

    def __init__(self, device: torch.device, shard: int, replicate: int, expert: int) -> None:
        self.replicate, self.expert = replicate, expert
        self._mesh = init_device_mesh(
            device.type, (replicate, shard), mesh_dim_names=("replicate", "shard")
        )
        inner = max(shard // expert, 1)
        self._experts = init_device_mesh(
            device.type, (shard * replicate // (inner * expert), inner, expert),
            mesh_dim_names=("expert_replicate", "expert_shard", "expert"),
        )  # fmt: skip
        self._modules: list[FSDPModule] = []

    def spread(self, whole: Whole) -> None:
        """Cut the weights of `whole`, in place: each rank keeps its part, and blocks gather theirs when they run.

        With a dtype other than float32 weights are gathered in it; masters and sums stay float32. Raises
        SettingError where the experts do not divide.
        """
        narrow = None if whole.dtype == torch.float32 else whole.dtype
        policy = MixedPrecisionPolicy(narrow, torch.float32, cast_forward_inputs=False)
        mesh = _flat(self._mesh, "replicate", "shard")
        outer = _flat(self._experts, "expert_replicate", "expert_shard")
        for block in whole.decoder.model.layers:
            if self.expert > 1 and isinstance(mlp := block.mlp, MoE):
                mlp.experts = self._dealt(mlp)
                # Where there are more ranks than experts of theirs, each expert is cut.
                dim = int(self._experts.size(1) > len(mlp.experts.gate_up_proj))
                fully_shard(mlp.experts, mesh=outer, mp_policy=policy, shard_placement_fn=_along(dim))
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(whole, mesh=mesh, mp_policy=policy)
        self._modules = [m for m in whole.modules() if isinstance(m, FSDPModule)]
        for module in self._modules:
            # Sums, not means: each rank's loss is already divided by the weight of all ranks' targets.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)

    def _dealt(self, mlp: MoE) -> SpreadExperts:
        experts, inner = mlp.experts, self._experts.size(1)
        count = len(experts.gate_up_proj)
        if count % self.expert:
            raise SettingError(f"parallel.expert: {self.expert} does not divide {count} experts")
        widths = (experts.gate_up_proj.shape[1], experts.down_proj.shape[1])
        if inner > count // self.expert and any(width % inner for width in widths):
            raise SettingError(
                f"parallel.shard: experts of widths {widths} cannot be cut over {inner} ranks"
            )
        return SpreadExperts(experts, self._experts.get_group("expert"))

    def last(self, last: bool) -> None:
        """Say whether the backward pass that follows is the step's last: only then replicas are summed."""
        for module in self._modules:
            module.set_requires_all_reduce(last, recurse=False)

    def place(self, parameter: DTensor) -> Place:
        """Where this rank's part of a cut parameter lies."""
        mesh, shape = parameter.device_mesh, list(parameter.shape)
        offset, size, copies, writes = [0] * len(shape), list(shape), 1, True
        for dim, placement in enumerate(parameter.placements):
            ranks, rank = mesh.size(dim), mesh.get_local_rank(dim)
            if not isinstance(placement, Shard):
                copies, writes = copies * ranks, writes and rank == 0
                continue
            length = -(-shape[placement.dim] // ranks)
            offset[placement.dim] = min(rank * length, shape[placement.dim])
            size[placement.dim] = min(length, shape[placement.dim] - offset[placement.dim])
        if self._is_dealt(parameter):
            offset[0] += self._experts.get_local_rank("expert") * shape[0]
            shape[0] *= self.expert
        return Place(tuple(shape), tuple(offset), tuple(size), copies, writes)

    def _is_dealt(self, parameter: DTensor) -> bool:
        return "expert_shard" in (parameter.device_mesh.mesh_dim_names or ())

    def cuts_matrices(self, parameter: DTensor) -> bool:
        """Whether a parameter's matrices, its last two dimensions, lie in parts on several ranks."""
        return any(
            isinstance(p, Shard) and p.dim >= parameter.dim() - 2 and parameter.device_mesh.size(i) > 1
            for i, p in enumerate(parameter.placements)
        )

    def gather(self, part: Tensor, like: DTensor) -> Tensor:
        """The whole tensor of which each rank holds a `part`, placed as the cut parameter `like` is."""
        held = DTensor.from_local(
            part.detach(), like.device_mesh, like.placements, run_check=False, shape=like.shape,
            stride=like.stride(),
        ).full_tensor()  # fmt: skip
        if not self._is_dealt(like):
            return held
        parts = [torch.empty_like(held) for _ in range(self.expert)]
        dist.all_gather(parts, held.contiguous(), group=self._experts.get_group("expert"))
        return torch.cat(parts)


def _along(dim: int) -> Callable[[nn.Parameter], Shard]:
    return lambda _: Shard(dim)


def cut_parts(parameters: dict[str, nn.Parameter]) -> dict[str, DTensor]:
    """Those of the parameters that are cut, by name."""
    return {name: p for name, p in parameters.items() if isinstance(p, DTensor)}


def own_part(tensor: Tensor) -> Tensor:
    """This rank's part of a cut tensor, which shares its memory; another tensor as it is."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor


def _flat(mesh: DeviceMesh, outer: str, inner: str) -> DeviceMesh:
    """Two dimensions of `mesh`, or the inner alone where there is one replica."""
    return mesh[outer, inner] if mesh[outer].size() > 1 else mesh[inner]
