"""Compile the products in C++: for which processors, and with what flags. Nothing here loads a library."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from m27.runtime import BuildError, compiled_library, cpu_flags

__all__ = ["FOLDER", "SOURCES", "BuildError", "fits", "library"]

FOLDER = Path(__file__).resolve().parent
SOURCES = ("pack.h", "product.h", "attention.h", "rows.h", "api.cpp")
_NEEDS = {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16", "avx512_fp16", "fma", "f16c"}
_FLAGS = (
    "-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-shared", "-fopenmp", "-mavx512f", "-mavx512bw",
    "-mavx512vl", "-mavx512dq", "-mavx512bf16", "-mavx512fp16", "-mfma", "-mf16c", "-Wall", "-Wextra", "-Werror",
    # GCC 12 warns of its own header of AVX-512.
    "-Wno-uninitialized", "-Wno-maybe-uninitialized",
)  # fmt: skip


def fits() -> bool:
    """Whether this processor has float16 arithmetic and no tiles for bfloat16, which would be faster still.

    Without tiles its bfloat16 products run at half the speed of float32 and a quarter of that of float16.
    """
    flags = cpu_flags()
    return flags >= _NEEDS and "amx_bf16" not in flags


def library() -> Path:
    """The compiled library, from the cache or built now (some seconds). Raises BuildError."""
    # g++ alone: its OpenMP is the one that torch brings, so both use one set of threads.
    compiler = shutil.which(os.environ.get("CXX", "")) or shutil.which("g++")
    if compiler is None:
        raise BuildError("no g++ ($CXX names another)")
    return compiled_library("products", compiler, _FLAGS, [FOLDER / name for name in SOURCES])
