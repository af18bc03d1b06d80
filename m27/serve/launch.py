"""What engine a server runs, and where: in a process of its own or in a thread. Knows how one is loaded."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from m27.serve.engine_loop import EngineLike, warm_up

if TYPE_CHECKING:
    from m27.serve.front import Front


@dataclass(frozen=True)
class Launch:
    """What is loaded: see `load_engine` and `Limits`; adapters by name and folder. `maker`: the
    function that makes the engine, as "module:name"."""

    folder: str
    precision: str = "auto"
    threads: int = 0
    limits: dict[str, Any] = field(default_factory=dict)
    adapters: Sequence[Sequence[str]] = ()
    linger: float | None = None
    log_level: str = "info"
    warm_up: bool = True
    maker: str = "m27.serve.launch:load"


def load(launch: Launch) -> EngineLike:
    """The engine of a folder, with its adapters. Raises as `load_engine` and `read_adapter` do."""
    from m27.infer.adapters import read_adapter
    from m27.infer.engine import Engine
    from m27.infer.scheduler import Limits

    limits = Limits(**launch.limits)
    engine = Engine.load(launch.folder, precision=launch.precision, threads=launch.threads, limits=limits)
    for name, folder in launch.adapters:
        engine.add_adapter(name, read_adapter(folder, name))
    return engine


def made(launch: Launch) -> EngineLike:
    """The engine that a launch asks for, loaded and warm."""
    module, _, name = launch.maker.partition(":")
    engine: EngineLike = getattr(importlib.import_module(module), name)(launch)
    if launch.warm_up:
        warm_up(engine)
    return engine


def in_thread(launch: Launch, stuck_seconds: float) -> Front:
    """An engine in a thread of this process."""
    from m27.serve.engine_thread import EngineThread

    return EngineThread(made(launch), stuck_seconds, launch.linger)


def in_process(launch: Launch, stuck_seconds: float) -> Front:
    """An engine in a process of its own, which loads while this one gets ready. Raises as `load` does, but
    for errors of ours, which are EngineStartError."""
    from m27.serve.engine_process import EngineProcess

    engine = EngineProcess(launch, stuck_seconds)
    engine.wait()
    return engine
