"""Grouped-query attention over packed rows or a cache.

What each token may see is decided once per call, as a `Layout`, and shared by all layers. The cache
is an argument. This module knows nothing of weights files or of what a token means.

Shapes: B batch, T new tokens, S cached and new tokens, D width, N query heads, K key heads, H head
width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m27.model.config import Config
from m27.model.layers import RMSNorm, rotate

# Up to this many tokens the CPU kernel, with its backward, is two to three times faster in float32
# than in bfloat16; from 512 on it is not.
_SHORT = 256


class CacheError(ValueError):
    """A use of the cache that it cannot serve; the message says which length or shape."""


class Cache:
    """Keys and values of all layers for a batch of rows, each row with its own length.

    `lengths[b]` is how many tokens of row b are held; it lives on the host, so asking never waits
    for the device. Room grows by doubling, up to `config.max_len`.

    Raises `CacheError` when a row would pass `config.max_len`.
    """

    def __init__(
        self,
        config: Config,
        batch: int = 1,
        capacity: int = 256,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config = config
        self.lengths = [0] * batch
        self.capacity = min(capacity, config.max_len)
        shape = (config.n_layers, batch, config.n_kv_heads, self.capacity, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` more tokens in the longest row."""
        need = max(self.lengths) + tokens
        if need > self.config.max_len:
            raise CacheError(f"{need} tokens: the model holds at most {self.config.max_len}")
        if need > self.capacity:
            grown = min(max(need, 2 * self.capacity), self.config.max_len)
            self.keys = F.pad(self.keys, (0, 0, 0, grown - self.capacity))
            self.values = F.pad(self.values, (0, 0, 0, grown - self.capacity))
            self.capacity = grown

    def update(self, layer: int, k_BKTH: Tensor, v_BKTH: Tensor) -> tuple[Tensor, Tensor]:
        """Write new keys and values behind each row's length; the layer's [B, K, S, H] come back.

        Lengths do not move: `advance` does that once, after the last layer.
        """
        tokens = k_BKTH.shape[2]
        keys, values = self.keys[layer], self.values[layer]
        if len(set(self.lengths)) == 1:
            start = self.lengths[0]
            keys[:, :, start : start + tokens] = k_BKTH
            values[:, :, start : start + tokens] = v_BKTH
        elif tokens == 1:
            rows = torch.arange(len(self.lengths), device=keys.device)
            ends = torch.tensor(self.lengths, device=keys.device)
            keys[rows, :, ends] = k_BKTH[:, :, 0]
            values[rows, :, ends] = v_BKTH[:, :, 0]
        else:
            for row, start in enumerate(self.lengths):
                keys[row, :, start : start + tokens] = k_BKTH[row]
                values[row, :, start : start + tokens] = v_BKTH[row]
        end = max(self.lengths) + tokens
        return keys[:, :, :end], values[:, :, :end]

    def advance(self, counts: list[int]) -> None:
        """Count `counts[b]` of the tokens just written as held in row b."""
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]

    def truncate(self, lengths: list[int]) -> None:
        """Forget what lies behind `lengths[b]` in each row; a row never grows by this."""
        self.lengths = [min(old, new) for old, new in zip(self.lengths, lengths, strict=True)]


@dataclass(frozen=True)
class Layout:
    """What the tokens of one call may see. At most one of `mask`, `spans` and `edges` is set.

    `mask` is boolean [B, 1, T, S], True where a query sees a key. `spans[b]` lists the half-open
    ranges of row b's documents: attention then runs document by document, which costs the sum of
    the squared lengths and not the square of their sum. `edges` are int32 places on the device
    where the documents of all rows, laid end to end, begin and the last ends, for a kernel that
    takes them so, and `longest` is the longest of them. With none of these, attention is causal
    over the row (T == S) or, when T == 1, sees everything.
    """

    causal: bool = True
    mask: Tensor | None = None
    spans: tuple[tuple[tuple[int, int], ...], ...] | None = None
    edges: Tensor | None = None
    longest: int = 0


def runs(documents_BT: Tensor) -> Tensor:
    """Number the documents of each row [B, T] from 0: a document is a run of equal numbers."""
    change = documents_BT[:, 1:] != documents_BT[:, :-1]
    return F.pad(change.long().cumsum(1), (1, 0))


def restarting_positions(documents_BT: Tensor) -> Tensor:
    """Positions [B, T] that begin again at 0 with every document of a packed row [B, T]."""
    index = torch.arange(documents_BT.shape[1], device=documents_BT.device).expand_as(documents_BT)
    first = F.pad(documents_BT[:, 1:] != documents_BT[:, :-1], (1, 0), value=True)
    return index - torch.where(first, index, 0).cummax(1).values


def packed_layout(documents_BT: Tensor | None, device: torch.device | None = None) -> Layout:
    """The layout of uncached rows on `device`: causal, and within one document when numbers are given.

    On CPU the documents are walked one by one. On a GPU they go to a kernel for documents laid end
    to end, where their numbers lie on the host and the kernel is there and right (`has_packed`);
    else a boolean mask. Padding (-1) is a document of its own, so no softmax is ever empty.
    """
    if documents_BT is None:
        return Layout()
    device = device or documents_BT.device
    if documents_BT.device.type == "cpu" and device.type == "cuda":
        if has_packed(device):
            edges, longest = document_edges(documents_BT)
            edges = edges.pin_memory().to(device, non_blocking=True)
            return Layout(causal=False, edges=edges, longest=longest)
        documents_BT = documents_BT.to(device)
    if documents_BT.device.type == "cpu":
        spans = tuple(_spans(row) for row in runs(documents_BT).tolist())
        return Layout() if all(len(row) == 1 for row in spans) else Layout(spans=spans)
    run = runs(documents_BT)
    tokens = run.shape[1]
    causal = torch.ones(tokens, tokens, dtype=torch.bool, device=run.device).tril()
    return Layout(causal=False, mask=((run[:, :, None] == run[:, None, :]) & causal)[:, None])


def document_edges(documents_BT: Tensor) -> tuple[Tensor, int]:
    """Where the documents of all rows, end to end, begin and the last ends (int32 [n + 1]), and the
    longest document's length. A document ends with its row."""
    flat = documents_BT.flatten()
    change = torch.ones_like(flat, dtype=torch.bool)
    change[1:] = flat[1:] != flat[:-1]
    change[:: documents_BT.shape[1]] = True
    edges = F.pad(change.nonzero().flatten(), (0, 1), value=len(flat)).to(torch.int32)
    return edges, int(edges.diff().max())


def attend_packed(q_MNH: Tensor, k_MNH: Tensor, v_MNH: Tensor, edges: Tensor, longest: int) -> Tensor:
    """Causal attention within documents laid end to end ([M tokens, N heads, H], half precision),
    by the GPU kernel for ragged rows (Dao 2023) that torch carries; differentiable."""
    out: Tensor = torch.ops.aten._flash_attention_forward(
        q_MNH, k_MNH, v_MNH, edges, edges, longest, longest, 0.0, True, False
    )[0]
    return out


@lru_cache(maxsize=8)
def has_packed(device: torch.device) -> bool:
    """Whether `attend_packed` runs on `device` and agrees with attention document by document,
    forwards and backwards, on a small case: tried once, since builds of torch differ."""
    try:
        generator = torch.Generator().manual_seed(0)
        shape = (96, 3, 64)
        q, k, v, g = (torch.randn(shape, generator=generator).to(device) for _ in range(4))
        edges = torch.tensor([0, 40, 41, 96], dtype=torch.int32, device=device)
        halves = [x.bfloat16().requires_grad_() for x in (q, k, v)]
        found = attend_packed(halves[0], halves[1], halves[2], edges, 55)
        found.backward(g.bfloat16())
        wholes = [x.detach().float().requires_grad_() for x in halves]
        parts = []
        for begin, end in ((0, 40), (40, 41), (41, 96)):
            one = [x[begin:end].transpose(0, 1) for x in wholes]
            parts.append(F.scaled_dot_product_attention(one[0], one[1], one[2], is_causal=True))
        wanted = torch.cat(parts, dim=1).transpose(0, 1)
        wanted.backward(g)
        pairs = [(found, wanted), *((h.grad, w.grad) for h, w in zip(halves, wholes, strict=True))]
        return all(
            a is not None and b is not None and bool(((a.float() - b).norm() / b.norm()) < 0.02)
            for a, b in pairs
        )
    except (RuntimeError, TypeError):
        return False


def _spans(row: list[int]) -> tuple[tuple[int, int], ...]:
    starts = [i for i, run in enumerate(row) if i == 0 or run != row[i - 1]]
    return tuple(zip(starts, [*starts[1:], len(row)], strict=True))


def cached_layout(cache: Cache, tokens: int, device: torch.device) -> Layout:
    """The layout of `tokens` new tokens behind what each row of the cache holds."""
    uniform = len(set(cache.lengths)) == 1
    if uniform and (tokens == 1 or cache.lengths[0] == 0):
        return Layout(causal=tokens > 1)
    held = torch.tensor(cache.lengths, device=device)[:, None, None, None]
    query = torch.arange(tokens, device=device)[None, None, :, None]
    key = torch.arange(max(cache.lengths) + tokens, device=device)[None, None, None, :]
    return Layout(causal=False, mask=key <= held + query)


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023) with rotary positions.

    The Qwen3 families also normalise queries and keys per head.
    """

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        inner, kv_inner = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        self.grouped = config.n_heads != config.n_kv_heads
        self.q_proj = nn.Linear(config.dim, inner, bias=False)
        self.k_proj = nn.Linear(config.dim, kv_inner, bias=False)
        self.v_proj = nn.Linear(config.dim, kv_inner, bias=False)
        self.o_proj = nn.Linear(inner, config.dim, bias=False)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.norm_eps)
        self.qk_norm = config.qk_norm

    def forward(
        self, x_BTD: Tensor, angles: tuple[Tensor, Tensor], layout: Layout, cache: Cache | None
    ) -> Tensor:
        """[B, T, D] to [B, T, D]; `angles` are the cosines and sines [B, T, 1, H] of `Rotary`."""
        heads = (*x_BTD.shape[:2], -1, self.head_dim)
        q = self.q_proj(x_BTD).view(heads)
        k = self.k_proj(x_BTD).view(heads)
        v = self.v_proj(x_BTD).view(heads).transpose(1, 2)
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, *angles).transpose(1, 2), rotate(k, *angles).transpose(1, 2)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        y_BNTH = self._attend(q, k, v, layout)
        out: Tensor = self.o_proj(y_BNTH.transpose(1, 2).flatten(2))
        return out

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        if layout.edges is not None:
            group = q.shape[1] // k.shape[1]
            wide = [q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)]
            half = [x.transpose(1, 2).flatten(0, 1).to(v.dtype) for x in wide]
            y_MNH = attend_packed(half[0], half[1], half[2], layout.edges, layout.longest)
            return y_MNH.view(q.shape[0], q.shape[2], *y_MNH.shape[1:]).transpose(1, 2)
        if layout.spans is None:
            return F.scaled_dot_product_attention(
                q, k, v, layout.mask, is_causal=layout.causal, enable_gqa=self.grouped
            )
        rows = []
        for row, spans in enumerate(layout.spans):
            parts = [
                self._document(*(x[row : row + 1, :, start:end] for x in (q, k, v)))
                for start, end in spans
            ]
            rows.append(torch.cat(parts, dim=2))
        return torch.cat(rows)

    def _document(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention within one document [1, N or K, T, H] of a packed row."""
        dtype = q.dtype
        if dtype == torch.bfloat16 and q.shape[2] <= _SHORT:
            q, k, v = q.float(), k.float(), v.float()
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.grouped)
        return y.to(dtype)
