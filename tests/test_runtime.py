import random
import sys

import numpy as np
import pytest
import torch

from m27 import runtime


def test_unknown_names_are_named():
    with pytest.raises(runtime.RuntimeSettingError, match="'toaster'"):
        runtime.device("toaster")
    with pytest.raises(runtime.RuntimeSettingError, match="'float3'"):
        runtime.dtype("float3")


def test_auto_fits_the_machine():
    chosen = runtime.device()
    assert chosen.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert runtime.dtype("auto", chosen) in (torch.bfloat16, torch.float32)
    assert runtime.dtype("float16") is torch.float16


@pytest.mark.parametrize(
    ("flags", "native"),
    [("fma avx2 avx512f", False), ("fma avx512_bf16 amx_tile", True), ("amx_bf16", True), ("", False)],
)
def test_bfloat16_only_where_the_processor_has_it(flags, native, monkeypatch):
    monkeypatch.setattr(runtime, "cpu_flags", lambda: set(flags.split()))
    assert runtime.cpu_bf16() is native
    chosen = runtime.dtype("auto", torch.device("cpu"))
    assert chosen is (torch.bfloat16 if native else torch.float32)


def test_a_system_that_does_not_describe_its_processor_has_no_bfloat16(monkeypatch):
    def missing(*given, **named):
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", missing)
    assert runtime.cpu_bf16() is False


def test_a_seed_repeats_all_generators():
    def draws():
        runtime.seed_everything(3)
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    assert draws() == draws()


def test_ranks_come_from_the_environment(monkeypatch):
    assert runtime.ranks() == (0, 1)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert runtime.ranks() == (3, 8)


def test_threads_and_allocator():
    before = torch.get_num_threads()
    assert runtime.set_threads(1) == torch.get_num_threads() == 1
    runtime.set_threads(before)
    if sys.platform.startswith("linux"):
        assert runtime.keep_freed_memory() in (True, False)
