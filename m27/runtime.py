"""The machine a run finds: device, dtype, threads, memory allocator, seeds, libraries compiled for it. Imports
nothing of ours."""

from __future__ import annotations

import ctypes
import hashlib
import os
import random
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # <malloc.h>


class RuntimeSettingError(ValueError):
    """A device or dtype that is not known or not there; the message names it."""


def device(name: str = "auto") -> torch.device:
    """The device called `name`; "auto" is CUDA where there is one, else the CPU.

    Raises RuntimeSettingError for an unknown name and for CUDA where there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(name)
    except RuntimeError as error:
        raise RuntimeSettingError(f"device {name!r} is not known") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeSettingError(f"device {name!r}: there is no CUDA device here")
    return chosen


def dtype(name: str = "auto", on: torch.device | None = None) -> torch.dtype:
    """The dtype called `name`; "auto" is bfloat16 where `on` computes it natively, else float32.

    Raises RuntimeSettingError for an unknown name.
    """
    if name == "auto":
        on = on or torch.device("cpu")
        if on.type == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            native = cpu_bf16()
        return torch.bfloat16 if native else torch.float32
    if name not in DTYPES:
        raise RuntimeSettingError(f"dtype {name!r} is none of {', '.join(DTYPES)}")
    return DTYPES[name]


def cpu_bf16() -> bool:
    """Whether this processor multiplies in bfloat16 itself.

    Where it does not, torch does it in its stead some fifty times slower than in float32: there neither
    bfloat16 tensors nor CPU autocast to it should be computed with.
    """
    return not _BF16.isdisjoint(cpu_flags())


_BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # of Intel and AMD, of Intel, of Arm


def cpu_flags() -> set[str]:
    """The words that the system describes the processor with; none where it does not."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return set(file.read(20_000).split())
    except OSError:
        return set()


def ranks() -> tuple[int, int]:
    """(rank, world size) as `torchrun` sets them in the environment; (0, 1) without it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries draw from the global state
    torch.manual_seed(seed)


def set_threads(count: int = 0) -> int:
    """Compute with `count` threads (0: one a core that this process may use); the count comes back."""
    if count <= 0:
        usable = getattr(os, "sched_getaffinity", None)
        count = len(usable(0)) if usable else (os.cpu_count() or 1)
    torch.set_num_threads(count)
    return count


def lone_thread() -> None:
    """Let torch compute with one thread where the calling thread asks, and leave all others as they are.

    torch keeps the number for each thread, and a default for threads to come, which `set_num_threads`
    also changes: another thread puts that back.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    restore = threading.Thread(target=torch.set_num_threads, args=(before,))
    restore.start()
    restore.join()


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to keep large freed blocks instead of handing each back to the system.

    A training step frees and asks again for the same blocks; fetching them anew, page by page, costs
    more than some of the arithmetic done in them. Returns whether there was such a malloc to tell.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    told = [
        mallopt(_M_MMAP_THRESHOLD, 1 << 30),
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1),
        mallopt(_M_TOP_PAD, 1 << 26),
    ]
    return all(told)


def trim_freed_memory() -> bool:
    """Hand pages that glibc's malloc holds but nobody uses back to the system; whether any were.

    Blocks of ever new sizes splinter what `keep_freed_memory` keeps: a training run grew by a gigabyte
    a minute until this was called between steps (docs/LOG.md).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (OSError, AttributeError):
        return False


class BuildError(RuntimeError):
    """A library in C++ cannot be compiled here; one line says why."""


def compiled_library(name: str, compiler: str, flags: Sequence[str], sources: Sequence[Path]) -> Path:
    """The shared library that `compiler` makes of the last of `sources`, which includes the others.

    It is kept below `$M27_CACHE`, the checkout's `.cache/m27` or `~/.cache/m27`, as `name` and the hash of
    sources, compiler and flags, so a change of any of them builds anew. Raises BuildError.
    """
    key = hashlib.sha256("\0".join((*flags, compiler, _version(compiler))).encode())
    for source in sources:
        key.update(source.read_bytes())
    path = cache_folder() / "cpu" / f"{name}-{key.hexdigest()[:16]}.so"
    if not path.is_file():
        _compile(compiler, flags, sources[-1], path)
    return path


def cache_folder() -> Path:
    """`$M27_CACHE`, the checkout's `.cache/m27` where that can be written, else `~/.cache/m27`."""
    named, checkout = os.environ.get("M27_CACHE"), Path(__file__).resolve().parents[1]
    if named:
        return Path(named)
    if (checkout / "pyproject.toml").is_file() and os.access(checkout, os.W_OK):
        return checkout / ".cache" / "m27"
    return Path.home() / ".cache" / "m27"


def _compile(compiler: str, flags: Sequence[str], source: Path, path: Path) -> None:
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
            [compiler, *flags, "-o", name, str(source)],
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
