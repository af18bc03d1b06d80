"""Attention within the documents of a packed micro-batch, forward and backward, as batched matrix products.

Documents are padded to a multiple of a small step and those of one padded length form one batch, so the cost
follows the squares of the documents, whatever the rows; long documents go block by block, which skips most
of the future. The oracle is scaled_dot_product_attention over one masked row.

Shapes: N tokens, n documents of a group, L their padded length, K key heads, G query heads a key head, H head
width, E = G*H.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_STEP = 32  # documents are padded to a multiple of this: fewer shapes, so fewer kernels to prepare
_BLOCK = 256  # queries of a longer document are taken in blocks of this many


@dataclass(frozen=True)
class Group:
    """Documents of one padded length: which [token, key head] rows they read, which of them are padding.

    A document of several branches is a group of its own, with masks of its own.
    """

    length: int
    rows: Tensor
    padding: Tensor
    masks: dict[tuple[int, int], Tensor] | None = None


@dataclass(frozen=True)
class Layout:
    """How the tokens of a micro-batch gather into groups, and `back`, the way of every row home."""

    groups: tuple[Group, ...]
    back: Tensor
    masks: dict[tuple[int, int], Tensor]


Saved = list[tuple[Tensor, Tensor, Tensor, list[Tensor]]]


def spans(documents_BT: Tensor) -> list[tuple[int, int]]:
    """Half-open ranges [start, end) of the documents (runs of equal numbers) over all rows, end to end."""
    flat = documents_BT.reshape(-1)
    change = torch.ones_like(flat, dtype=torch.bool)
    change[1:] = flat[1:] != flat[:-1]
    change[:: documents_BT.shape[1]] = True
    starts: list[int] = change.nonzero().flatten().tolist()
    return list(zip(starts, [*starts[1:], flat.numel()], strict=True))


def layout(
    documents_BT: Tensor,
    kv_heads: int,
    group: int,
    dtype: torch.dtype,
    step: int = _STEP,
    branches_BT: Tensor | None = None,
) -> Layout:
    """Plan the attention of rows of documents [B, T] for `group` query heads on each of `kv_heads`.

    With `branches` [B, T] a token sees of its document the branch 0 and its own.
    """
    by_length: dict[tuple[int, int], list[tuple[int, int]]] = {}
    branches_N = None if branches_BT is None else branches_BT.flatten()
    for start, end in spans(documents_BT):
        forked = branches_N is not None and bool(branches_N[start:end].any())
        # Alone where it is forked: no two such documents have the same mask.
        key = (-(-(end - start) // step) * step, start if forked else -1)
        by_length.setdefault(key, []).append((start, end))
    device = documents_BT.device
    back = torch.empty(documents_BT.numel(), kv_heads, dtype=torch.long)
    heads = torch.arange(kv_heads)
    groups: list[Group] = []
    masks: dict[tuple[int, int], Tensor] = {}
    base = 0
    for (length, forked_at), members in sorted(by_length.items()):
        rows, padding = [], []
        for start, end in members:
            # Order within a document: key head, then token; padding reads the document's first token.
            token = torch.arange(start, start + length)
            real = end - start
            token[real:] = start
            rows.append((token[None] * kv_heads + heads[:, None]).flatten())
            place = base + heads[None] * length + torch.arange(real)[:, None]
            back[start:end] = place
            lost = base + heads[:, None] * length + torch.arange(real, length)
            padding.append((lost - _first(groups)).flatten())
            base += kv_heads * length
        own: dict[tuple[int, int], Tensor] = {}
        for first, last in blocks(length):
            mask = _mask(last - first, last, group, dtype, device)
            if forked_at < 0:
                masks[last - first, last] = mask
            elif branches_N is not None:
                start, end = members[0]
                hidden = _other_branches(branches_N[start:end], first, last)
                own[last - first, last] = mask.masked_fill(
                    hidden.repeat_interleave(group, dim=0).to(device), float("-inf")
                )
        groups.append(
            Group(length, torch.cat(rows).to(device), torch.cat(padding).to(device), own or None)
        )
    return Layout(tuple(groups), back.flatten().to(device), masks)


def _first(groups: list[Group]) -> int:
    return sum(group.rows.numel() for group in groups)


def blocks(length: int) -> list[tuple[int, int]]:
    """The query blocks [first, last) of a document of padded `length`; block b sees keys [0, last)."""
    return [(i, min(i + _BLOCK, length)) for i in range(0, length, _BLOCK)]


def _mask(queries: int, keys: int, group: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Additive [queries*group, keys]: -inf where a key lies in a query's future."""
    future = torch.full((queries, keys), float("-inf"), dtype=dtype, device=device)
    return future.triu(keys - queries + 1).repeat_interleave(group, dim=0)


def _other_branches(branches_L: Tensor, first: int, last: int) -> Tensor:
    """[queries, keys]: whether a key is of another branch than the query's and not of the beginning."""
    padded = torch.zeros(last, dtype=branches_L.dtype)
    real = min(last, len(branches_L))
    padded[:real] = branches_L[:real].cpu()
    return (padded[None] != 0) & (padded[None] != padded[first:last, None])


def attend(q_NKE: Tensor, k_NKH: Tensor, v_NKH: Tensor, layout: Layout) -> tuple[Tensor, Saved]:
    """Attend; `q` is already scaled. Out: [N, K*E] and what the backward pass needs."""
    tokens, kv_heads, width = k_NKH.shape
    q_rows = q_NKE.reshape(tokens * kv_heads, -1)
    k_rows, v_rows = k_NKH.view(-1, width), v_NKH.view(-1, width)
    saved: Saved = []
    outs = []
    for group in layout.groups:
        length = group.length
        # Rows of q: token, then query head; so one gather puts all three in the layout of the products.
        q = q_rows.index_select(0, group.rows).view(-1, length * (q_rows.shape[1] // width), width)
        k = k_rows.index_select(0, group.rows).view(-1, length, width)
        v = v_rows.index_select(0, group.rows).view(-1, length, width)
        heads = q.shape[1] // length
        weights, out = [], torch.empty_like(q)
        for first, last in blocks(length):
            masks = group.masks or layout.masks
            mask = masks[last - first, last].expand(q.shape[0], -1, -1)
            window = slice(first * heads, last * heads)
            scores = torch.baddbmm(mask, q[:, window], k[:, :last].transpose(1, 2))
            p = torch.softmax(scores, dim=-1)
            out[:, window] = torch.bmm(p, v[:, :last])
            weights.append(p)
        saved.append((q, k, v, weights))
        outs.append(out.view(-1, q_rows.shape[1]))
    gathered = torch.cat(outs) if len(outs) > 1 else outs[0]
    return gathered.index_select(0, layout.back).view(tokens, -1), saved


def attend_backward(g_NO: Tensor, saved: Saved, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q [N, K, E], k and v [N, K, H] from that of the output [N, K*E]."""
    tokens = g_NO.shape[0]
    kv_heads = layout.back.numel() // tokens
    g_rows = g_NO.reshape(tokens * kv_heads, -1)
    grads: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for group, (q, k, v, weights) in zip(layout.groups, saved, strict=True):
        heads = q.shape[1] // group.length
        g = g_rows.index_select(0, group.rows)
        # Padding read a real row; its gradient must not reach the document's keys a second time.
        g.index_fill_(0, group.padding, 0.0)
        g = g.view(q.shape)
        gq = torch.empty_like(q)
        # The last block sees every key, so going backwards it gives gk and gv their full extent.
        gk = gv = None
        for (first, last), p in reversed(list(zip(blocks(group.length), weights, strict=True))):
            window = slice(first * heads, last * heads)
            g_block = g[:, window]
            gv_block = torch.bmm(p.transpose(1, 2), g_block)
            gp = torch.bmm(g_block, v[:, :last].transpose(1, 2))
            gs = torch.ops.aten._softmax_backward_data(gp, p, -1, p.dtype)
            gq[:, window] = torch.bmm(gs, k[:, :last])
            gk_block = torch.bmm(gs.transpose(1, 2), q[:, window])
            if gk is None or gv is None:
                gk, gv = gk_block, gv_block
            else:
                gk[:, :last] += gk_block
                gv[:, :last] += gv_block
        assert gk is not None
        assert gv is not None
        width = k.shape[-1]
        grads[0].append(gq.view(-1, heads * width))
        grads[1].append(gk.view(-1, width))
        grads[2].append(gv.view(-1, width))
    gq, gk, gv = (torch.cat(part).index_select(0, layout.back) for part in grads)
    shape = (tokens, kv_heads, -1)
    return gq.view(shape), gk.view(shape), gv.view(shape)
