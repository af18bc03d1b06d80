"""Compile the C++ step: which machine to build for, and what it is built with.

One library a level of machine (AVX-512 with VNNI, AVX2, and one that runs anywhere), from the same
sources with other flags. Nothing here loads a library.
"""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

from m27.runtime import BuildError, compiled_library, cpu_flags

__all__ = ["FOLDER", "LEVELS", "SANITIZE", "SOURCES", "BuildError", "find_compiler", "levels", "library"]

FOLDER = Path(__file__).resolve().parent
SOURCES = (
    "vec.h", "dot.h", "pool.h", "product.h", "rounding.h", "attention.h", "pairs.h", "squeeze.h", "draw.h",
    "model.h", "step.h", "api.cpp",
)  # fmt: skip
LEVELS = ("avx512bf16", "avx512", "avx2", "portable")

# Floating point is strict: no reordering, and no fused product and sum but where the source says so.
# Then a token's result does not depend on which loop the compiler unrolled for how many tokens.
_FLAGS = (
    "-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-shared", "-pthread", "-ffp-contract=off",
    "-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-Wno-unknown-warning-option",
)  # fmt: skip
_AVX512 = (
    "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mfma", "-mf16c",
    # GCC 12 warns of its own header of AVX-512.
    "-Wno-uninitialized", "-Wno-maybe-uninitialized",
)  # fmt: skip
_MACHINE = {
    "portable": (), "avx2": ("-mavx2", "-mfma", "-mf16c"), "avx512": _AVX512,
    "avx512bf16": (*_AVX512, "-mavx512bf16"),
}  # fmt: skip
_AVX2_NEEDS = {"avx2", "fma", "f16c"}
_AVX512_NEEDS = _AVX2_NEEDS | {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"}
_NEEDS = {
    "portable": set[str](), "avx2": _AVX2_NEEDS, "avx512": _AVX512_NEEDS,
    "avx512bf16": _AVX512_NEEDS | {"avx512_bf16"},
}  # fmt: skip
SANITIZE = (
    "-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
)  # fmt: skip


def levels() -> list[str]:
    """The levels that this processor runs, best first; `M27_CPU_ISA` names the only one to use.

    Raises BuildError for an unknown name.
    """
    asked = os.environ.get("M27_CPU_ISA", "")
    if asked:
        if asked not in LEVELS:
            raise BuildError(f"M27_CPU_ISA: {asked!r} is none of {', '.join(LEVELS)}")
        return [asked]
    flags = cpu_flags() if platform.machine().lower() in ("x86_64", "amd64") else set()
    return [level for level in LEVELS if flags >= _NEEDS[level]]


def library(level: str) -> Path:
    """The compiled library of a level, from the cache or built now (some twenty seconds).

    `M27_CPU_SANITIZE` in the environment builds with checks of memory and of undefined behaviour, for
    a process that has the sanitizer's library loaded first. Raises BuildError.
    """
    extra = SANITIZE if os.environ.get("M27_CPU_SANITIZE") else ()
    compiler = find_compiler()
    if compiler is None:
        raise BuildError("no C++ compiler (g++ or clang++; $CXX names another)")
    flags = (*_FLAGS, *_MACHINE[level], *extra)
    return compiled_library(f"step-{level}", compiler, flags, [FOLDER / name for name in SOURCES])


def find_compiler() -> str | None:
    """`$CXX`, else g++, else clang++; None where there is none of them."""
    for name in (os.environ.get("CXX", ""), "g++", "clang++"):
        found = shutil.which(name) if name else None
        if found:
            return found
    return None
