"""Compile the products in C++: for which processors, with what flags, where the library is kept.

It is kept below the cache under the hash of sources, compiler and flags, so a change of any builds anew. Nothing
here loads a library.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from m27.runtime import cpu_flags

FOLDER = Path(__file__).resolve().parent
SOURCES = ("pack.h", "product.h", "attention.h", "rows.h", "api.cpp")
_NEEDS = {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16", "avx512_fp16", "fma", "f16c"}
_FLAGS = (
    "-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-shared", "-fopenmp", "-mavx512f", "-mavx512bw",
    "-mavx512vl", "-mavx512dq", "-mavx512bf16", "-mavx512fp16", "-mfma", "-mf16c", "-Wall", "-Wextra", "-Werror",
    # GCC 12 warns of its own header of AVX-512.
    "-Wno-uninitialized", "-Wno-maybe-uninitialized",
)  # fmt: skip


class BuildError(RuntimeError):
    """The products cannot be compiled here; one line says why."""


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
    key = hashlib.sha256("\0".join((*_FLAGS, compiler, _version(compiler))).encode())
    for name in SOURCES:
        key.update((FOLDER / name).read_bytes())
    path = _folder() / f"products-{key.hexdigest()[:16]}.so"
    if not path.is_file():
        _compile(compiler, path)
    return path


def _folder() -> Path:
    """Below `$M27_CACHE`, the checkout's `.cache/m27`, or `~/.cache/m27`."""
    named, checkout = os.environ.get("M27_CACHE"), FOLDER.parents[2]
    if named:
        return Path(named) / "cpu"
    if (checkout / "pyproject.toml").is_file() and os.access(checkout, os.W_OK):
        return checkout / ".cache" / "m27" / "cpu"
    return Path.home() / ".cache" / "m27" / "cpu"


def _compile(compiler: str, path: Path) -> None:
    """Build under a temporary name, then put in place, so that two processes may build at once."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        done = subprocess.run(
            [compiler, *_FLAGS, "-o", name, str(FOLDER / "api.cpp")],
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
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _version(compiler: str) -> str:
    try:
        done = subprocess.run(
            [compiler, "--version"], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{compiler}: {error}") from None
    return done.stdout
