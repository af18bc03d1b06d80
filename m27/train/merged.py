"""The pass for a GPU: adapters merged into the weights once a step, blocks compiled, branches known.

Forward and backward cost what training every weight costs, whatever the rank: the gradient of a merged
matrix is taken once and goes from there to the adapter's two factors. The master weights stay float32, the
merged ones are in the compute dtype. Knows the Llama family alone; the oracle is `PlainPass`.

Shapes: N tokens laid end to end, D width, G query heads, K key heads, H head width, L layers, R rows, C columns,
r rank, M targets.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m27.data.loader import Batch
from m27.model.decoder import Decoder
from m27.model.layers import rms_norm, rotate
from m27.train import ragged
from m27.train.head import Losses, head
from m27.train.lora import Adapters
from m27.train.rows import Rows
from m27.train.scoring import Plan, Teacher


def _before(
    x_ND: Tensor, gain_D: Tensor, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Norm, queries, keys and values with their turns: [N, G, H], [N, K, H], [N, K, H]."""
    h_ND = rms_norm(x_ND, gain_D, eps)
    width = cos.shape[-1]
    heads = [F.linear(h_ND, weight).unflatten(-1, (-1, width)) for weight in (q, k, v)]
    return rotate(heads[0], cos, sin), rotate(heads[1], cos, sin), heads[2]


def _after(
    x_ND: Tensor, y_NE: Tensor, o: Tensor, gain_D: Tensor, gate: Tensor, up: Tensor, down: Tensor,
    eps: float,
) -> Tensor:  # fmt: skip
    """What attention gave goes home, and the gated MLP: [N, D]."""
    x_ND = x_ND + F.linear(y_NE, o)
    h_ND = rms_norm(x_ND, gain_D, eps)
    return x_ND + F.linear(F.silu(F.linear(h_ND, gate)) * F.linear(h_ND, up), down)


class Body:
    """The blocks and the final norm of `decoder` over tokens laid end to end, under autograd."""

    def __init__(self, decoder: Decoder, compile: bool) -> None:
        if decoder.config.family != "llama":
            raise ValueError(f"family {decoder.config.family!r}: the merged pass knows llama alone")
        self.decoder = decoder
        self.before: Callable[..., tuple[Tensor, Tensor, Tensor]] = _before
        self.after: Callable[..., Tensor] = _after
        if compile:
            self.before = torch.compile(_before, dynamic=False)
            self.after = torch.compile(_after, dynamic=False)

    def __call__(self, x_ND: Tensor, positions_N: Tensor, where: ragged.Ragged) -> Tensor:
        """States [N, D] after the final norm."""
        model = self.decoder.model
        eps = self.decoder.config.norm_eps
        cos, sin = (a[0] for a in model.rotary(positions_N[None], x_ND.dtype))
        layers: Any = model.layers
        for block in layers:
            own, mlp = block.self_attn, block.mlp
            weights = (own.q_proj.weight, own.k_proj.weight, own.v_proj.weight)
            q, k, v = self.before(x_ND, block.input_layernorm.weight, *weights, cos, sin, eps)
            y_NE = ragged.attend(q, k, v, where).flatten(1)
            x_ND = self.after(
                x_ND, y_NE, own.o_proj.weight, block.post_attention_layernorm.weight,
                mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight, eps,
            )  # fmt: skip
        return rms_norm(x_ND, model.norm.weight, eps)


class _Kind:
    """All adapted matrices of one shape and name, stacked: masters, merged ones and their gradients."""

    def __init__(
        self, members: list[tuple[nn.Linear, nn.Parameter, nn.Parameter]], dtype: torch.dtype
    ) -> None:
        self.a, self.b = [m[1] for m in members], [m[2] for m in members]
        self.master_LRC = torch.stack([layer.weight.detach().float() for layer, _, _ in members])
        # A copy in float32 too: written over, the masters would take the adapters in again with every step.
        self.merged_LRC = self.master_LRC.to(dtype, copy=True)
        self.grad_LRC = torch.zeros_like(self.merged_LRC)
        for i, (layer, _, _) in enumerate(members):
            layer.weight = nn.Parameter(self.merged_LRC[i])
            layer.weight.grad = self.grad_LRC[i]

    @torch.no_grad()
    def merge(self, scale: float) -> None:
        b_LRr, a_LrC = torch.stack(list(self.b)), torch.stack(list(self.a))
        self.merged_LRC.copy_(torch.baddbmm(self.master_LRC, b_LRr, a_LrC, alpha=scale))
        self.grad_LRC.zero_()

    @torch.no_grad()
    def collect(self, scale: float) -> None:
        b_LRr, a_LrC = torch.stack(list(self.b)), torch.stack(list(self.a))
        g_LRC = self.grad_LRC.float()
        ga_LrC = torch.bmm(b_LRr.transpose(1, 2), g_LRC).mul_(scale)
        gb_LRr = torch.bmm(g_LRC, a_LrC.transpose(1, 2)).mul_(scale)
        for parameters, gradients in ((self.a, ga_LrC), (self.b, gb_LRr)):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


class MergedPass:
    """`Body` over merged weights, and the rows. Documents may have branches."""

    def __init__(
        self, decoder: Decoder, adapters: Adapters, rows: Rows, dtype: torch.dtype, compile: bool
    ) -> None:
        self.rows, self.dtype, self.scale = rows, dtype, adapters.scale
        base = copy.deepcopy(decoder)
        with torch.no_grad():
            for name in adapters:
                weight = base.get_parameter(f"{name}.weight")
                weight.copy_(adapters.base_of(name, weight))
        self.base = Body(base.to(dtype).requires_grad_(False), False)
        masters = {name: decoder.get_parameter(f"{name}.weight").detach().clone() for name in adapters}
        decoder.to(dtype).requires_grad_(False)
        kinds: dict[str, list[tuple[nn.Linear, nn.Parameter, nn.Parameter]]] = {}
        for name in adapters:
            layer: Any = decoder.get_submodule(name)
            layer.weight = nn.Parameter(masters[name], requires_grad=False)  # not yet rounded
            kinds.setdefault(name.rsplit(".", 1)[-1], []).append((layer, *adapters[name]))
        self.kinds = [_Kind(members, dtype) for members in kinds.values()]
        self.body = Body(decoder, compile)

    def prepare(self, batch: Batch) -> ragged.Ragged:
        """What can be planned on the host before a batch is run."""
        return ragged.plan(batch.documents_BT, batch.branches_BT)

    def refresh(self) -> None:
        """Merge the adapters into the weights again and clear their gradients."""
        for kind in self.kinds:
            kind.merge(self.scale)

    def collect(self) -> None:
        """Send the gradients of the merged weights on to the adapters; once after a step's batches."""
        for kind in self.kinds:
            kind.collect(self.scale)

    def states(self, batch: Batch, where: ragged.Ragged) -> tuple[Tensor, Tensor]:
        """Inputs [N, D], which gather a gradient, and states [N, D] of a batch."""
        x_ND = self.rows.embed(batch.ids_BT.flatten()).requires_grad_()
        return x_ND, self.body(x_ND.to(self.dtype), batch.positions_BT.flatten(), where)

    @torch.no_grad()
    def base_states(self, teacher: Teacher) -> Tensor:
        """The base's states [m, D] at the places that the teacher is asked about."""
        where = ragged.plan(teacher.documents_1n, teacher.branches_1n).to(teacher.ids_n.device)
        x_nD = self.rows.embed_base(teacher.ids_n).to(self.dtype)
        h_nD = self.base(x_nD, teacher.positions_n, where)
        return h_nD.index_select(0, teacher.places_m)

    def run(self, batch: Batch, plan: Plan, total_weight: float, where: Any = None) -> Losses:
        """The losses of a batch; adds gradients of its weighted losses over `total_weight`."""
        where = self.prepare(batch) if where is None else where
        where = where.to(batch.ids_BT.device)
        base_mD = None if plan.teacher is None else self.base_states(plan.teacher)
        x_ND, h_ND = self.states(batch, where)
        losses, g_MD = head(self.rows, h_ND.detach(), batch, plan, base_mD, total_weight)
        if not plan.learn:
            return losses
        h_ND.index_select(0, batch.places_M).backward(g_MD.to(h_ND.dtype))
        if x_ND.grad is not None:
            self.rows.add_input_gradient(batch.ids_BT.flatten(), x_ND.grad)
        return losses
