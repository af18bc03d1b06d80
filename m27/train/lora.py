"""Low-rank adapters (Hu et al. 2021) on the linear layers of a decoder.

Holds the two factors of each adapted layer under the layer's own name, in float32. `attach` is the plain
way (a hook on each layer, autograd does the rest); the fused path reads the factors itself.

Shapes: R rank, I in, O out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m27.train.qlora import BlockLinear

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class LoraError(ValueError):
    """A setting of the adapters that fits no layer, or factors that do not match; it names which."""


@dataclass(frozen=True)
class LoraConfig:
    """`rank` R, `alpha` (the update is scaled by alpha / rank) and the `targets`, by last name."""

    rank: int = 32
    alpha: float = 32.0
    targets: Sequence[str] = TARGETS


class Adapters:
    """The factors A [R, I] and B [O, R] of every adapted layer of `decoder`; B begins at zero.

    `adapters[name]` gives both for a layer such as `model.layers.0.self_attn.q_proj`. A is drawn uniformly
    within ±1/sqrt(I) from `seed`. Raises `LoraError` for a target that names no layer.
    """

    def __init__(self, decoder: nn.Module, config: LoraConfig, seed: int = 0) -> None:
        self.config = config
        self.scale = config.alpha / config.rank
        self.rank = config.rank
        self.active = True  # whether attached hooks add anything; see `off`
        self._held: dict[str, tuple[Tensor, Tensor]] = {}
        generator = torch.Generator().manual_seed(seed)
        self._factors: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        found = set()
        for name, module in decoder.named_modules():
            last = name.rsplit(".", 1)[-1]
            if last not in config.targets or not isinstance(module, nn.Linear | BlockLinear):
                continue
            found.add(last)
            bound = 1 / math.sqrt(module.in_features)
            a = (torch.rand(config.rank, module.in_features, generator=generator) * 2 - 1) * bound
            b = torch.zeros(module.out_features, config.rank)
            device = module.device if isinstance(module, BlockLinear) else module.weight.device
            self._factors[name] = (nn.Parameter(a.to(device)), nn.Parameter(b.to(device)))
        if missing := sorted(set(config.targets) - found):
            raise LoraError(f"targets: {', '.join(missing)} name no linear layer of the decoder")

    def __contains__(self, name: str) -> bool:
        return name in self._factors

    def __getitem__(self, name: str) -> tuple[nn.Parameter, nn.Parameter]:
        return self._factors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._factors)

    def parameters(self) -> dict[str, nn.Parameter]:
        """All factors by their checkpoint names, `….q_proj.lora_A` and `….q_proj.lora_B`."""
        return {
            f"{name}.lora_{letter}": factor
            for name, pair in self._factors.items()
            for letter, factor in zip("AB", pair, strict=True)
        }

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy factors in by checkpoint name. Raises `LoraError` for a missing or misshapen one."""
        for name, parameter in self.parameters().items():
            tensor = tensors.get(name)
            if tensor is None or tensor.shape != parameter.shape:
                have = "missing" if tensor is None else f"shape {tuple(tensor.shape)}"
                raise LoraError(f"{name}: {have}, expected {tuple(parameter.shape)}")
            parameter.copy_(tensor)

    def attach(self, decoder: nn.Module) -> None:
        """Add each adapter's output to its layer's, in the layer's dtype, for use with autograd."""
        for name, (a, b) in self._factors.items():
            layer = decoder.get_submodule(name)
            layer.register_forward_hook(_Hook(self, name, a, b))

    @torch.no_grad()
    def hold(self) -> None:
        """Take the present factors as part of the base from now on (none, where they add nothing yet)."""
        pairs = {name: (a.detach().clone(), b.detach().clone()) for name, (a, b) in self._factors.items()}
        self._held = pairs if any(bool(b.any()) for _, b in pairs.values()) else {}

    def held(self, name: str) -> tuple[Tensor, Tensor] | None:
        """The factors of a layer that are part of the base."""
        return self._held.get(name)

    @torch.no_grad()
    def base_of(self, name: str, weight_OI: Tensor) -> Tensor:
        """A layer's matrix as the base has it, in float32: with the factors that were held, if any."""
        held, wide = self._held.get(name), weight_OI.float()
        return wide if held is None else wide + self.scale * (held[1] @ held[0])

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within it the decoder is the base again, whatever is attached."""
        self.active = False
        try:
            yield
        finally:
            self.active = True

    @torch.no_grad()
    def merge_into(self, decoder: nn.Module) -> None:
        """Add scale * B @ A to every adapted weight in place; the adapters then must not be attached."""
        for name, (a, b) in self._factors.items():
            weight = decoder.get_submodule(name).get_parameter("weight")
            weight.copy_((weight.float() + self.scale * (b.float() @ a.float())).to(weight.dtype))


class _Hook:
    def __init__(self, adapters: Adapters, name: str, a: nn.Parameter, b: nn.Parameter) -> None:
        self.adapters, self.name, self.own = adapters, name, (a, b)

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
        pair = self.own if self.adapters.active else self.adapters.held(self.name)
        if pair is None:
            return out
        (x,), (a, b) = inputs, pair
        low = F.linear(x, a.to(x.dtype))
        return out + self.adapters.scale * F.linear(low, b.to(x.dtype))


@torch.no_grad()
def merged(
    weights: Mapping[str, Tensor], factors: Mapping[str, Tensor], scale: float
) -> dict[str, Tensor]:
    """For each pair of `factors` its matrix of `weights` with scale * B @ A added, by the matrix's name.

    Raises `LoraError` for a pair without a matrix of its shape.
    """
    out = {}
    for name in [n for n in factors if n.endswith(".lora_A")]:
        stem = name.removesuffix(".lora_A")
        a, b = factors[name].float(), factors[f"{stem}.lora_B"].float()
        weight = weights.get(f"{stem}.weight")
        if weight is None or weight.shape != (len(b), a.shape[1]):
            raise LoraError(f"{stem}: an adapter without a matrix of its shape")
        out[f"{stem}.weight"] = weight.float() + scale * (b @ a).to(weight.device)
    return out


@torch.no_grad()
def refit(
    own: Mapping[str, Tensor], given: Mapping[str, Tensor], scale: float, given_scale: float
) -> dict[str, Tensor]:
    """`given` factors of another run brought to the rank of `own` and its scale; the product is kept.

    Of a larger rank, the further rows of A are `own`'s and the further columns of B zero. Names without
    a counterpart and other tensors come through unchanged. Raises `LoraError` for a smaller rank.
    """
    out = dict(given)
    for name, tensor in given.items():
        mine = own.get(name)
        if mine is None or not name.endswith((".lora_A", ".lora_B")):
            continue
        axis = 0 if name.endswith(".lora_A") else 1
        rank, held = mine.shape[axis], tensor.shape[axis]
        if held > rank:
            raise LoraError(f"{name}: its rank is {held}, that of the run only {rank}")
        if axis == 0:
            out[name] = torch.cat([tensor.float(), mine[held:].cpu().float()])
        else:
            wide = torch.zeros(len(tensor), rank)
            wide[:, :held] = tensor.float() * (given_scale / scale)
            out[name] = wide
    return out
