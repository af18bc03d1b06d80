"""Who takes part: each engine in each format, how it is started and what it is asked.

"one" is a single request, "many" sixteen together, "score" likelihoods of given text.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers import install
from benchmarks.peers.process import Process
from m27.runtime import cpu_flags

ALL = ("one", "many", "score")


@dataclass(frozen=True)
class Contender:
    """`prepare(checkpoint)` makes what is missing and gives the interpreter, the settings and the
    environment; `family` is the engine, `kind` its format of weights."""

    family: str
    kind: str
    module: str
    prepare: Callable[[Path], tuple[Path, dict[str, Any], dict[str, str]]]
    does: tuple[str, ...] = ALL
    default: bool = True  # whether it runs where nobody named it

    @property
    def name(self) -> str:
        """As it stands in every table."""
        return f"{self.family} {self.kind}"

    def start(self, checkpoint: Path, threads: int, logs: Path, timeout: float = 900.0) -> Process:
        """A process that is ready. Raises PeerError or PeerFailedError."""
        python, settings, environment = self.prepare(checkpoint)
        command = [str(python), "-m", f"benchmarks.peers.{self.module}"]
        settings = {"model": str(checkpoint), **settings, "threads": threads}
        environment = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", **environment}
        log = logs / f"{self.name.replace(' ', '-')}.log"
        return Process(command, settings, environment, log, timeout, install.ROOT)


def _here(**settings: Any) -> Callable[[Path], tuple[Path, dict[str, Any], dict[str, str]]]:
    """A peer that runs in the development environment."""
    return lambda checkpoint: (Path(sys.executable), settings, {})


def _llama(kind: str) -> Callable[[Path], tuple[Path, dict[str, Any], dict[str, str]]]:
    def prepare(checkpoint: Path) -> tuple[Path, dict[str, Any], dict[str, str]]:
        model, build = install.gguf(kind, checkpoint), install.llamacpp()
        settings = {"model": str(model), "build": str(build), "version": install.LLAMA}
        source = install.FOLDER / f"llamacpp/llama_cpp_python-{install.LLAMA}"
        environment = {"PYTHONPATH": str(source), "LLAMA_CPP_LIB_PATH": str(build / "bin")}
        return install.environment("llamacpp"), settings, environment

    return prepare


def _openvino(kind: str) -> Callable[[Path], tuple[Path, dict[str, Any], dict[str, str]]]:
    def prepare(checkpoint: Path) -> tuple[Path, dict[str, Any], dict[str, str]]:
        model = install.openvino(kind, checkpoint)
        return install.environment("openvino"), {"model": str(model)}, {}

    return prepare


def _vllm(dtype: str) -> Callable[[Path], tuple[Path, dict[str, Any], dict[str, str]]]:
    def prepare(checkpoint: Path) -> tuple[Path, dict[str, Any], dict[str, str]]:
        python = install.environment("vllm")
        environment = {
            "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING",
        }  # fmt: skip
        libraries = [*(python.parents[1] / "lib").glob("libiomp5.so")]
        libraries += Path("/usr/lib/x86_64-linux-gnu").glob("libtcmalloc_minimal.so.4")
        if libraries:
            environment["LD_PRELOAD"] = ":".join(map(str, libraries))
        return python, {"dtype": dtype}, environment

    return prepare


# Peers that compute in bfloat16 are asked by themselves only where the processor multiplies in it.
BFLOAT16 = bool({"avx512_bf16", "amx_bf16"} & cpu_flags())

CONTENDERS = (
    *(Contender("m27", kind, "ours", _here(precision=kind)) for kind in ("int4", "int8")),
    Contender("m27", "bfloat16", "ours", _here(precision="bfloat16")),
    Contender("m27", "float32", "ours", _here(precision="float32")),
    *(
        # Sixteen together are the server's matter.
        Contender("llama.cpp", kind, "llamacpp", _llama(kind), ("one", "score"), kind != "F16")
        for kind in install.GGUF
    ),
    *(
        Contender("llama.cpp-batch", kind, "llamacpp", _llama(kind), ("many",), False)
        for kind in install.GGUF
    ),
    *(
        Contender("llama-server", kind, "llama_server", _llama(kind), ("many",), kind != "F16")
        for kind in install.GGUF
    ),
    *(Contender("OpenVINO", kind, "openvino", _openvino(kind)) for kind in install.OPENVINO),
    Contender("vLLM", "float32", "vllm", _vllm("float32"), ("one", "many")),
    Contender("vLLM", "bfloat16", "vllm", _vllm("bfloat16"), ("one", "many"), BFLOAT16),
    Contender("transformers", "float32", "transformers", _here(dtype="float32")),
    Contender(
        "transformers", "continuous", "transformers", _here(dtype="float32", continuous=True),
        ("many",), False,
    ),
    Contender(
        "transformers", "compiled", "transformers", _here(dtype="float32", compile=True),
        ("one",), False,
    ),
    Contender("transformers", "bfloat16", "transformers", _here(dtype="bfloat16"), ALL, BFLOAT16),
    Contender("naive", "float32", "naive", _here(), ("one", "score"), False),
)  # fmt: skip


def chosen(names: str) -> list[Contender]:
    """Those whose name begins with one of the comma-separated `names`; "" the default ones, "all"
    every one. Raises ValueError for a name that fits none."""
    if names in ("", "all"):
        return [c for c in CONTENDERS if c.default or names]
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if not any(c.name.startswith(name) for c in CONTENDERS):
            known = ", ".join(c.name for c in CONTENDERS)
            raise ValueError(f"{name}: no such contender; there are {known}")
    return [c for c in CONTENDERS if any(c.name.startswith(name) for name in wanted)]
