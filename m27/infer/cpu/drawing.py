"""Draws as the C++ step takes them: settings as records, and numpy's own inner loops.

An id drawn in C++ is the very one that `m27.infer.sampler` draws. Its exponentials, logarithms and sums
are numpy's, whose last bits differ by version and by machine, so C++ is handed the functions with which
numpy computes them: a ufunc's table of inner loops is part of numpy's documented C interface
(`PyUFuncObject`). Where that table is not what is documented, or a draw differs, `agrees` is false and
draws stay in Python. Knows no model and no batch.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from m27.infer.request import Sampling
from m27.infer.runner import Draw, Floats, Spans
from m27.infer.sampler import Sampler

# Mirrors `Draw` of draw.h.
DRAW = np.dtype(
    [("key", "u8"), ("top_p", "f8"), ("min_p", "f8"), ("temperature", "f4"), ("penalty", "f4"),
     ("guidance", "f4"), ("top_k", "i4"), ("row", "i4"), ("other", "i4"), ("seen", "i4"),
     ("moves", "i4")], align=True,
)  # fmt: skip
_P, _I = ctypes.c_void_p, ctypes.c_int
_UFUNCS = ("exp", "log", "logaddexp", "add")
_FLOAT = np.dtype(np.float32).num


class Draws(ctypes.Structure):
    """Mirrors `Draws` of draw.h."""

    _fields_ = [(name, _P) for name in ("of", "seen", "moves", "loops", "out")]


class Loops(ctypes.Structure):
    """Mirrors `Loops` of draw.h: for each ufunc the loop over floats, and what it is handed."""

    _fields_ = [(name, _P * 2) for name in _UFUNCS]


class _Ufunc(ctypes.Structure):
    """The head of numpy's documented `PyUFuncObject`."""

    _fields_ = [
        ("object", ctypes.c_char * object.__basicsize__),
        *((name, _I) for name in ("nin", "nout", "nargs", "identity")),
        ("functions", ctypes.POINTER(_P)), ("data", ctypes.POINTER(_P)),
        ("ntypes", _I), ("reserved1", _I), ("name", ctypes.c_char_p),
        ("types", ctypes.POINTER(ctypes.c_char)),
    ]  # fmt: skip


@lru_cache(maxsize=1)
def loops() -> Loops | None:
    """numpy's loops over floats; None where they are not found where its manual has them."""
    if sys.implementation.name != "cpython":
        return None
    made = Loops()
    for name in _UFUNCS:
        found = _loop(getattr(np, name))
        if found is None:
            return None
        setattr(made, name, (_P * 2)(*found))
    return made


def _loop(ufunc: np.ufunc) -> tuple[int, int | None] | None:
    seen = _Ufunc.from_address(id(ufunc))
    if (seen.nin, seen.nout, seen.nargs) != (ufunc.nin, ufunc.nout, ufunc.nargs):
        return None
    if seen.ntypes != ufunc.ntypes or seen.name != ufunc.__name__.encode():
        return None
    types, args = seen.types[: seen.ntypes * seen.nargs], seen.nargs
    for at in range(seen.ntypes):
        if types[at * args : (at + 1) * args] == bytes([_FLOAT] * args):
            function = seen.functions[at]
            return (function, seen.data[at]) if function else None
    return None


class Packed:
    """Draws laid out for C++, in their order, and the ids that it puts into `out` [D]. Not to be let
    go of while it works on them."""

    def __init__(self, draws: Sequence[Draw]) -> None:
        self.out = np.full(len(draws), -1, dtype=np.int64)
        records = []
        moves: list[tuple[int, int]] = []
        seen = moved = 0
        for d in draws:
            seen += len(d.seen)
            moved += len(d.redirects)
            moves += d.redirects
            records.append(
                (d.key, d.top_p, d.min_p, d.temperature, d.penalty, d.guidance, d.top_k, d.row, d.other,
                 seen, moved)
            )  # fmt: skip
        some = [d.seen for d in draws]
        self._seen = np.concatenate(some) if seen else np.zeros(1, np.int64)
        self._records = np.array(records, dtype=DRAW)
        self._moves = np.array(moves or [(0, 0)], dtype=np.int32)
        self._loops = loops()
        arrays = (self._records, self._seen, self._moves)
        self.struct = Draws(
            *(array.ctypes.data for array in arrays),
            ctypes.addressof(self._loops) if self._loops is not None else None,
            self.out.ctypes.data,
        )


def draw(
    raw: ctypes.CDLL, rows_RK: Floats, spans: Spans, draws: Sequence[Draw], threads: int = 1
) -> tuple[npt.NDArray[np.int64], float]:
    """The ids [D] that are drawn from rows of logits of the ids of `spans`, and the seconds that C++
    took; the rows are changed. For tests and benchmarks: a step draws by itself."""
    assert rows_RK.dtype == np.float32 and rows_RK.flags.c_contiguous
    packed, text = Packed(draws), ctypes.create_string_buffer(512)
    flat = np.array(spans, dtype=np.int32)
    seconds: float = raw.m27_draw(
        rows_RK.ctypes.data, flat.ctypes.data, len(flat), ctypes.byref(packed.struct), len(draws),
        threads, text, len(text),
    )  # fmt: skip
    if text.value:
        raise RuntimeError(text.value.decode(errors="replace"))
    return packed.out, seconds


def agrees(raw: ctypes.CDLL) -> bool:
    """Whether some draws in C++ are those of the sampler: long rows and short ones, every cut."""
    if loops() is None:
        return False
    rng, spans = np.random.default_rng(27), ((3, 400), (500, 24_000))
    rows_RK = (rng.standard_normal((12, 23_897)) * 2).astype(np.float32)
    rows_RK[:, ::3] = -np.inf
    cuts: tuple[dict[str, Any], ...] = (
        {}, {"top_p": 0.9}, {"top_k": 40, "top_p": 0.8}, {"min_p": 0.05}, {"repetition_penalty": 1.3},
        {"temperature": 0.0},
    )  # fmt: skip
    draws, want = [], []
    for row, logits_K in enumerate(rows_RK):
        sampler = Sampler({"text": Sampling(**{"temperature": 0.7} | cuts[row % len(cuts)])}, row)
        for id in range(3, 60, 5):
            sampler.take(id)
        redirects = [(600, 520)] if row % 2 else []
        draws.append(sampler.draw(spans, "text", redirects, row))
        want.append(sampler.choose(logits_K.copy(), spans, "text", redirects))
    return draw(raw, rows_RK, spans, draws)[0].tolist() == want
