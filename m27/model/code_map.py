"""Embedding rows of a codec's codes as a small learned map of the codes' own digits.

A new id has no meaning at first. The digits of a scalar-quantised code say which codes are alike,
so a map over them learns from a few million tokens what free rows would need far more for. On
export `rows()` is written out and the checkpoint is stock again. It knows digits, not media.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CodeMap(nn.Module):
    """Rows [size, dim] of all codes of a codebook with `levels` values in each digit.

    Code number = sum over i of digit_i * prod(levels[:i]) (digit 0 least significant), as in
    `m27.codec.quantize.FSQ`. A row is Linear(one-hot digits) + MLP(one-hot digits); at the start
    the MLP gives zero and rows have standard deviation `std` in every coordinate, the scale of text
    rows in the base model.
    """

    digits: Tensor

    def __init__(
        self, levels: tuple[int, ...], dim: int, hidden: int = 512, std: float = 0.1
    ) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(f"levels: {levels} must each be at least 2")
        self.levels = tuple(levels)
        self.size = math.prod(levels)
        inputs = sum(levels)
        self.linear = nn.Linear(inputs, dim, bias=False)
        self.up = nn.Linear(inputs, hidden)
        self.down = nn.Linear(hidden, dim, bias=False)
        if not self.linear.weight.is_meta:
            # One entry of each digit's block is added, so the variances add up to std squared.
            nn.init.normal_(self.linear.weight, std=std / math.sqrt(len(levels)))
            nn.init.normal_(self.up.weight, std=1.0 / math.sqrt(len(levels)))
            nn.init.zeros_(self.down.weight)
        code, columns = torch.arange(self.size), []
        for level in self.levels:
            columns.append(F.one_hot(code % level, level))
            code = code // level
        # Follows from `levels`, so it is not stored; kept as bytes, it is small beside the rows.
        self.register_buffer("digits", torch.cat(columns, 1).to(torch.uint8), persistent=False)

    def rows(self) -> Tensor:
        """The rows [size, dim], in the dtype of the parameters; differentiable."""
        digits = self.digits.to(self.linear.weight.dtype)
        out: Tensor = self.linear(digits) + self.down(F.silu(self.up(digits)))
        return out

    def forward(self) -> Tensor:
        """Same as `rows`."""
        return self.rows()
