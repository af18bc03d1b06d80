"""Compile the C++ step: which machine to build for, where the library is kept, what it is built with.

One library a level of machine (AVX-512 with VNNI, AVX2, and one that runs anywhere), from the same
sources with other flags. It is kept in a folder of the cache under the hash of sources, compiler and
flags, so a change of any of them builds anew. Nothing here loads a library.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

from m27.runtime import cpu_flags

FOLDER = Path(__file__).resolve().parent
SOURCES = (
    "vec.h", "dot.h", "pool.h", "product.h", "rounding.h", "attention.h", "squeeze.h", "draw.h",
    "model.h", "step.h", "api.cpp",
)  # fmt: skip
LEVELS = ("avx512", "avx2", "portable")

# Floating point is strict: no reordering, and no fused product and sum but where the source says so.
# Then a token's result does not depend on which loop the compiler unrolled for how many tokens.
_FLAGS = (
    "-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-shared", "-pthread", "-ffp-contract=off",
    "-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-Wno-unknown-warning-option",
)  # fmt: skip
_MACHINE = {
    "portable": (),
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    # GCC 12 warns of its own header of AVX-512.
    "avx512": (
        "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mfma", "-mf16c",
        "-Wno-uninitialized", "-Wno-maybe-uninitialized",
    ),
}  # fmt: skip
_NEEDS = {
    "portable": set[str](),
    "avx2": {"avx2", "fma", "f16c"},
    "avx512": {
        "avx512f",
        "avx512bw",
        "avx512vl",
        "avx512dq",
        "avx512_vnni",
        "avx2",
        "fma",
        "f16c",
    },
}
SANITIZE = (
    "-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
)  # fmt: skip


class BuildError(RuntimeError):
    """The step cannot be compiled here; one line says why."""


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
    key = hashlib.sha256("\0".join((*flags, compiler, _version(compiler))).encode())
    for name in SOURCES:
        key.update((FOLDER / name).read_bytes())
    folder = cache_folder()
    path = folder / f"step-{level}-{key.hexdigest()[:16]}.so"
    if not path.is_file():
        _compile(compiler, flags, path)
    return path


def find_compiler() -> str | None:
    """`$CXX`, else g++, else clang++; None where there is none of them."""
    for name in (os.environ.get("CXX", ""), "g++", "clang++"):
        found = shutil.which(name) if name else None
        if found:
            return found
    return None


def cache_folder() -> Path:
    """Where libraries are kept: below `$M27_CACHE`, the checkout's `.cache/m27`, or `~/.cache/m27`."""
    named = os.environ.get("M27_CACHE")
    checkout = FOLDER.parents[2]
    if named:
        root = Path(named)
    elif (checkout / "pyproject.toml").is_file() and os.access(checkout, os.W_OK):
        root = checkout / ".cache" / "m27"
    else:
        root = Path.home() / ".cache" / "m27"
    return root / "cpu"


def _compile(compiler: str, flags: tuple[str, ...], path: Path) -> None:
    """Build under a temporary name, then put in place, so that two processes may build at once."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
    except OSError as error:
        raise BuildError(f"{path.parent}: cannot be written ({error.strerror})") from None
    try:
        done = subprocess.run(
            [compiler, *flags, "-o", name, str(FOLDER / "api.cpp")],
            capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no word of why"]
            wrong = next((line for line in lines if "error" in line), lines[0])
            raise BuildError(f"{compiler} fails: {wrong}")
        os.replace(temporary, path)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{compiler}: {error}") from None
    finally:
        temporary.unlink(missing_ok=True)


@lru_cache(maxsize=4)
def _version(compiler: str) -> str:
    try:
        done = subprocess.run(
            [compiler, "--version"], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{compiler}: {error}") from None
    return done.stdout
