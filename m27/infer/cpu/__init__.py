"""The C++ step for processors: one call a step, compiled at first use where there is a compiler."""

from m27.infer.cpu.build import BuildError
from m27.infer.cpu.runner import CpuRunner

__all__ = ["BuildError", "CpuRunner"]
