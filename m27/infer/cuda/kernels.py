"""The parts of a fused decoding step as Triton kernels, for one row and for many.

For one row a product is bound by reading the matrix, so the norm before it, the gate and the sum
behind it are part of the same kernel: five kernels a layer. For more rows the products are cuBLAS's
and the kernels are what stands between. Attention reads what a row sees and no more, whatever the
width of the tables. Imported only where Triton is; knows tensors only.

With `early` each kernel is launched while the one before it still runs, and fetches its matrix before
it waits for it (programmatic dependent launch, Hopper and later).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from m27.infer.cuda.ops import Heads, Norm, Rows

_NONE = 0.0


@triton.jit
def _normed(x, gain_ptr, columns, inside, eps, D: tl.constexpr):
    """RMS norm of one row, rounded where the decoder's own module rounds."""
    wide = x.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, axis=0) / D + eps)
    gain = tl.load(gain_ptr + columns, mask=inside, other=0.0)
    return (gain.to(tl.float32) * (wide * scale).to(x.dtype).to(tl.float32)).to(x.dtype)


@triton.jit
def _matvec(
    w_ptr, x_ptr, gain_ptr, y_ptr, N, eps,
    D: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, NORM: tl.constexpr,
    GATED: tl.constexpr, ADD: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """y [N] = w [N, D] x [D]; with GATED w is [2 N, D]; with ADD y is added to."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, WIDE)
    inside = columns < D
    held = rows < N
    if EARLY:
        gdc_launch_dependents()
    places = rows.to(tl.int64)[:, None] * D + columns[None, :]
    mask = held[:, None] & inside[None, :]
    w = tl.load(w_ptr + places, mask=mask, other=0.0, eviction_policy="evict_first")
    if GATED:
        below = w_ptr + tl.cast(N, tl.int64) * D
        u = tl.load(below + places, mask=mask, other=0.0, eviction_policy="evict_first")
    if EARLY:
        gdc_wait()
    x = tl.load(x_ptr + columns, mask=inside, other=0.0)
    if NORM:
        x = _normed(x, gain_ptr, columns, inside, eps, D)
    wide = x.to(tl.float32)[None, :]
    y = tl.sum(w.to(tl.float32) * wide, axis=1).to(x.dtype).to(tl.float32)
    if GATED:
        up = tl.sum(u.to(tl.float32) * wide, axis=1).to(x.dtype).to(tl.float32)
        y = (y / (1.0 + tl.exp(-y))).to(x.dtype).to(tl.float32) * up
    if ADD:
        y += tl.load(y_ptr + rows, mask=held, other=0.0).to(tl.float32)
    tl.store(y_ptr + rows, y.to(x.dtype), mask=held)


@triton.jit
def _add_norm(
    x_ptr, y_ptr, gain_ptr, out_ptr, eps,
    D: tl.constexpr, WIDE: tl.constexpr, ADD: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """x += y with ADD, row by row; out = norm(x)."""
    columns = tl.arange(0, WIDE)
    inside = columns < D
    places = tl.program_id(0) * D + columns
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    x = tl.load(x_ptr + places, mask=inside, other=0.0)
    if ADD:
        y = tl.load(y_ptr + places, mask=inside, other=0.0)
        x = (x.to(tl.float32) + y.to(tl.float32)).to(x.dtype)
        tl.store(x_ptr + places, x, mask=inside)
    tl.store(out_ptr + places, _normed(x, gain_ptr, columns, inside, eps, D), mask=inside)


@triton.jit
def _gate(both_ptr, out_ptr, F, WIDE: tl.constexpr, EARLY: tl.constexpr):
    """out [S, F] = silu(gate) * up of both [S, 2 F]."""
    columns = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    inside = columns < F
    row = tl.program_id(0)
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    gate = tl.load(both_ptr + row * 2 * F + columns, mask=inside, other=0.0)
    up = tl.load(both_ptr + row * 2 * F + F + columns, mask=inside, other=0.0)
    wide = gate.to(tl.float32)
    y = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype).to(tl.float32) * up.to(tl.float32)
    tl.store(out_ptr + row * F + columns, y.to(gate.dtype), mask=inside)


@triton.jit
def _turned(base, heads, gain_ptr, cos_ptr, sin_ptr, eps, H: tl.constexpr, NORM: tl.constexpr):
    """Heads [G, H] that begin at base + heads * H, normalised with NORM, turned by their angles."""
    c = tl.arange(0, H)
    half: tl.constexpr = H // 2
    other = (c + half) % H
    x = tl.load(base + heads[:, None] * H + c[None, :])
    y = tl.load(base + heads[:, None] * H + other[None, :])
    dtype = x.dtype
    if NORM:
        wide = x.to(tl.float32)
        scale = tl.rsqrt(tl.sum(wide * wide, axis=1) / H + eps)[:, None]
        gain = tl.load(gain_ptr + c).to(tl.float32)[None, :]
        swap = tl.load(gain_ptr + other).to(tl.float32)[None, :]
        x = (gain * (wide * scale).to(dtype).to(tl.float32)).to(dtype)
        y = (swap * (y.to(tl.float32) * scale).to(dtype).to(tl.float32)).to(dtype)
    cos = tl.load(cos_ptr + c % half).to(tl.float32)[None, :]
    sin = tl.load(sin_ptr + c % half).to(tl.float32)[None, :]
    signed = tl.where(c < half, -1.0, 1.0)[None, :] * y.to(tl.float32)
    one = (x.to(tl.float32) * cos).to(dtype).to(tl.float32)
    two = (signed * sin).to(dtype).to(tl.float32)
    return (one + two).to(dtype)


@triton.jit
def _attend(
    qkv_ptr, keys_ptr, values_ptr, out_ptr, parts_ptr, weights_ptr, positions_ptr, slots_ptr,
    tables_ptr, cos_ptr, sin_ptr, q_gain_ptr, k_gain_ptr, q_eps, k_eps, scale, M,
    Q: tl.constexpr, K: tl.constexpr, H: tl.constexpr, GROUP: tl.constexpr, WIDE: tl.constexpr,
    SIZE: tl.constexpr, TILE: tl.constexpr, SPLITS: tl.constexpr, NORM: tl.constexpr,
    DOT: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One row's queries of one key head, over one of SPLITS parts of what the row sees.

    The row's own key never comes from the cache; the first part writes it there. With one part the
    result goes to out [S, Q, H]; with several, sums to parts [SPLITS, S, Q, H] and, to weights
    [2, SPLITS, S, Q], the highest score and the sum of weights.
    """
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    position = tl.load(positions_ptr + row)
    g = tl.arange(0, WIDE)
    c = tl.arange(0, H)
    half: tl.constexpr = H // 2
    base = qkv_ptr + row * (Q + 2 * K) * H
    cos, sin = cos_ptr + position * half, sin_ptr + position * half
    mine = head * GROUP + tl.where(g < GROUP, g, 0)  # what pads the group repeats its first head
    q = _turned(base, mine, q_gain_ptr, cos, sin, q_eps, H, NORM)
    per = tl.cdiv(tl.cdiv(position, SPLITS), TILE) * TILE
    begin = split * per
    end = tl.minimum(begin + per, position)
    top = tl.full([WIDE], float("-inf"), tl.float32)
    total = tl.zeros([WIDE], tl.float32)
    sums = tl.zeros([WIDE, H], tl.float32)
    if split == 0:
        # The same key for all of the group: read as often as there are queries, which is cheap.
        k = _turned(base, Q + head + g * 0, k_gain_ptr, cos, sin, k_eps, H, NORM)
        v = tl.load(base + (Q + K + head) * H + c)
        place = tl.load(slots_ptr + row).to(tl.int64) * (K * H) + head * H + c
        first = (g == 0)[:, None] & (c < H)[None, :]
        tl.store(keys_ptr + place[None, :] + g[:, None] * 0, k, mask=first)
        tl.store(values_ptr + place, v)
        top = tl.sum(q.to(tl.float32) * k.to(tl.float32), axis=1) * scale
        total += 1.0
        sums += v.to(tl.float32)[None, :]
    n = tl.arange(0, TILE)
    for start in range(begin, end, TILE):
        at = start + n
        seen = at < end
        block = tl.load(tables_ptr + row * M + at // SIZE, mask=seen, other=0).to(tl.int64)
        places = (block * SIZE + at % SIZE)[:, None] * (K * H) + head * H + c[None, :]
        k_n = tl.load(keys_ptr + places, mask=seen[:, None], other=0.0).to(q.dtype)
        v_n = tl.load(values_ptr + places, mask=seen[:, None], other=0.0).to(q.dtype)
        if DOT:
            scores = tl.dot(q, tl.trans(k_n), input_precision="ieee") * scale
        else:
            scores = tl.sum(k_n.to(tl.float32) * q.to(tl.float32), axis=1)[None, :] * scale
        scores = tl.where(seen[None, :], scores, float("-inf"))
        new = tl.maximum(top, tl.max(scores, axis=1))
        fade = tl.exp(top - new)
        p = tl.exp(scores - new[:, None])
        total = total * fade + tl.sum(p, axis=1)
        if DOT:
            more = tl.dot(p.to(q.dtype), v_n, input_precision="ieee")
        else:
            more = tl.sum(tl.trans(p) * v_n.to(tl.float32), axis=0)[None, :]
        sums = sums * fade[:, None] + more
        top = new
    real = (g < GROUP)[:, None] & (c < H)[None, :]
    if SPLITS == 1:
        y = sums / total[:, None]
        there = out_ptr + row * Q * H + mine[:, None] * H + c[None, :]
        tl.store(there, y.to(q.dtype), mask=real)
    else:
        part = (split * tl.num_programs(0) + row) * Q + mine
        tl.store(parts_ptr + part[:, None] * H + c[None, :], sums, mask=real)
        tl.store(weights_ptr + part, top, mask=g < GROUP)
        behind = SPLITS * tl.num_programs(0) * Q
        tl.store(weights_ptr + behind + part, total, mask=g < GROUP)


@triton.jit
def _combine(
    parts_ptr, weights_ptr, out_ptr,
    Q: tl.constexpr, H: tl.constexpr, SPLITS: tl.constexpr, WIDE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """The parts of one row and head, made one."""
    row, head = tl.program_id(0), tl.program_id(1)
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    s = tl.arange(0, WIDE)
    c = tl.arange(0, H)
    there = s < SPLITS
    part = (s * tl.num_programs(0) + row) * Q + head
    behind = SPLITS * tl.num_programs(0) * Q
    top = tl.load(weights_ptr + part, mask=there, other=float("-inf"))
    total = tl.load(weights_ptr + behind + part, mask=there, other=0.0)
    share = tl.exp(top - tl.max(top, axis=0))
    sums = tl.load(parts_ptr + part[:, None] * H + c[None, :], mask=there[:, None], other=0.0)
    y = tl.sum(sums * share[:, None], axis=0) / tl.sum(total * share, axis=0)
    tl.store(out_ptr + (row * Q + head) * H + c, y.to(out_ptr.dtype.element_ty))


@triton.jit
def _peaks(logits_ptr, values_ptr, places_ptr, V, PER: tl.constexpr, EARLY: tl.constexpr):
    """The highest of PER logits of a row, and the first place where it stands."""
    row, part = tl.program_id(0), tl.program_id(1)
    at = part * PER + tl.arange(0, PER)
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    x = tl.load(logits_ptr + row.to(tl.int64) * V + at, mask=at < V, other=float("-inf"))
    x = x.to(tl.float32)
    high = tl.max(x, axis=0)
    there = row * tl.num_programs(1) + part
    tl.store(values_ptr + there, high)
    tl.store(places_ptr + there, tl.min(tl.where(x == high, at, 0x7FFFFFFF), axis=0))


@triton.jit
def _move(
    values_ptr, places_ptr, ids_ptr, positions_ptr, slots_ptr, tables_ptr, M, parts,
    SIZE: tl.constexpr, WIDE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """The place of the highest of a row's peaks is its next id, at its next position."""
    row = tl.program_id(0)
    n = tl.arange(0, WIDE)
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    x = tl.load(values_ptr + row * parts + n, mask=n < parts, other=float("-inf"))
    place = tl.load(places_ptr + row * parts + n, mask=n < parts, other=0x7FFFFFFF)
    best = tl.min(tl.where(x == tl.max(x, axis=0), place, 0x7FFFFFFF), axis=0)
    position = tl.load(positions_ptr + row) + 1
    block = tl.load(tables_ptr + row * M + tl.minimum(position // SIZE, M - 1))
    tl.store(ids_ptr + row, best)
    tl.store(positions_ptr + row, position)
    tl.store(slots_ptr + row, block * SIZE + position % SIZE)


class TritonOps:
    """The parts; see `m27.infer.cuda.ops.Ops`.

    `tile`: numbers of a matrix that one program of a one-row product holds, by `warps` warps;
    `splits`: programs that share what a row sees, 0 for as many as fill the device.
    """

    def __init__(
        self, tile: int = 8192, warps: int = 4, splits: int = 0, early: bool = False
    ) -> None:
        self.tile, self.warps, self.splits, self.early = tile, warps, splits, early
        self._launch: dict[str, Any] = {"launch_pdl": True} if early else {}

    def product(self, x: Tensor, weight: Tensor, norm: Norm | None = None) -> Tensor:
        """As the protocol says."""
        if len(x) > 1:
            return F.linear(x if norm is None else self.norm(x, norm), weight)
        y = torch.empty((1, len(weight)), dtype=x.dtype, device=x.device)
        self._matvec(x, weight, y, norm)
        return y

    def add_product(self, x: Tensor, y: Tensor, weight: Tensor) -> None:
        """As the protocol says."""
        if len(x) > 1:
            x += F.linear(y, weight)
        else:
            self._matvec(y, weight, x, None, add=True)

    def gated(self, x: Tensor, weight: Tensor, norm: Norm) -> Tensor:
        """As the protocol says."""
        inner = len(weight) // 2
        y = torch.empty((len(x), inner), dtype=x.dtype, device=x.device)
        if len(x) == 1:
            self._matvec(x, weight, y, norm, gated=True)
        else:
            both = F.linear(self.norm(x, norm), weight)
            wide = min(1024, triton.next_power_of_2(inner))
            grid = (len(x), triton.cdiv(inner, wide))
            _gate[grid](both, y, inner, wide, self.early, num_warps=4, **self._launch)
        return y

    def attend(self, qkv: Tensor, keys: Tensor, values: Tensor, heads: Heads, rows: Rows) -> Tensor:
        """As the protocol says."""
        count, q, k, width = len(qkv), heads.queries, heads.keys, heads.width
        group, blocks = q // k, rows.tables.shape[1]
        splits = self.splits or _splits(count * k, blocks * rows.size)
        out = torch.empty((count, q * width), dtype=qkv.dtype, device=qkv.device)
        parts = weights = out
        if splits > 1:
            wide, device = torch.float32, qkv.device
            parts = torch.empty((splits, count, q, width), dtype=wide, device=device)
            weights = torch.empty((2, splits, count, q), dtype=wide, device=device)
        one, other = heads.q_norm, heads.k_norm
        padded = 1 if group == 1 else max(16, triton.next_power_of_2(group))
        _attend[count, k, splits](
            qkv, keys, values, out, parts, weights, rows.positions, rows.slots, rows.tables,
            heads.cos, heads.sin, one.gain if one else qkv, other.gain if other else qkv,
            one.eps if one else _NONE, other.eps if other else _NONE, width**-0.5, blocks,
            q, k, width, group, padded, rows.size, 64 if group > 1 else 128, splits,
            one is not None, group > 1, self.early, num_warps=4, num_stages=2, **self._launch,
        )  # fmt: skip
        if splits > 1:
            power = triton.next_power_of_2(splits)
            _combine[count, q](
                parts, weights, out, q, width, splits, power, self.early, num_warps=2,
                **self._launch,
            )  # fmt: skip
        return out

    def norm(self, x: Tensor, norm: Norm) -> Tensor:
        """As the protocol says."""
        out = torch.empty_like(x)
        width = x.shape[1]
        _add_norm[(len(x),)](
            x, x, norm.gain, out, norm.eps, width, triton.next_power_of_2(width), False,
            self.early, num_warps=4, **self._launch,
        )  # fmt: skip
        return out

    def move(self, logits: Tensor, ids: Tensor, rows: Rows) -> None:
        """As the protocol says."""
        count, size = logits.shape
        per = 2048
        parts = triton.cdiv(size, per)
        values = torch.empty((count, parts), dtype=torch.float32, device=logits.device)
        places = torch.empty((count, parts), dtype=torch.int32, device=logits.device)
        _peaks[count, parts](logits, values, places, size, per, self.early, **self._launch)
        _move[(count,)](
            values, places, ids, rows.positions, rows.slots, rows.tables, rows.tables.shape[1],
            parts, rows.size, triton.next_power_of_2(parts), self.early, num_warps=2,
            **self._launch,
        )  # fmt: skip

    def _matvec(
        self,
        x: Tensor,
        weight: Tensor,
        y: Tensor,
        norm: Norm | None,
        gated: bool = False,
        add: bool = False,
    ) -> None:
        count, width = y.shape[1], x.shape[1]
        wide = triton.next_power_of_2(width)
        # Two rows at least for each time that a program fetches the vector.
        rows = max(1, self.tile // wide // 2) if gated else max(2, self.tile // wide)
        _matvec[(triton.cdiv(count, rows),)](
            weight, x, norm.gain if norm else x, y, count, norm.eps if norm else _NONE,
            width, wide, rows, norm is not None, gated, add, self.early,
            num_warps=self.warps, **self._launch,
        )  # fmt: skip


def _splits(programs: int, longest: int) -> int:
    """In how many parts to read what rows see: until the device is full, and no part is short."""
    return max(1, min(16, 264 // programs, longest // 256))
