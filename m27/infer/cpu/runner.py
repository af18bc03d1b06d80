"""The CPU runner: a decoder's weights handed to the C++ step once, and steps as single calls.

It serves the dense families (Llama, Qwen3) in float32, bfloat16 (stored so, computed in float32), int8
and int4. Whatever the precision, a token's logits are the same to the last bit in a prompt, in chunks of
it or on its own, in any company, and with any number of threads.
"""

from __future__ import annotations

import ctypes
import os
import re
import weakref
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from m27.infer import quantize
from m27.infer.cpu import binding
from m27.infer.cpu.binding import CACHES, KINDS, Shape, Step, StepError, address
from m27.infer.cpu.drawing import Packed
from m27.infer.runner import Adapter, Answered, Batch, Floats, RunnerError, Wanted
from m27.model.config import Config
from m27.model.decoder import Decoder
from m27.model.gguf import Blocks

_PARTS = {
    "self_attn.q_proj": 0, "self_attn.k_proj": 1, "self_attn.v_proj": 2, "self_attn.o_proj": 3,
    "mlp.gate_proj": 4, "mlp.up_proj": 5, "mlp.down_proj": 6,
}  # fmt: skip
_VECTORS = {
    "input_layernorm": 0, "post_attention_layernorm": 1, "self_attn.q_norm": 2, "self_attn.k_norm": 3,
}  # fmt: skip
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+?)(?:\.weight)?")
_EMBED, _HEAD, _LAST = 7, 8, 4
# The parts that have a kind of their own, each with a matrix of it.
_KINDS = {"body": "mlp.up_proj.weight", "careful": "self_attn.o_proj.weight", "head": "lm_head.weight"}


class CpuRunner:
    """A `Runner` over the C++ step. Not for several threads at once."""

    def __init__(self, library: binding.Library, handle: int, config: Config, blocks: int) -> None:
        self.config = config
        self.blocks = blocks
        self.block_size = library.block
        self.draws = library.draws
        self._library = library
        self._handle = handle
        self._facts: dict[str, Any] = {}
        self._shapes: dict[str, tuple[int, int]] = {}
        self._close = weakref.finalize(self, library.raw.m27_free, handle)

    @classmethod
    def load(
        cls,
        source: Decoder | Mapping[str, Tensor | Blocks],
        config: Config | None = None,
        *,
        precision: str = "int8",
        cache: str = "auto",
        blocks: int = 512,
        threads: int = 0,
        importance: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> CpuRunner:
        """Hand a decoder, or its tensors by Hugging Face name (with `config`), to the step.

        `precision` is "float32", "bfloat16", "int8" or "int4" (see `quantize.kind_of`), `cache` "float32",
        "float16", "bfloat16", "int8" or "auto" (float32 for float32, else `Library.cache`). 0 threads are as
        many as this process may use. `importance`: what int4 is rounded by (`m27.model.importance`). Raises
        BuildError where the step cannot be compiled, RunnerError for what it does not serve.
        """
        if isinstance(source, Decoder):
            config, source = source.config, source.state_dict()
        if config is None:
            raise RunnerError("tensors come with their configuration")
        library = binding.library()
        if cache == "auto":
            cache = "float32" if precision == "float32" else library.cache
        _serve(config, precision, cache, blocks)
        if threads < 1:
            usable = getattr(os, "sched_getaffinity", None)
            threads = len(usable(0)) if usable else (os.cpu_count() or 1)
        kinds = {part: quantize.kind_of(name, precision) for part, name in _KINDS.items()}
        shape = Shape(
            vocab=config.vocab_size, dim=config.dim, layers=config.n_layers, heads=config.n_heads,
            kv_heads=config.n_kv_heads, head_dim=config.head_dim, ffn=config.ffn_dim,
            max_len=config.max_len, tied=config.tied, qk_norm=config.qk_norm, cache=CACHES[cache],
            blocks=blocks,
            threads=threads, **{part: KINDS[kind] for part, kind in kinds.items()},
        )  # fmt: skip
        frequencies = _frequencies(config)
        try:
            handle = library.call(
                "m27_new", ctypes.byref(shape), config.norm_eps, address(frequencies)
            )
        except StepError as error:
            raise RunnerError(str(error)) from None
        assert handle is not None
        runner = cls(library, handle, config, blocks)
        runner._fill(source, precision, threads, importance)
        runner._facts = {
            "device": "cpu",
            "backend": f"cpu ({library.level})",
            "threads": threads,
            "precision": precision,
            "cache": cache,
            "weight_bytes": library.raw.m27_bytes(handle, 0),
            "cache_bytes": library.raw.m27_bytes(handle, 1),
        }
        return runner

    def run(self, batch: Batch) -> list[Answered]:
        """One step, as `Runner.run`. A batch that is not in order is refused; nothing is written then."""
        arrays = [
            _ints(batch, name)
            for name in ("ids", "positions", "slots", "starts", "tables", "adapters")
        ]
        ids, positions, slots, starts, tables, adapters = arrays
        sequences = len(adapters)
        if not len(ids) == len(positions) == len(slots):
            raise RunnerError("ids, positions and slots are not of one length")
        if len(starts) != sequences + 1 or tables.ndim != 2 or len(tables) != sequences:
            raise RunnerError("starts, tables and adapters are not of the same number of sequences")
        rows, row_starts = _ragged([w.tokens for w in batch.wanted])
        spans, span_starts = _ragged([w.spans for w in batch.wanted], 2)
        if any(w.best for w in batch.wanted):
            raise RunnerError("the best ids are asked for by draws at temperature 0")
        draw_starts = np.zeros(len(batch.wanted) + 1, np.int32)
        np.cumsum([len(w.draws) for w in batch.wanted], out=draw_starts[1:])
        drawn = Packed([draw for w in batch.wanted for draw in w.draws])
        out: list[Answered] = [
            drawn.out[draw_starts[n] : draw_starts[n + 1]]
            if w.draws
            else np.empty((len(w.tokens), _width(w)), np.float32)
            for n, w in enumerate(batch.wanted)
        ]
        places = (ctypes.c_void_p * len(out))(*[array.ctypes.data for array in out])
        step = Step(
            len(ids), sequences, tables.shape[1], len(out), *(address(a) for a in arrays),
            address(rows), address(row_starts), address(spans), address(span_starts),
            ctypes.cast(places, ctypes.c_void_p), address(draw_starts),
            ctypes.cast(ctypes.byref(drawn.struct), ctypes.c_void_p),
        )  # fmt: skip
        try:
            self._library.call("m27_run", self._handle, ctypes.byref(step))
        except StepError as error:
            raise RunnerError(str(error)) from None
        return out

    def add_adapter(self, adapter: Adapter) -> int:
        """Keep an adapter, as `Runner.add_adapter`."""
        parts = []
        for name, (a, b) in adapter.matrices.items():
            match = _LAYER.fullmatch(name)
            wide = self._shapes.get(f"{name}.weight")
            if match is None or match[2] not in _PARTS or wide is None:
                raise RunnerError(f"adapter {adapter.name}: the model has no matrix {name}")
            if (
                a.ndim != 2
                or b.ndim != 2
                or (b.shape[0], a.shape[1]) != wide
                or len(a) != b.shape[1]
            ):
                raise RunnerError(
                    f"adapter {adapter.name}: {name} is {wide[0]} by {wide[1]}, not what "
                    f"{list(b.shape)} and {list(a.shape)} make"
                )
            parts.append((int(match[1]), _PARTS[match[2]], a, b))
        number: int = self._library.raw.m27_add_adapter(self._handle)
        for layer, part, a, b in parts:
            a, b = np.ascontiguousarray(a, np.float32), np.ascontiguousarray(b, np.float32)
            self._library.call(
                "m27_set_adapter", self._handle, number, layer, part, len(a), a.shape[1], len(b),
                address(a), address(b),
            )  # fmt: skip
        return number

    def remove_adapter(self, number: int) -> None:
        """Let go of an adapter, as `Runner.remove_adapter`."""
        try:
            self._library.call("m27_remove_adapter", self._handle, number)
        except StepError:
            raise RunnerError(f"there is no adapter {number}") from None

    def facts(self) -> dict[str, Any]:
        """Device, level of machine, threads, precision of weights and cache, bytes of each."""
        return dict(self._facts)

    def close(self) -> None:
        """Free weights and cache and end the threads; happens by itself when the runner goes."""
        self._close()

    def _fill(
        self, state: Mapping[str, Tensor | Blocks], precision: str, threads: int,
        importance: Mapping[str, Tensor],
    ) -> None:  # fmt: skip
        def rounding(weight_RC: Tensor, kind: str, importance_C: Tensor | None) -> Blocks:
            return self._library.rounded(weight_RC, kind, importance_C, threads)

        for name, shape in _expected(self.config).items():
            if name not in state:
                raise RunnerError(f"{name} is missing")
            value = state[name]
            found = tuple(value.shape)
            if found != shape and not (isinstance(value, Blocks) and _padded(found, shape)):
                raise RunnerError(f"{name} is {list(found)}, not {list(shape)}")
            match = _LAYER.fullmatch(name)
            layer, part = (int(match[1]), match[2]) if match else (0, "")
            if len(shape) == 1:
                assert isinstance(value, Tensor)
                vector = value.detach().float().contiguous().numpy()
                which = _VECTORS.get(part, _LAST)
                self._library.call("m27_set_vector", self._handle, which, layer, address(vector))
                continue
            self._shapes[name] = (shape[0], shape[1])
            kind = quantize.kind_of(name, precision)
            packed = quantize.pack(value, kind, rounding, importance.get(name))
            number = _PARTS[part] if match else _EMBED if "embed" in name else _HEAD
            self._library.call(
                "m27_set", self._handle, number, layer, shape[0], address(packed.values),
                packed.values.strides[0], address(packed.scale), address(packed.minimum),
            )  # fmt: skip


def _serve(config: Config, precision: str, cache: str, blocks: int) -> None:
    if config.n_experts:
        raise RunnerError("the CPU step serves dense decoders, not experts")
    if precision not in KINDS:
        raise RunnerError(f"precision {precision!r} is none of {', '.join(KINDS)}")
    if cache not in CACHES:
        raise RunnerError(f"cache {cache!r} is none of {', '.join(CACHES)}")
    if blocks < 1:
        raise RunnerError(f"{blocks} blocks: a cache has at least one")
    if config.head_dim % 8 or config.head_dim > 512:
        raise RunnerError(f"head_dim {config.head_dim}: a multiple of 8 up to 512 is served")
    if config.n_heads // config.n_kv_heads > 48:
        raise RunnerError("more than 48 query heads to a key head are not served")


def _frequencies(config: Config) -> Floats:
    """As `m27.model.layers.Rotary` computes them, to the last bit."""
    steps = torch.arange(0, config.head_dim, 2, dtype=torch.float32)
    frequencies: Floats = (1.0 / config.rope_theta ** (steps / config.head_dim)).numpy()
    return frequencies


def _expected(config: Config) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a dense decoder."""
    q, kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    dim, ffn = config.dim, config.ffn_dim
    out: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, dim)}
    for layer in range(config.n_layers):
        stem = f"model.layers.{layer}."
        for name, shape in (
            ("self_attn.q_proj", (q, dim)), ("self_attn.k_proj", (kv, dim)),
            ("self_attn.v_proj", (kv, dim)), ("self_attn.o_proj", (dim, q)),
            ("mlp.gate_proj", (ffn, dim)), ("mlp.up_proj", (ffn, dim)), ("mlp.down_proj", (dim, ffn)),
        ):  # fmt: skip
            out[f"{stem}{name}.weight"] = shape
        for name in ("input_layernorm", "post_attention_layernorm"):
            out[f"{stem}{name}.weight"] = (dim,)
        if config.qk_norm:
            for name in ("self_attn.q_norm", "self_attn.k_norm"):
                out[f"{stem}{name}.weight"] = (config.head_dim,)
    out["model.norm.weight"] = (dim,)
    if not config.tied:
        out["lm_head.weight"] = (config.vocab_size, dim)
    return out


def _padded(found: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and found == (shape[0], -(-shape[1] // 32) * 32)


def _ints(batch: Batch, name: str) -> np.ndarray[Any, np.dtype[np.int32]]:
    array = getattr(batch, name)
    if array.dtype != np.int32 or not array.flags.c_contiguous:
        raise RunnerError(f"{name} is not contiguous int32")
    return array


def _width(wanted: Wanted) -> int:
    return sum(max(0, end - begin) for begin, end in wanted.spans)


def _ragged(lists: Sequence[Any], width: int = 1) -> tuple[Any, Any]:
    """Rows of several lists end to end in int32, and where each list's begin."""
    starts = np.zeros(len(lists) + 1, np.int32)
    np.cumsum([len(one) for one in lists], out=starts[1:])
    if not starts[-1]:
        return np.zeros(width, np.int32), starts
    flat = np.concatenate([np.asarray(one, np.int32).reshape(-1) for one in lists])
    return np.ascontiguousarray(flat), starts
