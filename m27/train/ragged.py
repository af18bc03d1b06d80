"""Attention of packed documents on a GPU, branches included, by the kernel for ragged rows that torch carries.

Every run of tokens of one document and branch is a sequence of queries. Its keys are its own tokens or, for a
branch, the document's shared beginning and its own; the kernel's causal mask lies against the end of the keys,
so a branch sees the whole beginning. Planned on the host. The oracle is `attend_slowly`, run by run.

Shapes: N tokens of a micro-batch, S tokens of all keys, R runs, H head width; heads in the middle.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from m27.model.attention import document_edges

Way = Literal["grouped", "wide", "none"]


@dataclass(frozen=True)
class Ragged:
    """Edges [R + 1] of the runs among the queries and among the keys (int32), the longest of each, and
    which token each of the S keys is; None where they are the tokens themselves."""

    query_edges: Tensor
    key_edges: Tensor
    longest_query: int
    longest_key: int
    keys_S: Tensor | None = None

    def to(self, device: torch.device) -> Ragged:
        """The same on a device; nothing waits for it."""

        def moved(tensor: Tensor) -> Tensor:
            if device.type != "cuda":
                return tensor.to(device)
            return tensor.pin_memory().to(device, non_blocking=True)

        return replace(
            self, query_edges=moved(self.query_edges), key_edges=moved(self.key_edges),
            keys_S=None if self.keys_S is None else moved(self.keys_S),
        )  # fmt: skip


def plan(documents_BT: Tensor, branches_BT: Tensor | None = None) -> Ragged:
    """The runs of rows of documents [B, T] (on the host); a document ends with its row."""
    if branches_BT is None:
        whole, longest = document_edges(documents_BT)
        return Ragged(whole, whole, longest, longest)
    documents = documents_BT.numpy()
    change = np.ones(documents.shape, dtype=bool)
    change[:, 1:] = documents[:, 1:] != documents[:, :-1]
    branches = branches_BT.numpy()
    begins = np.flatnonzero(change)  # of documents
    change[:, 1:] |= branches[:, 1:] != branches[:, :-1]
    edges = np.append(np.flatnonzero(change), documents.size)
    starts, lengths = edges[:-1], np.diff(edges)
    # The shared beginning of a run's document: the document's first run, unless that is the run itself
    # or a branch already.
    first = begins[np.searchsorted(begins, starts, side="right") - 1]
    first_run = np.searchsorted(starts, first)
    shared = np.where((first_run != np.arange(len(starts))), lengths[first_run], 0)
    shared = np.where(branches.flatten()[first] == 0, shared, 0)
    key_lengths = shared + lengths
    key_edges = np.append(0, np.cumsum(key_lengths))
    within = np.arange(key_edges[-1]) - np.repeat(key_edges[:-1], key_lengths)
    run_shared = np.repeat(shared, key_lengths)
    keys = np.where(
        within < run_shared,
        np.repeat(first, key_lengths) + within,
        np.repeat(starts, key_lengths) + within - run_shared,
    )
    return Ragged(
        torch.from_numpy(edges.astype(np.int32)), torch.from_numpy(key_edges.astype(np.int32)),
        int(lengths.max()), int(key_lengths.max()), torch.from_numpy(keys),
    )  # fmt: skip


def attend(q_NGH: Tensor, k_NKH: Tensor, v_NKH: Tensor, where: Ragged) -> Tensor:
    """Attention [N, G, H] of G query heads over K key heads, by the fastest way that is right here."""
    way = ways(q_NGH.device) if q_NGH.device.type == "cuda" else "none"
    if where.keys_S is not None:
        k_NKH, v_NKH = k_NKH.index_select(0, where.keys_S), v_NKH.index_select(0, where.keys_S)
    if way == "none":
        return attend_slowly(q_NGH, k_NKH, v_NKH, where)
    if way == "wide":
        group = q_NGH.shape[1] // k_NKH.shape[1]
        k_NKH, v_NKH = (x.repeat_interleave(group, 1) for x in (k_NKH, v_NKH))
    return _kernel(q_NGH, k_NKH, v_NKH, where)


def _kernel(q: Tensor, k: Tensor, v: Tensor, where: Ragged) -> Tensor:
    out: Tensor = torch.ops.aten._flash_attention_forward(
        q, k, v, where.query_edges, where.key_edges, where.longest_query, where.longest_key,
        0.0, True, False,
    )[0]  # fmt: skip
    return out


def attend_slowly(q_NGH: Tensor, k_SKH: Tensor, v_SKH: Tensor, where: Ragged) -> Tensor:
    """The same run by run, in the dtype given; keys are laid out already."""
    parts = []
    queries, keys = where.query_edges.tolist(), where.key_edges.tolist()
    for i in range(len(queries) - 1):
        q = q_NGH[queries[i] : queries[i + 1]].transpose(0, 1)
        k = k_SKH[keys[i] : keys[i + 1]].transpose(0, 1)
        v = v_SKH[keys[i] : keys[i + 1]].transpose(0, 1)
        seen = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device)
        seen = seen.tril(k.shape[1] - q.shape[1])
        y = F.scaled_dot_product_attention(q[None], k[None], v[None], seen, enable_gqa=True)
        parts.append(y[0].transpose(0, 1))
    return torch.cat(parts)


@lru_cache(maxsize=8)
@torch.enable_grad()  # whoever asks first may not want gradients
def ways(device: torch.device) -> Way:
    """How the kernel can be called on `device`: with fewer key heads than query heads, with as many, or
    not at all. Tried once on a small case with branches, forwards and backwards, since builds differ."""
    documents = torch.tensor([[0] * 70 + [1] * 26, [2] * 96])
    branches = torch.tensor([[0] * 30 + [1] * 25 + [2] * 15 + [0] * 26, [0] * 96])
    where = plan(documents, branches).to(device)
    generator = torch.Generator().manual_seed(0)
    heads = (6, 2, 2, 6)
    q, k, v, g = (torch.randn(192, n, 64, generator=generator).to(device) for n in heads)
    wholes = [x.bfloat16().float().requires_grad_() for x in (q, k, v)]
    keys = where.keys_S
    assert keys is not None  # there are branches
    wanted = attend_slowly(
        wholes[0], wholes[1].index_select(0, keys), wholes[2].index_select(0, keys), where
    )
    wanted.backward(g)
    for way in ("grouped", "wide"):
        halves = [x.bfloat16().requires_grad_() for x in (q, k, v)]
        wide = [halves[0], *(x.index_select(0, keys) for x in halves[1:])]
        if way == "wide":
            wide[1:] = [x.repeat_interleave(3, 1) for x in wide[1:]]
        try:
            found = _kernel(wide[0], wide[1], wide[2], where)
            found.backward(g.bfloat16())
        except (RuntimeError, TypeError):
            continue
        pairs = [(found, wanted), *((h.grad, w.grad) for h, w in zip(halves, wholes, strict=True))]
        if all(
            a is not None and b is not None and bool(((a.float() - b).norm() / b.norm()) < 0.02)
            for a, b in pairs
        ):
            return way
    return "none"
