"""The compiled step seen from Python: plain functions over numpy's pointers (ctypes, no build module).

`library()` picks the best level of machine whose integer products agree with `quantize.product`, the
definition in numpy; one that differs is left, with a line on standard error, for the next lower one. It
knows no checkpoint and no batch.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from m27.infer import quantize
from m27.infer.cpu import build, drawing
from m27.model.gguf import BLOCK, Blocks
from m27.model.rounding import group_weights

KINDS = {"float32": 0, "bfloat16": 1, "int8": 2, "int4": 3}
CACHES = {"float32": 0, "float16": 1, "int8": 2, "bfloat16": 3}
_ROOM = 512  # bytes of an error's text

_P, _I, _S = ctypes.c_void_p, ctypes.c_int32, ctypes.c_size_t
_SHAPE = (
    "vocab", "dim", "layers", "heads", "kv_heads", "head_dim", "ffn", "max_len", "tied", "qk_norm",
    "body", "careful", "head", "cache", "blocks", "threads",
)  # fmt: skip
_COUNTS = ("tokens", "sequences", "width", "questions")
_ARRAYS = (
    "ids", "positions", "slots", "starts", "tables", "adapters", "rows", "row_starts", "spans",
    "span_starts", "out", "draw_starts", "draws",
)  # fmt: skip


class Shape(ctypes.Structure):
    """Mirrors `Shape` of model.h."""

    _fields_ = [(name, _I) for name in _SHAPE]


class Step(ctypes.Structure):
    """Mirrors `Batch` of model.h."""

    _fields_ = [(name, _I) for name in _COUNTS] + [(name, _P) for name in _ARRAYS]


class StepError(RuntimeError):
    """What the library refused; its own words."""


class Library:
    """A loaded library of one level, with the types of its functions declared."""

    def __init__(self, level: str, path: Path) -> None:
        self.level = level
        try:
            self.raw = ctypes.CDLL(str(path))
        except OSError as error:
            raise build.BuildError(f"{path}: cannot be loaded ({error})") from None
        text = [ctypes.c_char_p, _S]
        for name, result, arguments in (
            ("m27_block", _I, []),
            ("m27_new", _P, [_P, ctypes.c_float, _P, *text]),
            ("m27_free", None, [_P]),
            ("m27_set", _I, [_P, _I, _I, _I, _P, _S, _P, _P, *text]),
            ("m27_set_vector", _I, [_P, _I, _I, _P, *text]),
            ("m27_run", _I, [_P, _P, *text]),
            ("m27_add_adapter", _I, [_P]),
            ("m27_draw", ctypes.c_double, [_P, _P, _I, _P, _I, _I, *text]),
            ("m27_set_adapter", _I, [_P, _I, _I, _I, _I, _I, _I, _P, _P, *text]),
            ("m27_remove_adapter", _I, [_P, _I, *text]),
            ("m27_bytes", _S, [_P, _I]),
            (
                "m27_product",
                ctypes.c_double,
                [_I, _I, _I, _P, _S, _P, _P, _P, _I, _P, _I, _I],
            ),
            ("m27_round", None, [_P, _P, _I, _I, _P, _P, _P, _I]),
            ("m27_bandwidth", ctypes.c_double, [_S, _I, _I]),
        ):
            function = getattr(self.raw, name)
            function.restype, function.argtypes = result, arguments
        self.block: int = self.raw.m27_block()

    @property
    def cache(self) -> str:
        """What keys and values are held in beside weights that are not float32: bfloat16 where the machine
        multiplies in it, else float16, which is nearer and as large."""
        return "bfloat16" if self.level == "avx512bf16" else "float16"

    @cached_property
    def draws(self) -> bool:
        """Whether ids can be drawn here: see `drawing.agrees`."""
        return drawing.agrees(self.raw)

    def call(self, name: str, *arguments: Any) -> int | None:
        """Call a function that takes room for an error's text; raises StepError with it."""
        text = ctypes.create_string_buffer(_ROOM)
        result: int | None = getattr(self.raw, name)(*arguments, text, _ROOM)
        if text.value:
            raise StepError(text.value.decode(errors="replace"))
        return result

    def rounded(
        self, weight_RC: Tensor, kind: str, importance_C: Tensor | None = None, threads: int = 1
    ) -> Blocks:
        """`quantize.rounded` of a matrix, in a fraction of the time."""
        w = weight_RC.detach().float().contiguous()
        counts = group_weights(importance_C, w.shape[1])
        rows, groups = len(w), -(-w.shape[1] // BLOCK)
        four = kind == "int4"
        q = torch.empty((rows, groups * (16 if four else BLOCK)), dtype=torch.uint8 if four else torch.int8)
        scale = torch.empty((rows, groups), dtype=torch.float16)
        minimum = torch.empty_like(scale) if four else None
        self.raw.m27_round(
            w.data_ptr(), counts.data_ptr(), rows, w.shape[1], q.data_ptr(), scale.data_ptr(),
            None if minimum is None else minimum.data_ptr(), threads,
        )  # fmt: skip
        return Blocks(q, scale, minimum)

    def product(
        self, kind: str, packed: quantize.Packed, x_TC: npt.NDArray[np.float32],
        threads: int = 1, repeat: int = 1,
    ) -> tuple[npt.NDArray[np.float32], float]:  # fmt: skip
        """x W^T [T, R] of a packed matrix [R, C], and the seconds that it took."""
        x_TC = np.ascontiguousarray(x_TC, np.float32)
        rows = len(packed.values)
        out = np.zeros((len(x_TC), rows), np.float32)
        seconds = self.raw.m27_product(
            KINDS[kind], rows, x_TC.shape[1], address(packed.values), packed.values.strides[0],
            address(packed.scale), address(packed.minimum), address(x_TC), len(x_TC), address(out),
            threads, repeat,
        )  # fmt: skip
        return out, seconds


def address(array: npt.NDArray[Any] | None) -> int | None:
    """Where an array's first value lies; None for None."""
    return None if array is None else array.ctypes.data


@lru_cache(maxsize=4)
def _library(asked: str, levels: tuple[str, ...]) -> Library:
    for level in levels:
        found = Library(level, build.library(level))
        if level == "portable" or agrees(found):
            return found
        print(f"m27: the {level} products differ on this machine and are not used", file=sys.stderr)
    raise build.BuildError(f"M27_CPU_ISA: the products of {asked!r} differ on this machine")


def library() -> Library:
    """The best library for this machine, built if need be. Raises BuildError."""
    levels = tuple(build.levels())
    return _library(levels[0], levels)


def agrees(found: Library) -> bool:
    """Whether integer products equal the definition in numpy to the last bit, on a small odd case."""
    draw = np.random.default_rng(27)
    weights = draw.standard_normal((37, 75)).astype(np.float32)
    x = draw.standard_normal((11, 75)).astype(np.float32) * 3
    for kind in ("int8", "int4"):
        packed = quantize.pack(weights, kind)
        got, _ = found.product(kind, packed, x, threads=2)
        if not np.array_equal(got, quantize.product(packed, x)):
            return False
    return True
