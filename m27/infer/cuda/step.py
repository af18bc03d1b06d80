"""A step in which each sequence computes one token, over arrays that stay where they are.

Queries, keys and values become one product, gate and up another: the decoder's own matrices become
views of the joint ones, so nothing is held twice. Dense decoders only. Knows the cache's layout and
the parts (`ops`); neither graphs nor what is scheduled.

Shapes: S rows, D width, M blocks of a table, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from m27.infer.cuda.ops import Heads, Norm, Ops, Rows
from m27.model.decoder import Block, Decoder
from m27.model.layers import MLP, RMSNorm


@dataclass
class Arrays:
    """Where a step of S rows reads what it is about: int32 ids, and where its rows stand. All are views
    of `whole`, ids, positions, slots and tables in this order, so that one copy fills them."""

    whole: Tensor  # [S * (3 + M)]
    ids: Tensor  # [S]
    rows: Rows

    @classmethod
    def empty(cls, count: int, blocks: int, size: int, device: torch.device) -> Arrays:
        """Arrays of `count` rows with tables of `blocks` blocks of `size` tokens, all zero."""
        whole = torch.zeros(count * (3 + blocks), dtype=torch.int32, device=device)
        ids, positions, slots = whole[: 3 * count].view(3, count)
        tables = whole[3 * count :].view(count, blocks)
        return cls(whole, ids, Rows(positions, slots, tables, size))


@dataclass
class _Layer:
    qkv: Tensor
    out: Tensor
    gate_up: Tensor
    down: Tensor
    before: Norm
    between: Norm
    heads: Heads
    keys: Tensor
    values: Tensor


def suits(model: Decoder) -> bool:
    """Whether the step can run a decoder: no experts, whole matrices, heads that kernels can hold."""
    width = model.config.head_dim
    block = model.model.layers[0]
    whole = isinstance(block, Block) and isinstance(block.self_attn.o_proj, nn.Linear)
    return whole and not model.config.n_experts and width >= 16 and width & (width - 1) == 0


class Step:
    """The step of one decoder over one cache, `keys` and `values` [layers, slots, K, H]."""

    def __init__(self, model: Decoder, keys: Tensor, values: Tensor, ops: Ops) -> None:
        self.model, self.ops = model, ops
        config, weight = model.config, model.output_weight
        places = torch.arange(config.max_len, device=weight.device)
        cos, sin = model.model.rotary(places[None], weight.dtype)
        half = config.head_dim // 2
        cos, sin = (x[0, :, 0, :half].contiguous() for x in (cos, sin))
        self._layers = []
        for number, block in enumerate(model.model.layers):
            assert isinstance(block, Block) and isinstance(block.mlp, MLP)
            attention, mlp = block.self_attn, block.mlp
            q_norm = _norm(attention.q_norm) if attention.qk_norm else None
            k_norm = _norm(attention.k_norm) if attention.qk_norm else None
            counts = (config.n_heads, config.n_kv_heads, config.head_dim)
            heads = Heads(*counts, cos, sin, q_norm, k_norm)
            qkv = _joined([attention.q_proj, attention.k_proj, attention.v_proj])
            gate_up = _joined([mlp.gate_proj, mlp.up_proj])
            norms = _norm(block.input_layernorm), _norm(block.post_attention_layernorm)
            out, down = attention.o_proj.weight.detach(), mlp.down_proj.weight.detach()
            kept = keys[number], values[number]
            self._layers.append(_Layer(qkv, out, gate_up, down, *norms, heads, *kept))
        self._last = _norm(model.model.norm)

    def states(self, arrays: Arrays) -> Tensor:
        """The last layer's states [S, D], before the final norm; keys and values are written."""
        ops, rows = self.ops, arrays.rows
        x_SD = self.model.model.embed_tokens.weight.detach().index_select(0, arrays.ids)
        for layer in self._layers:
            qkv = ops.product(x_SD, layer.qkv, layer.before)
            y = ops.attend(qkv, layer.keys, layer.values, layer.heads, rows)
            ops.add_product(x_SD, y, layer.out)
            y = ops.gated(x_SD, layer.gate_up, layer.between)
            ops.add_product(x_SD, y, layer.down)
        return x_SD

    def hidden(self, arrays: Arrays) -> Tensor:
        """The final norm's states [S, D]."""
        return self.ops.norm(self.states(arrays), self._last)

    def logits(self, arrays: Arrays) -> Tensor:
        """Scores [S, V] of the whole vocabulary."""
        return self.ops.product(self.states(arrays), self.model.output_weight.detach(), self._last)

    def advance(self, arrays: Arrays) -> None:
        """Compute the step, and move the arrays on to the likeliest ids of the whole vocabulary."""
        self.ops.move(self.logits(arrays), arrays.ids, arrays.rows)


def _norm(norm: RMSNorm) -> Norm:
    return Norm(norm.weight.detach(), norm.eps)


def _joined(linears: list[nn.Linear]) -> Tensor:
    """Their weights one below the other; each becomes a view of its part, if it is not one already."""
    weights = [linear.weight.detach() for linear in linears]
    shape = (sum(map(len, weights)), weights[0].shape[1])
    ends = [w.data_ptr() + w.numel() * w.element_size() for w in weights]
    home = weights[0].untyped_storage().data_ptr()
    one = all(w.is_contiguous() and w.untyped_storage().data_ptr() == home for w in weights)
    if one and all(w.data_ptr() == end for w, end in zip(weights[1:], ends, strict=False)):
        return weights[0].as_strided(shape, (shape[1], 1))
    whole = torch.cat(weights)
    for linear, part in zip(linears, whole.split([len(w) for w in weights]), strict=True):
        linear.weight = nn.Parameter(part, requires_grad=False)
    return whole
