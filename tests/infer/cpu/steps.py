"""Small models and batches for the tests of the CPU step, and the naive decoder's word on them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from m27.infer.cpu import CpuRunner
from m27.infer.runner import Batch, Wanted
from m27.model.config import SIZES, Config
from m27.model.decoder import Decoder

BLOCK = 16
CONFIGS = {
    "llama": replace(SIZES["tiny"], vocab_size=200, max_len=400),
    # Nothing here is a multiple of what the step works in: rows, groups, head width, vocabulary.
    "qwen3": Config(
        "qwen3", vocab_size=197, dim=40, n_layers=2, n_heads=6, n_kv_heads=2, head_dim=24, ffn_dim=72,
        norm_eps=1e-6, max_len=400,
    ),
    "one-head": Config(
        "llama", vocab_size=64, dim=24, n_layers=1, n_heads=1, n_kv_heads=1, head_dim=8, ffn_dim=20,
        max_len=400,
    ),
}  # fmt: skip
PRECISIONS = [
    ("float32", "float32"), ("bfloat16", "float16"), ("int8", "float16"), ("int4", "int8"),
    ("int8", "bfloat16"),
]  # fmt: skip


def model(name: str) -> Decoder:
    """A decoder of random weights, with scores far enough apart to have a favourite."""
    torch.manual_seed(3)
    made = Decoder(CONFIGS[name]).eval()
    with torch.no_grad():
        for p in made.parameters():
            if p.dim() > 1:
                p.mul_(4)
            else:
                p.add_(0.1 * torch.randn_like(p))
    return made


def ids(config: Config, count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, config.vocab_size, count).astype(np.int32)


def naive(decoder: Decoder, row: np.ndarray) -> np.ndarray:
    """Logits [T, V] of the oracle."""
    with torch.no_grad():
        return decoder(torch.from_numpy(row).long()[None])[0].numpy()


def step(
    rows: Sequence[np.ndarray], begins: Sequence[int], tables: Sequence[Sequence[int]],
    vocab: int, adapters: Sequence[int] = (), wanted: Sequence[Wanted] | None = None,
) -> Batch:  # fmt: skip
    """A batch of the next tokens of some sequences; every token's logits are asked for."""
    width = max(len(table) for table in tables)
    padded = np.full((len(rows), width), -1, np.int32)
    positions, slots = [], []
    for i, (row, begin) in enumerate(zip(rows, begins, strict=True)):
        padded[i, : len(tables[i])] = tables[i]
        at = np.arange(begin, begin + len(row), dtype=np.int32)
        positions.append(at)
        slots.append(padded[i, at // BLOCK] * BLOCK + at % BLOCK)
    starts = np.cumsum([0, *map(len, rows)]).astype(np.int32)
    if wanted is None:
        wanted = [Wanted(((0, vocab),), range(int(starts[-1])))]
    return Batch(
        np.concatenate(rows), np.concatenate(positions), np.concatenate(slots).astype(np.int32),
        starts, padded, np.array(list(adapters) or [-1] * len(rows), np.int32), wanted,
    )  # fmt: skip


def whole(runner: CpuRunner, row: np.ndarray, chunks: Sequence[int] = (), shuffle: int = 0) -> np.ndarray:
    """Logits [T, V] of one sequence in chunks of these lengths (one by default), in blocks of any order."""
    table = np.random.default_rng(shuffle).permutation(runner.blocks) if shuffle else np.arange(runner.blocks)
    table = table[: -(-len(row) // BLOCK)]
    out, begin = [], 0
    for length in chunks or [len(row)]:
        part = row[begin : begin + length]
        out += runner.run(step([part], [begin], [table], runner.config.vocab_size))
        begin += length
    return np.concatenate(out)
