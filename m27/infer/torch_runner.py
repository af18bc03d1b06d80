"""Steps through torch: for every device and every family, and the reference of the fast runners.

It runs the decoder's own modules over the tokens of a step laid end to end, with keys and values in
a paged cache. On CUDA, steps that only decode are captured as graphs: fused ones (`m27.infer.cuda`)
where each sequence computes one token, else those of `m27.infer.graphs`.

Shapes: T tokens, S sequences, L tokens of the longest, D width, N query heads, K key heads, H head
width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m27.infer.cuda.graphs import FusedGraphs, fused
from m27.infer.graphs import Graphs, Padded
from m27.infer.runner import Adapter, Answered, Batch, RunnerError, Wanted
from m27.infer.sampler import ids_of
from m27.model.attention import Attention
from m27.model.decoder import Block, Decoder
from m27.model.layers import MLP, rotate

Pair = tuple[Tensor, Tensor]  # A [r, in], B [out, r]
Product = Callable[[Tensor, Tensor], Tensor]  # states, rows of the head -> scores


@dataclass
class Reading:
    """What some sequences of a step read: `tokens` (their places in T, each sequence's together) see
    the slots [S, L] of the cache, as far as `mask` [S, 1, tokens a sequence, L] says; None is all."""

    tokens: Tensor | slice
    slots_SL: Tensor
    mask: Tensor | None
    causal: bool = False


@dataclass
class Step:
    """One step's arrays on the device, the same for all layers."""

    ids_T: Tensor
    positions_T: Tensor
    slots_T: Tensor
    readings: list[Reading]
    adapted: Sequence[tuple[Mapping[str, Pair], Tensor]]  # an adapter's matrices, and its tokens


def block_bytes(model: Decoder, size: int, dtype: torch.dtype) -> int:
    """Bytes of one block of `size` tokens of the cache."""
    config = model.config
    return config.n_layers * 2 * config.n_kv_heads * config.head_dim * dtype.itemsize * size


class TorchRunner:
    """The runner over a decoder's modules; implements `m27.infer.runner.Runner`.

    `blocks` of `block_size` tokens, by default as many as `cache_bytes` hold; `cache_dtype` is that
    of the weights by default.
    """

    picks = True  # it finds the best ids itself, so that no logits leave the device

    def __init__(
        self,
        model: Decoder,
        blocks: int | None = None,
        block_size: int = 16,
        cache_bytes: int = 768 << 20,
        cache_dtype: torch.dtype | None = None,
    ) -> None:
        self.model = model.eval()
        self.config = model.config
        weight = model.output_weight
        self.device = weight.device
        dtype = cache_dtype or weight.dtype
        self.block_size = block_size
        self.blocks = blocks or max(1, cache_bytes // block_bytes(model, block_size, dtype))
        inner = model.get_parameter("model.layers.0.self_attn.k_proj.weight").shape[0]
        heads = inner // self.config.head_dim  # of this rank
        # One slot more: where what pads a step is written.
        shape = (self.config.n_layers, self.blocks * block_size + 1, heads, self.config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=self.device)
        self.values = torch.zeros(shape, dtype=dtype, device=self.device)
        self._adapters: dict[int, dict[str, Pair]] = {}
        self._graphs = Graphs(self) if self.device.type == "cuda" else None
        self.fused: FusedGraphs | None = fused(self)

    @torch.inference_mode()
    def run(self, batch: Batch) -> list[Answered]:
        """One step; see `Runner.run`."""
        if len(batch.ids) and not 0 <= int(batch.ids.min()) <= int(batch.ids.max()) < self._rows:
            raise RunnerError(f"ids must lie within 0..{self._rows - 1}")
        h_TD: Tensor | None = None
        product: Product = _product
        if self.fused is not None and self.fused.takes(batch):
            h_TD = self.fused.run(batch)
            product = product if h_TD is None else self.fused.scores
        if h_TD is None and self._graphs is not None and self._graphs.takes(batch):
            h_TD = self._graphs.run(batch)
        if h_TD is None:
            h_TD = self.hidden(self.plan(batch))
        return [self._answer(h_TD, wanted, product) for wanted in batch.wanted]

    @property
    def _rows(self) -> int:
        return self.model.output_weight.shape[0]

    def plan(self, batch: Batch) -> Step:
        """The batch as tensors, and what each of its sequences reads."""
        counts = np.diff(batch.starts)
        ones = np.flatnonzero(counts == 1)
        readings = []
        if len(ones):
            readings.append(self._read_ones(batch, ones))
        alike: dict[tuple[int, int], list[int]] = {}
        for number in np.flatnonzero(counts > 1).tolist():
            last = int(batch.positions[batch.starts[number + 1] - 1])
            alike.setdefault((int(counts[number]), last + 1), []).append(number)
        for (count, length), numbers in alike.items():
            readings.append(self._read_many(batch, numbers, count, length))
        adapted = []
        for number in sorted(set(batch.adapters.tolist()) - {-1}):
            if number not in self._adapters:
                raise RunnerError(f"there is no adapter {number}")
            tokens = np.flatnonzero(np.repeat(batch.adapters == number, counts))
            adapted.append((self._adapters[number], self._put(tokens)))
        ids, positions, slots = map(self._put, (batch.ids, batch.positions, batch.slots))
        return Step(ids, positions, slots, readings, adapted)

    def step_of(self, padded: Padded) -> Step:
        """A decoding step at a graph's shape, as tensors of its own."""
        rows = torch.arange(len(padded.ids), device=self.device)
        mask = torch.from_numpy(padded.seen).to(self.device)
        reading = Reading(rows, self._put(padded.read), mask)
        ids, positions, slots = map(self._put, (padded.ids, padded.positions, padded.slots))
        return Step(ids, positions, slots, [reading], [])

    def _put(self, array: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(array.astype(np.int64)).to(self.device, non_blocking=True)

    def _slots(self, table: np.ndarray[Any, Any], length: int) -> np.ndarray[Any, Any]:
        """Slots of the first `length` positions of tables [..., M]."""
        blocks = table[..., : -(-length // self.block_size), None].astype(np.int64)
        every = blocks * self.block_size + np.arange(self.block_size)
        return every.reshape(*table.shape[:-1], -1)[..., :length]

    def _read_ones(self, batch: Batch, ones: np.ndarray[Any, Any]) -> Reading:
        tokens = batch.starts[ones]
        lengths = batch.positions[tokens] + 1
        longest = int(lengths.max())
        slots_SL = self._slots(batch.tables[ones], longest)
        mask = None
        if int(lengths.min()) < longest:
            seen_SL = np.arange(longest) < lengths[:, None]
            slots_SL = np.where(seen_SL, slots_SL, 0)
            mask = torch.from_numpy(seen_SL[:, None, None]).to(self.device)
        return Reading(self._put(tokens), self._put(slots_SL), mask)

    def _read_many(self, batch: Batch, numbers: list[int], count: int, length: int) -> Reading:
        """What sequences read that compute `count` tokens each, and then are `length` long."""
        slots_SL = self._put(self._slots(batch.tables[numbers], length))
        start = int(batch.starts[numbers[0]])
        tokens: Tensor | slice = slice(start, start + count)
        if len(numbers) > 1:
            places = batch.starts[numbers][:, None] + np.arange(count)
            tokens = self._put(places.ravel())
        if length == count:
            return Reading(tokens, slots_SL, None, causal=True)
        seen = np.arange(length) <= np.arange(length - count, length)[:, None]
        return Reading(tokens, slots_SL, torch.from_numpy(seen[None, None]).to(self.device))

    def hidden(self, step: Step) -> Tensor:
        """The final norm's states [T, D] of a step; keys and values are written."""
        model = self.model.model
        x_TD = self.model.embed(step.ids_T)
        angles = model.rotary(step.positions_T[None], x_TD.dtype)
        for number, block in enumerate(model.layers):
            assert isinstance(block, Block)
            name = f"model.layers.{number}"
            h_TD = block.input_layernorm(x_TD)
            x_TD = x_TD + self._attention(block.self_attn, h_TD, angles, step, name)
            h_TD = block.post_attention_layernorm(x_TD)
            x_TD = x_TD + self._mlp(block.mlp, h_TD, step, f"{name}.mlp")
        out: Tensor = model.norm(x_TD)
        return out

    def _mlp(self, mlp: nn.Module, h_TD: Tensor, step: Step, name: str) -> Tensor:
        if not isinstance(mlp, MLP):
            out: Tensor = mlp(h_TD[None])[0][0]
            return out
        gate = self._project(mlp.gate_proj, h_TD, step, f"{name}.gate_proj")
        up = self._project(mlp.up_proj, h_TD, step, f"{name}.up_proj")
        return self._project(mlp.down_proj, F.silu(gate) * up, step, f"{name}.down_proj")

    def _project(self, linear: nn.Module, x_TD: Tensor, step: Step, name: str) -> Tensor:
        """A matrix product, with what each adapter adds to its tokens."""
        y: Tensor = linear(x_TD)
        for matrices, tokens in step.adapted:
            if name in matrices:
                a, b = matrices[name]
                y = y.index_add(0, tokens, F.linear(F.linear(x_TD[tokens], a), b))
        return y

    def _attention(
        self, attention: Attention, h_TD: Tensor, angles: Pair, step: Step, name: str
    ) -> Tensor:
        heads = (1, len(h_TD), -1, self.config.head_dim)
        parts = [
            self._project(getattr(attention, part), h_TD, step, f"{name}.self_attn.{part}")
            for part in ("q_proj", "k_proj", "v_proj")
        ]
        q, k, v = (part.view(heads) for part in parts)
        if attention.qk_norm:
            q, k = attention.q_norm(q), attention.k_norm(k)
        q_TNH, k_TKH = rotate(q, *angles)[0], rotate(k, *angles)[0]
        keys, values = self.keys[attention.layer], self.values[attention.layer]
        keys[step.slots_T] = k_TKH.to(keys.dtype)
        values[step.slots_T] = v[0].to(values.dtype)
        y_TNH = torch.empty_like(q_TNH)
        for reading in step.readings:
            y_TNH[reading.tokens] = attend(q_TNH[reading.tokens], keys, values, reading)
        return self._project(attention.o_proj, y_TNH.flatten(1), step, f"{name}.self_attn.o_proj")

    def _answer(self, h_TD: Tensor, wanted: Wanted, product: Product) -> Answered:
        weight = self.model.output_weight
        if not wanted.spans or wanted.spans[-1][1] > len(weight):
            raise RunnerError(f"logits of {wanted.spans} were asked for; there are {len(weight)}")
        tokens = list(wanted.tokens)
        if tokens == list(range(len(h_TD))):
            h_RD = h_TD
        else:
            h_RD = h_TD[torch.as_tensor(tokens, device=self.device)]
        parts = [product(h_RD, weight[start:end]) for start, end in wanted.spans]
        logits_RK = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        if wanted.best:
            places: np.ndarray[Any, Any] = logits_RK.argmax(-1).cpu().numpy()
            return ids_of(wanted.spans)[places]
        return logits_RK.float().cpu().numpy()

    def add_adapter(self, adapter: Adapter) -> int:
        """Keep an adapter; see `Runner.add_adapter`."""
        weight = self.model.output_weight
        matrices: dict[str, Pair] = {}
        for name, pair in adapter.matrices.items():
            try:
                shape = self.model.get_parameter(f"{name}.weight").shape
            except AttributeError:
                raise RunnerError(f"adapter {adapter.name}: the model has no {name}") from None
            a, b = (torch.from_numpy(np.array(x)).to(weight) for x in pair)
            linear = isinstance(self.model.get_submodule(name), nn.Linear)
            if not linear or a.shape[0] != b.shape[1] or (len(b), a.shape[1]) != tuple(shape):
                found = (tuple(a.shape), tuple(b.shape))
                raise RunnerError(f"adapter {adapter.name}: {name} is {tuple(shape)}, not {found}")
            matrices[name] = (a, b)
        number = next(n for n in range(len(self._adapters) + 1) if n not in self._adapters)
        self._adapters[number] = matrices
        return number

    def remove_adapter(self, number: int) -> None:
        """Let go of an adapter."""
        self._adapters.pop(number, None)

    def facts(self) -> dict[str, Any]:
        """Device, threads, precision and bytes."""
        weights = sum(p.numel() * p.element_size() for p in self.model.parameters())
        return {
            "runner": "torch", "device": str(self.device), "threads": torch.get_num_threads(),
            "precision": str(self.model.output_weight.dtype).removeprefix("torch."),
            "cache": str(self.keys.dtype).removeprefix("torch."), "weight_bytes": weights,
            "cache_bytes": 2 * self.keys.numel() * self.keys.element_size(),
        }  # fmt: skip


def _product(h_RD: Tensor, weight_KD: Tensor) -> Tensor:
    return F.linear(h_RD, weight_KD)


def attend(q_TNH: Tensor, keys: Tensor, values: Tensor, reading: Reading) -> Tensor:
    """Attention of the tokens of a reading, [T, N, H], over slots of the cache [slots, K, H]."""
    count, length = reading.slots_SL.shape
    q = q_TNH.view(count, -1, *q_TNH.shape[1:]).transpose(1, 2)
    flat = reading.slots_SL.flatten()
    shape = (count, length, *keys.shape[1:])
    k = keys.index_select(0, flat).view(shape).transpose(1, 2).to(q.dtype)
    v = values.index_select(0, flat).view(shape).transpose(1, 2).to(q.dtype)
    y = F.scaled_dot_product_attention(
        q, k, v, reading.mask, is_causal=reading.causal, enable_gqa=q.shape[1] != k.shape[1]
    )
    return y.transpose(1, 2).reshape(q_TNH.shape)
