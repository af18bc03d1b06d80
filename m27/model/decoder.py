"""The decoder: embed, blocks, final norm, logits. Llama, Qwen3 and Qwen3-MoE from one definition.

Parameters carry the names of the stock Hugging Face checkpoints (experts are held stacked and split
on disk). It knows ids and vectors only: not what an id means, nor where weights come from.

Shapes: B batch, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from m27.model.attention import (
    Attention,
    Cache,
    CacheError,
    Layout,
    cached_layout,
    packed_layout,
    restarting_positions,
)
from m27.model.config import Config
from m27.model.layers import MLP, RMSNorm, Rotary
from m27.model.moe import MoE


class Block(nn.Module):
    """One layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp: MLP | MoE = MoE(config) if config.n_experts else MLP(config.dim, config.ffn_dim)
        self.input_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.post_attention_layernorm = RMSNorm(config.dim, config.norm_eps)

    def forward(
        self,
        x_BTD: Tensor,
        angles: tuple[Tensor, Tensor],
        layout: Layout,
        cache: Cache | None,
    ) -> tuple[Tensor, Tensor | None]:
        """[B, T, D] to [B, T, D], and the router logits [B*T, E] when the layer has experts."""
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), angles, layout, cache)
        h_BTD = self.post_attention_layernorm(x_BTD)
        if isinstance(self.mlp, MoE):
            y_BTD, router = self.mlp(h_BTD)
            return x_BTD + y_BTD, router
        return x_BTD + self.mlp(h_BTD), None


class Backbone(nn.Module):
    """Embedding, blocks and final norm, under the names of the stock checkpoints."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        weight = torch.empty(config.vocab_size, config.dim)
        # To draw values that nobody sees, torch imports its compiler: seconds, and 70 MB.
        given = weight if weight.is_meta else None
        self.embed_tokens = nn.Embedding(config.vocab_size, config.dim, _weight=given)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.rotary = Rotary(config.head_dim, config.rope_theta)


class Decoder(nn.Module):
    """A decoder-only transformer with a language-model head.

    `recompute` trades time for memory in training: blocks are run again in the backward pass.
    Weights are drawn from N(0, 0.02), norms are one; build under `torch.device("meta")` to skip
    that.
    """

    def __init__(self, config: Config, recompute: bool = False) -> None:
        super().__init__()
        self.config = config
        self.recompute = recompute
        self.model = Backbone(config)
        if not config.tied:
            self.lm_head = nn.Linear(config.dim, config.vocab_size, bias=False)
        for parameter in self.parameters():
            if parameter.dim() > 1 and not parameter.is_meta:
                nn.init.normal_(parameter, std=0.02)

    @property
    def output_weight(self) -> Tensor:
        """The rows [V, D] that score the vocabulary: the head's, or the embedding's when tied."""
        return self.model.embed_tokens.weight if self.config.tied else self.lm_head.weight

    def embed(self, ids_BT: Tensor) -> Tensor:
        """Vectors [B, T, D] of ids [B, T]."""
        out: Tensor = self.model.embed_tokens(ids_BT)
        return out

    def hidden(
        self,
        x_BTD: Tensor,
        positions_BT: Tensor | None = None,
        documents_BT: Tensor | None = None,
        cache: Cache | None = None,
        routing: list[Tensor] | None = None,
    ) -> Tensor:
        """Run the blocks over vectors [B, T, D]; the final norm's states [B, T, D] come back.

        `documents_BT` numbers each token's document; a document is a run of equal numbers,
        attention stays within it and its positions begin at 0; -1 is padding, whose states mean
        nothing. With a `cache` the tokens follow what it holds, and `documents_BT` may only mark
        padding at the end of a row, which is then not kept. `routing` collects router logits [B*T,
        E] of each expert layer. `documents_BT` may lie on the host whatever the device: attention
        is planned there, so nobody waits for the device. Raises `CacheError` for several documents
        in a cached row or a row that is too long.
        """
        if cache is None:
            layout = packed_layout(documents_BT, x_BTD.device)
            if positions_BT is None:
                positions_BT = _positions(x_BTD, documents_BT).to(x_BTD.device)
        else:
            tokens = x_BTD.shape[1]
            counts = _kept(documents_BT, tokens, len(cache.lengths))
            cache.reserve(tokens)
            layout = cached_layout(cache, tokens, x_BTD.device)
            if positions_BT is None:
                held = torch.tensor(cache.lengths, device=x_BTD.device)
                positions_BT = held[:, None] + torch.arange(tokens, device=x_BTD.device)
        angles = self.model.rotary(positions_BT, x_BTD.dtype)
        for block in self.model.layers:
            if self.recompute and torch.is_grad_enabled():
                x_BTD, router = checkpoint(block, x_BTD, angles, layout, cache, use_reentrant=False)
            else:
                x_BTD, router = block(x_BTD, angles, layout, cache)
            if routing is not None and router is not None:
                routing.append(router)
        if cache is not None:
            cache.advance(counts)
        out: Tensor = self.model.norm(x_BTD)
        return out

    def logits(self, h_BTD: Tensor) -> Tensor:
        """Scores [..., V] of states [..., D]."""
        return F.linear(h_BTD, self.output_weight)

    def forward(
        self,
        ids_BT: Tensor,
        positions_BT: Tensor | None = None,
        documents_BT: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Logits [B, T, V] of ids [B, T]; arguments as in `hidden`."""
        return self.logits(self.hidden(self.embed(ids_BT), positions_BT, documents_BT, cache))


def _positions(x_BTD: Tensor, documents_BT: Tensor | None) -> Tensor:
    if documents_BT is not None:
        return restarting_positions(documents_BT)
    return torch.arange(x_BTD.shape[1], device=x_BTD.device)[None]


def _kept(documents_BT: Tensor | None, tokens: int, batch: int) -> list[int]:
    """How many of the new tokens each row keeps: those before the padding (-1) at its end."""
    if documents_BT is None:
        return [tokens] * batch
    counts = []
    for number, row in enumerate(documents_BT.tolist()):
        count = sum(document >= 0 for document in row)
        if len(set(row[:count])) > 1 or any(document >= 0 for document in row[count:]):
            raise CacheError(f"row {number}: a cached row is one document, padded at its end")
        counts.append(count)
    return counts
