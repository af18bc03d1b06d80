"""Captions of sounds against single codes: what is heard must be readable from the codes one by one.

Contrastive, against a hashed bag of words, with further captions of the corpus as negatives,
because a small batch has few. The head sees one code at a time and averages over the sounding
codes: the language model will read a code through a small map of exactly that code.

Shape suffixes: B batch, N codes, D latent dimensions, E joint space, S captioned spans, C captions.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BUCKETS = 8192  # of the hashed bag of words

Span = tuple[int, int, int, str]  # row of the batch, first code, code after the last, caption


@lru_cache(maxsize=1 << 16)
def bag(caption: str) -> tuple[int, ...]:
    """Buckets of a caption's words, in the order of the words; of no words, bucket 0."""
    words = re.findall(r"[a-z0-9']+", caption.lower())
    digests = (hashlib.md5(word.encode(), usedforsecurity=False).digest() for word in words)
    return tuple(int.from_bytes(digest[:6], "big") % BUCKETS for digest in digests) or (0,)


class CaptionHead(nn.Module):
    """Single codes → the joint space with captions. Not shipped."""

    def __init__(self, dim: int, wide: int = 384, joint: int = 192) -> None:
        super().__init__()
        self.code = nn.Sequential(nn.Linear(dim, wide), nn.SiLU(), nn.Linear(wide, wide), nn.SiLU())
        self.out = nn.Linear(wide, joint)
        self.words = nn.EmbeddingBag(BUCKETS, joint, mode="mean")
        self.scale = nn.Parameter(torch.tensor(2.5))

    def sounds(self, q_BND: Tensor, sounding_BN: Tensor, spans: Sequence[Span]) -> Tensor:
        """Unit vectors ``[S, E]`` of the spans: means over their sounding codes."""
        f_BNE = self.code(q_BND)
        place = torch.arange(q_BND.shape[1])
        rows, first, last = torch.tensor([span[:3] for span in spans]).T
        inside_SN = ((place >= first[:, None]) & (place < last[:, None])).to(q_BND.device)
        rows = rows.to(q_BND.device)
        weight_SN = (inside_SN & sounding_BN[rows]).to(f_BNE)
        total_SE = torch.einsum("sn,sne->se", weight_SN, f_BNE[rows])
        means = total_SE / weight_SN.sum(1, keepdim=True).clamp_min(1)
        return F.normalize(self.out(means).float(), dim=-1)

    def texts(self, captions: Sequence[str]) -> Tensor:
        """Unit vectors ``[C, E]`` of captions."""
        bags = [bag(caption) for caption in captions]
        device = self.words.weight.device
        ids = torch.tensor([number for one in bags for number in one], device=device)
        ends = torch.tensor([0, *(len(one) for one in bags[:-1])], device=device).cumsum(0)
        return F.normalize(self.words(ids, ends).float(), dim=-1)

    def forward(
        self, q_BND: Tensor, sounding_BN: Tensor, spans: Sequence[Span], others: Sequence[str]
    ) -> Tensor:
        """Contrastive loss of the spans' captions, ``others`` being negatives; 0 without spans.

        Equal captions are no negatives of one another.
        """
        if not spans:
            return q_BND.new_zeros(())
        own = [text for *_, text in spans]
        captions = [*own, *others]
        numbers = {text: i for i, text in enumerate(dict.fromkeys(captions))}
        label = torch.tensor([numbers[text] for text in captions], device=q_BND.device)
        sounds_SE, texts_CE = self.sounds(q_BND, sounding_BN, spans), self.texts(captions)
        logits = sounds_SE @ texts_CE.T * self.scale.clamp(max=4.6).exp()
        count = len(own)
        here = torch.arange(count, device=q_BND.device)
        same = label[:count, None] == label[None]
        same[here, here] = False
        logits = logits.masked_fill(same, float("-inf"))
        back = F.cross_entropy(logits[:, :count].T, here)
        return (2 * F.cross_entropy(logits, here) + back) / 3
