"""QLoRA (Dettmers et al. 2023): adapters in float32 over a base that is held in blocks of 4 or 8 bits.

The blocks are those of `m27 export --to int4` (groups of 32 with a scale and a minimum in float16; not NF4), so
what is trained against is what is served. A matrix is widened when a product asks for it, forwards and again
backwards, and forgotten. Nothing of the base is trained. It knows linear layers and experts; the vocabulary's
rows are the trainer's and stay in the dtype of products.

Shapes: R rows (outputs), C columns (inputs), G groups of 32 inputs, M tokens, k experts a token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m27.model import checkpoint, importance
from m27.model.config import Config
from m27.model.decoder import Decoder
from m27.model.gguf import Blocks
from m27.model.moe import Experts
from m27.model.quantized import held_precision
from m27.model.rounding import blocks_of, kind_of
from m27.train.kernels import can_compile

BITS = {8: "int8", 4: "int4"}
_EMBEDDING = "model.embed_tokens.weight"
_HEAD = "lm_head.weight"


class BaseError(ValueError):
    """A base that cannot be held in so many bits; the message says why."""


def _widened(q_GB: Tensor, scale_G: Tensor, minimum_G: Tensor | None, dtype: torch.dtype) -> Tensor:
    """What groups stand for, [G, 32], worked out in float32 and rounded to `dtype`: for the compiler."""
    if q_GB.dtype == torch.uint8:
        q_GB = torch.cat((q_GB & 15, q_GB >> 4), dim=-1)
    values = q_GB * scale_G.float()[:, None]
    if minimum_G is not None:
        values = values + minimum_G.float()[:, None]
    return values.to(dtype)


class Held:
    """One matrix [R, C] in blocks."""

    widen: Callable[..., Tensor] | None = None  # compiled, where there is a compiler

    def __init__(self, blocks: Blocks, columns: int) -> None:
        self.blocks, self.columns = blocks, columns

    def whole(self, dtype: torch.dtype) -> Tensor:
        """The matrix in `dtype`, made anew."""
        blocks = self.blocks
        if self.widen is not None:
            # Group by group, so that all matrices are of one shape but for the number of groups.
            minimum = None if blocks.minimum is None else blocks.minimum.view(-1)
            q_GB = blocks.q.view(blocks.scale.numel(), -1)
            out = self.widen(q_GB, blocks.scale.view(-1), minimum, dtype).view(blocks.shape)
        else:
            out = blocks.dequantize(torch.empty(blocks.shape, dtype=dtype, device=blocks.q.device))
        return out[:, : self.columns]


class _Product(torch.autograd.Function):
    """x W^T, of which nothing is kept: the backward pass widens the blocks again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, held: Held) -> Tensor:
        ctx.held = held
        return F.linear(x, held.whole(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (g,) = grads
        return g @ ctx.held.whole(g.dtype), None


def product(x: Tensor, held: Held) -> Tensor:
    """x W^T of `x` [..., C]; [..., R]."""
    out: Tensor = _Product.apply(x, held)
    return out


class _InBlocks(nn.Module):
    """A module whose matrices are in blocks: they go with it to a device, and keep their types."""

    def __init__(self, matrices: Sequence[Held]) -> None:
        super().__init__()
        self.matrices = tuple(matrices)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        for held in self.matrices:
            held.blocks = held.blocks.to(fn(torch.empty(0, device=held.blocks.q.device)).device)
        return self


class BlockLinear(_InBlocks):
    """In the place of a linear layer without a bias."""

    def __init__(self, blocks: Blocks, in_features: int) -> None:
        held = Held(blocks, in_features)
        super().__init__([held])
        self.held, self.in_features, self.out_features = held, in_features, blocks.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the blocks are."""
        return self.held.blocks.q.device

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] to [..., R]."""
        return product(x, self.held)


class BlockExperts(_InBlocks):
    """In the place of `Experts`: one expert's matrices are whole at a time."""

    def __init__(self, gate_up: list[Held], down: list[Held]) -> None:
        super().__init__([*gate_up, *down])
        self.gate_up, self.down = gate_up, down

    def forward(self, x_MD: Tensor, chosen_Mk: Tensor, weights_Mk: Tensor) -> Tensor:
        """Every expert in turn over the tokens that chose it; [M, D]."""
        y_MD = torch.zeros_like(x_MD)
        for expert, (gate_up, down) in enumerate(zip(self.gate_up, self.down, strict=True)):
            token, slot = (chosen_Mk == expert).nonzero(as_tuple=True)
            if len(token):
                gate, up = product(x_MD[token], gate_up).chunk(2, dim=-1)
                share = product(F.silu(gate) * up, down) * weights_Mk[token, slot, None]
                y_MD = y_MD.index_add(0, token, share.to(x_MD.dtype))
        return y_MD


def bits_of(decoder: nn.Module) -> int | None:
    """How many bits the body of a decoder is held in: 4 or 8, or None where it is in floats."""
    found = [m for m in decoder.modules() if isinstance(m, _InBlocks)]
    if not found:
        return None
    four = any(held.blocks.q.dtype == torch.uint8 for module in found for held in module.matrices)
    return 4 if four else 8


@torch.no_grad()
def hold(decoder: Decoder, bits: int, compile: bool = False) -> None:
    """Hold the body of `decoder` in blocks of `bits` from now on, in place, one matrix after the other.

    Its vocabulary's rows are given up: whoever trains has them already. A decoder that is in such blocks
    is left as it is. Raises `BaseError` for other bits than 8 and 4, and for blocks of others.
    """
    if bits not in BITS:
        raise BaseError(f"base_bits is {bits}; it is 8, 4 or none")
    held = bits_of(decoder)
    if held not in (None, bits):
        raise BaseError(f"base_bits is {bits}, and the base is held in {held} bits already")
    if held is None:
        for name, module in list(decoder.named_modules()):
            if isinstance(module, nn.Linear) and _is_rounded(name):
                kind = kind_of(f"{name}.weight", BITS[bits])
                blocks = blocks_of(module.weight, kind)
                _put(decoder, name, BlockLinear(blocks, module.in_features))
            elif isinstance(module, Experts):
                _put(decoder, name, _experts(module, BITS[bits]))
    for parameter in (decoder.model.embed_tokens, getattr(decoder, "lm_head", None)):
        if parameter is not None and not parameter.weight.is_meta:
            parameter.weight = nn.Parameter(parameter.weight.to("meta"), requires_grad=False)
    if compile and can_compile():
        widen = torch.compile(_widened, dynamic=True)
        for module in decoder.modules():
            if isinstance(module, _InBlocks):
                for matrix in module.matrices:
                    matrix.widen = widen


def open_base(
    folder: Path | str, bits: int, dtype: torch.dtype = torch.bfloat16
) -> tuple[Decoder, Tensor]:
    """A decoder whose body is in blocks of `bits`, and the vocabulary's rows [V, D] in `dtype`.

    From a folder of `m27 export --to int4` (or int8) the blocks are taken as they are; from any other
    each matrix is rounded as it is read. The body is never there in floats. Raises `CheckpointError`
    and `BaseError`, also for a head of its own, for the rows are one table.
    """
    if bits not in BITS:
        raise BaseError(f"base_bits is {bits}; it is 8, 4 or none")
    precision = held_precision(folder)
    if precision not in (None, BITS[bits]):
        raise BaseError(f"{folder}: holds weights in {precision}, and base_bits is {bits}")
    config, state = checkpoint.open_state(folder)
    if not config.tied:
        raise BaseError(f"{folder}: has a head of its own beside the embedding; rows of one table are known")
    if config.n_experts:
        raise BaseError(f"{folder}: experts are rounded in memory; load the checkpoint and set base_bits")
    with torch.device("meta"):
        decoder = Decoder(config)
    counted = importance.read(folder, config)
    rows: Tensor | None = None
    for name, value in state.items():
        stem = name.removesuffix(".weight")
        if name == _EMBEDDING:
            rows = _floats(value, config).to(dtype)
        elif _is_rounded(stem):
            kind = kind_of(name, BITS[bits])
            blocks = blocks_of(value, kind, importance_C=counted.get(name))
            _put(decoder, stem, BlockLinear(blocks, decoder.get_parameter(name).shape[1]))
        elif isinstance(value, Tensor):
            _put_tensor(decoder, stem, value.float())
    if rows is None:
        raise BaseError(f"{folder}: has no {_EMBEDDING}")
    return decoder.requires_grad_(False), rows


def _floats(value: Tensor | Blocks, config: Config) -> Tensor:
    return value.dequantize()[:, : config.dim] if isinstance(value, Blocks) else value


def _is_rounded(stem: str) -> bool:
    return stem.endswith("_proj")


def _experts(experts: Experts, kind: str) -> BlockExperts:
    def halves(stack_ERC: Tensor) -> list[Held]:
        return [Held(blocks_of(one, kind), one.shape[1]) for one in stack_ERC]

    return BlockExperts(halves(experts.gate_up_proj), halves(experts.down_proj))


def _put(decoder: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(decoder.get_submodule(parent), last, module)


def _put_tensor(decoder: nn.Module, stem: str, value: Tensor) -> None:
    decoder.get_submodule(stem).weight = nn.Parameter(value, requires_grad=False)
