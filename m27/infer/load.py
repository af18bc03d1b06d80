"""A folder of weights to an engine: which runner, in which precision, on which device.

The fast runner for the CPU is taken where it can be had, else torch. Knows files and runners; what a
request is, it does not.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from m27 import runtime
from m27.infer.adapters import read_adapter
from m27.infer.draft import PromptLookup
from m27.infer.media import MediaWorker
from m27.infer.request import RequestError
from m27.infer.runner import Runner, RunnerError
from m27.infer.scheduler import Limits
from m27.infer.schema import JsonSchemas
from m27.infer.torch_runner import TorchRunner
from m27.language.processor import Processor
from m27.model import checkpoint, importance
from m27.model.quantized import held_precision

if TYPE_CHECKING:
    from m27.infer.engine import Engine

Precision = Literal["auto", "float32", "bfloat16", "int8", "int4"]
PRECISIONS = ("auto", "float32", "bfloat16", "int8", "int4")
CACHES = ("auto", "float32", "float16", "bfloat16", "int8")
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
ADAPTER = "adapter"
_told: set[str] = set()


def load_engine(
    folder: str | Path,
    engine: type[Engine],
    *,
    precision: str = "auto",
    device: str | torch.device = "auto",
    backend: str = "auto",
    threads: int = 0,
    limits: Limits | None = None,
    cache: str = "auto",
    adapter: str | Path | None = None,
    **options: Any,
) -> Engine:
    """The engine of a checkpoint folder, with its codecs: packed, in the HF layout, or in blocks.

    `precision`: of the weights; "auto" is int8 on the CPU runner, bfloat16 where the device computes
    it, else float32. A folder in blocks has the one precision that it was exported in, which "auto"
    is there; torch, which has no products of blocks, widens them as "auto" says. `backend`: "cpu" is
    the C++ step, "torch" the other; "auto" is "cpu" on a CPU where it can be had. `threads`: 0 for
    all. `cache`: of keys and values. `adapter`: a folder that PEFT wrote; requests that name no adapter are
    answered with that one, which goes by `ADAPTER`. Further options go to the engine. Raises RequestError for what is
    unknown or cannot be had, and the typed error of the room whose file is missing or wrong.

    Under `torchrun` with several processes the model is cut over them (`m27.infer.tensor_parallel`):
    the engine comes back in the first, the others follow it, and leave with SystemExit when it ends.
    """
    if not Path(folder).is_dir():
        raise RequestError(f"{folder}: no model here")
    for name, value, known in (
        ("precision", precision, PRECISIONS), ("backend", backend, ("auto", "cpu", "torch")),
        ("cache", cache, CACHES),
    ):  # fmt: skip
        if value not in known:
            raise RequestError(f"{name} is one of {', '.join(known)}, not {value!r}")
    if runtime.ranks()[0]:
        from m27.infer import tensor_parallel

        sys.exit(tensor_parallel.follow())
    read = None if adapter is None else read_adapter(adapter, ADAPTER)  # first: a wrong folder is told at once
    limits = limits or Limits()
    processor = Processor.load(folder)
    runner = load_runner(folder, precision, device, backend, threads, limits, cache)
    if "media" not in options:
        options["media"] = MediaWorker(processor, preload=True)
    options.setdefault("make_rules", JsonSchemas(processor))
    options.setdefault("draft", PromptLookup())
    made = engine(runner, processor, limits, **options)
    if read is not None:
        made.adapter = (ADAPTER, made.add_adapter(ADAPTER, read))
    return made


def load_runner(
    folder: str | Path,
    precision: str,
    device: str | torch.device,
    backend: str,
    threads: int,
    limits: Limits,
    cache: str,
) -> Runner:
    """The runner of a checkpoint folder; see `load_engine`."""
    where = runtime.device(device) if isinstance(device, str) else device
    held = held_precision(folder)
    if held and precision not in ("auto", held):
        raise RequestError(f"{folder}: holds weights in {held}; {precision} cannot be had of them")
    parallel = runtime.ranks()[1] > 1
    if parallel and backend == "cpu":
        raise RequestError("backend 'cpu' runs in one process")
    if where.type == "cpu" and backend != "torch" and not parallel:
        wanted = held or ("int8" if precision == "auto" else precision)
        runner = _cpu_runner(folder, wanted, threads, limits, cache, must=backend == "cpu")
        if runner is not None:
            return runner
    elif backend == "cpu":
        raise RequestError(f"backend 'cpu' does not run on {where}")
    if precision in ("int8", "int4"):
        alone = ", which runs in one process" if parallel else ""
        raise RequestError(f"precision {precision} needs the CPU backend{alone}")
    dtype = runtime.dtype(precision, where)
    if cache == "int8":
        raise RequestError("a cache in int8 needs the CPU backend")
    if parallel:
        from m27.infer import tensor_parallel

        return tensor_parallel.lead(
            folder, dtype, where, threads, blocks=limits.blocks, cache_bytes=limits.cache_bytes,
            cache_dtype=None if cache == "auto" else cache,
        )  # fmt: skip
    if threads:
        torch.set_num_threads(threads)
    model = checkpoint.load(folder, dtype=dtype).to(where)
    kept = None if cache == "auto" else runtime.DTYPES[cache]
    return TorchRunner(model, limits.blocks, cache_bytes=limits.cache_bytes, cache_dtype=kept)


def _cpu_runner(
    folder: str | Path, precision: str, threads: int, limits: Limits, cache: str, must: bool
) -> Runner | None:
    """The C++ step, or None where it cannot be had; then that is said once."""
    from m27.infer.cpu import BuildError, CpuRunner

    config, state = checkpoint.open_state(folder)
    kept = cache if cache != "auto" else ("float32" if precision == "float32" else "float16")
    # Beside an int8 head stands one float32 scale.
    head = config.head_dim * _BYTES[kept] + (4 if kept == "int8" else 0)
    token = config.n_layers * 2 * config.n_kv_heads * head
    blocks = limits.blocks or max(1, limits.cache_bytes // (16 * token))
    try:
        runner = CpuRunner.load(
            state, config, precision=precision, cache=cache, blocks=blocks, threads=threads,
            importance=importance.read(folder, config) if precision == "int4" else {},
        )  # fmt: skip
        runtime.trim_freed_memory()  # what one matrix after another took while it was rounded
        return runner
    except (BuildError, RunnerError) as error:
        if must:
            raise RequestError(f"the CPU backend cannot be had: {error}") from error
        if "cpu" not in _told:
            _told.add("cpu")
            why = " ".join(str(error).split())[:200]
            print(f"m27: the CPU backend cannot be had ({why}); torch runs", file=sys.stderr)
        return None
