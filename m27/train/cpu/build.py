"""Compile the products in C++: for which processors, and with what flags. Nothing here loads a library."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from m27.runtime import BuildError, compiled_library, cpu_flags

__all__ = ["FOLDER", "KINDS", "BuildError", "Kind", "kind", "library"]

FOLDER = Path(__file__).resolve().parent
_COMMON = ("product.h", "attention.h", "rows.h", "api.cpp")
_FLAGS = (
    "-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-shared", "-fopenmp", "-mavx512f", "-mavx512bw",
    "-mavx512vl", "-mavx512dq", "-mavx512bf16", "-mfma", "-mf16c", "-Wall", "-Wextra", "-Werror",
    # GCC 12 warns of its own header of AVX-512.
    "-Wno-uninitialized", "-Wno-maybe-uninitialized",
)  # fmt: skip
_NEEDS = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16", "fma", "f16c"})


@dataclass(frozen=True)
class Kind:
    """What the library multiplies in, the processor's words for what it needs, and flags and sources of its own."""

    name: str
    needs: frozenset[str]
    flags: tuple[str, ...]
    sources: tuple[str, ...]


# The first that a processor has: where both are there, bfloat16 runs at a quarter of the speed of float16.
KINDS = (
    Kind("float16", _NEEDS | {"avx512_fp16"}, ("-mavx512fp16",), ("view.h", "float16.h")),
    Kind("bfloat16", _NEEDS, (), ("view.h", "bfloat16.h")),
)


def kind() -> Kind | None:
    """The kind of products for this processor, or None: with tiles for bfloat16 torch's are faster still."""
    flags = cpu_flags()
    if "amx_bf16" in flags:
        return None
    return next((one for one in KINDS if flags >= one.needs), None)


def library(kind: Kind) -> Path:
    """The compiled library of a kind, from the cache or built now (some seconds). Raises BuildError."""
    # g++ alone: its OpenMP is the one that torch brings, so both use one set of threads.
    compiler = shutil.which(os.environ.get("CXX", "")) or shutil.which("g++")
    if compiler is None:
        raise BuildError("no g++ ($CXX names another)")
    sources = [FOLDER / name for name in (*kind.sources, *_COMMON)]
    return compiled_library(f"products-{kind.name}", compiler, (*_FLAGS, *kind.flags), sources)
