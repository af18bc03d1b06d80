"""How much arithmetic a step of training needs, and how much a device can do: what MFU is made of.

Counted is what the model asks for, not what a pass spends: no recomputation, no padding of documents to one another,
of the vocabulary the rows that a target is scored among. A multiplication and an addition are two.

Shapes: N = B*T tokens of a batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache

import torch

from m27.data.loader import Batch
from m27.model.config import Config, size_row
from m27.train.cpu.half import Half
from m27.train.scoring import Plan

# Dense products in bfloat16, operations a second, as the makers state them; the first name found counts.
PEAKS = {
    "B200": 2.25e15, "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12,
    "L4": 121e12, "A10G": 70e12, "A10": 125e12, "A6000": 155e12, "RTX 5090": 209e12, "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}  # fmt: skip


class Flops:
    """Operations of batches of a run that trains the whole `body` ("full") or adapters on it.

    A parameter costs a token 2 forwards, 2 for the gradient of what came in, and 2 for its own where it is
    trained; a pair of tokens that see each other 4 forwards and 8 backwards a head's width (Kaplan et al. 2020).
    """

    def __init__(self, config: Config, full: bool, rows: bool) -> None:
        c = config
        row = size_row("", c)
        self._body = row.active_parameters - c.vocab_size * c.dim * (1 if c.tied else 2)
        self._each = 6 if full else 4
        self._head = (6 if rows else 4) * c.dim
        self._pair = 12 * c.n_layers * c.n_heads * c.head_dim
        self._vocabulary = c.vocab_size

    def of(self, batch: Batch, plan: Plan) -> float:
        """Operations of a batch that lies on the host: forwards and backwards."""
        pairs = int(batch.positions_BT.sum()) + batch.positions_BT.numel()
        scored = 0
        for group in plan.groups:
            spans = group.spans or ((0, self._vocabulary),)
            scored += len(group.index_m) * sum(end - begin for begin, end in spans)
        tokens = batch.ids_BT.numel()
        return float(tokens * self._body * self._each + pairs * self._pair + scored * self._head)


@lru_cache(maxsize=4)
def peak(device: torch.device, dtype: torch.dtype, library: Half | None = None) -> float | None:
    """Operations a second that the device does at most: stated for a known GPU in bfloat16, else None;
    measured on a CPU, with as many threads as are set, by the fastest of a few products of every kind that a
    run in `dtype` may use: torch's, and those of the `library` that its pass has."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        if dtype == torch.float32:
            return None
        return next((value for part, value in PEAKS.items() if part in name), None)
    if device.type != "cpu":
        return None
    size, best = 1024, float("inf")
    a = torch.ones(size, size, dtype=dtype)
    ways: list[Callable[[], object]] = [lambda: a @ a]
    if dtype == torch.bfloat16:
        wide = a.float()
        ways.append(lambda: wide @ wide)
        if library is not None:
            ways.append(lambda: library.product(a, a, wide))
    for way in ways:
        for _ in range(6):
            begun = time.perf_counter()
            way()
            best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best
