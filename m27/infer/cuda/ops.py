"""The parts of a fused decoding step in plain torch: what the kernels must equal, and their stand-in.

Rounding is that of the decoder's own modules: a value that they would keep in the dtype of the
weights is rounded to it here. Knows tensors only; neither graphs nor layers.

Shapes: S rows (one token each), D width in, N width out, Q query heads, K key heads, H head width,
M blocks of a table, P positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Norm:
    """An RMS norm: its gain [D] and epsilon."""

    gain: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """The normalised rows of `x` [..., D]."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.gain * wide.to(x.dtype)


@dataclass(frozen=True)
class Rows:
    """Where the rows of a step stand: int32 `positions` [S], `slots` [S] that they are written to, and
    `tables` [S, M] of the blocks of `size` tokens that hold what they see before."""

    positions: Tensor
    slots: Tensor
    tables: Tensor
    size: int


@dataclass(frozen=True)
class Heads:
    """What attention knows of a layer: counts, `cos` and `sin` [P, H / 2] of every position, and the
    norms of queries and keys where there are some."""

    queries: int
    keys: int
    width: int
    cos: Tensor
    sin: Tensor
    q_norm: Norm | None = None
    k_norm: Norm | None = None


class Ops(Protocol):
    """The parts. What is written comes back, or is `x` or the cache, changed in place."""

    def product(self, x: Tensor, weight: Tensor, norm: Norm | None = None) -> Tensor:
        """`weight` [N, D] times each row of `x` [S, D], normalised first where a norm is given."""
        ...

    def add_product(self, x: Tensor, y: Tensor, weight: Tensor) -> None:
        """Add `weight` [D, N] times each row of `y` [S, N] to `x` [S, D]."""
        ...

    def gated(self, x: Tensor, weight: Tensor, norm: Norm) -> Tensor:
        """silu(gate) * up of the normalised `x` [S, D]; `weight` [2 F, D] is gate, then up."""
        ...

    def attend(self, qkv: Tensor, keys: Tensor, values: Tensor, heads: Heads, rows: Rows) -> Tensor:
        """Attention [S, Q * H] of `qkv` [S, (Q + 2 K) H] over the cache [slots, K, H], to which the
        rows' own keys and values are written."""
        ...

    def norm(self, x: Tensor, norm: Norm) -> Tensor:
        """The normalised rows of `x`."""
        ...

    def move(self, logits: Tensor, ids: Tensor, rows: Rows) -> None:
        """Put the likeliest ids (of equal ones the first) of `logits` [S, V] into `ids` [S], and move
        the rows one place on, within the blocks that their tables list."""
        ...


class PlainOps:
    """The parts, spelled out."""

    def product(self, x: Tensor, weight: Tensor, norm: Norm | None = None) -> Tensor:
        """As the protocol says."""
        return F.linear(x if norm is None else norm(x), weight)

    def add_product(self, x: Tensor, y: Tensor, weight: Tensor) -> None:
        """As the protocol says."""
        x += F.linear(y, weight)

    def gated(self, x: Tensor, weight: Tensor, norm: Norm) -> Tensor:
        """As the protocol says."""
        gate, up = F.linear(norm(x), weight).chunk(2, dim=-1)
        return F.silu(gate) * up

    def attend(self, qkv: Tensor, keys: Tensor, values: Tensor, heads: Heads, rows: Rows) -> Tensor:
        """As the protocol says; reads every slot of the tables, and masks."""
        count, width = len(qkv), heads.width
        q, k, v = qkv.view(count, -1, width).split((heads.queries, heads.keys, heads.keys), dim=1)
        places = rows.positions.long()
        cos = torch.cat([heads.cos, heads.cos], dim=1)[places][:, None]
        sin = torch.cat([heads.sin, heads.sin], dim=1)[places][:, None]
        q = q if heads.q_norm is None else heads.q_norm(q)
        k = k if heads.k_norm is None else heads.k_norm(k)
        q, k = _turn(q, cos, sin), _turn(k, cos, sin)
        keys[rows.slots.long()] = k.to(keys.dtype)
        values[rows.slots.long()] = v.to(values.dtype)
        within = torch.arange(rows.size, device=qkv.device)
        slots_SL = (rows.tables.long().clamp(min=0)[:, :, None] * rows.size + within).flatten(1)
        place_L = torch.arange(slots_SL.shape[1], device=qkv.device)
        mask = (place_L <= places[:, None])[:, None, None]
        k_SKLH = keys[slots_SL].transpose(1, 2).to(q.dtype)
        v_SKLH = values[slots_SL].transpose(1, 2).to(q.dtype)
        grouped = heads.queries != heads.keys
        y = F.scaled_dot_product_attention(q[:, :, None], k_SKLH, v_SKLH, mask, enable_gqa=grouped)
        return y.reshape(count, -1)

    def norm(self, x: Tensor, norm: Norm) -> Tensor:
        """As the protocol says."""
        return norm(x)

    def move(self, logits: Tensor, ids: Tensor, rows: Rows) -> None:
        """As the protocol says."""
        ids.copy_(logits.argmax(-1))
        rows.positions.add_(1)
        block = (rows.positions // rows.size).long().clamp(max=rows.tables.shape[1] - 1)
        first = rows.tables.gather(1, block[:, None])[:, 0] * rows.size
        rows.slots.copy_(first + rows.positions % rows.size)


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
