"""Rounded matrices: the definition in numpy, its products in C++ at every level, files, and the build."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from m27.infer import quantize
from m27.infer.cpu import BuildError, CpuRunner, binding, build
from tests.infer.cpu.steps import (
    CONFIGS,
    ids,
    model,
    whole,
)

ROOT = Path(__file__).resolve().parents[3]


def matrix(rows=50, cols=70, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, cols)).astype(np.float32)


@pytest.mark.parametrize("level", ["portable", "avx2", "avx512", "avx512bf16"])
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_integer_products_equal_the_definition_at_every_level(library, monkeypatch, level, kind):
    monkeypatch.delenv("M27_CPU_ISA", raising=False)
    if level not in build.levels():
        pytest.skip(f"this processor has no {level}")
    found = binding.Library(level, build.library(level))
    x, packed = matrix(13, 70, 1) * 5, quantize.pack(matrix(), kind)
    x[3] = 0
    want = quantize.product(packed, x)
    for tokens in (1, 2, 3, 5, 13):
        got, _ = found.product(kind, packed, x[:tokens], threads=2)
        assert np.array_equal(got, want[:tokens])


@pytest.mark.parametrize(("kind", "off"), [("float32", 1e-6), ("bfloat16", 4e-3), ("int8", 0.01), ("int4", 0.1)])
def test_products_are_near_the_true_ones(library, kind, off):
    w, x = matrix(40, 320), matrix(9, 320, 1)
    got, _ = library.product(kind, quantize.pack(w, kind), x)
    want = x @ w.T
    assert np.linalg.norm(got - want) < off * np.linalg.norm(want)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_rounding_in_cpp_is_as_good_as_the_definition(library, kind):
    w = torch.from_numpy(matrix(64, 75)) * 0.05
    slow, fast = quantize.rounded(w, kind), library.rounded(w, kind, threads=2)
    assert slow.q.shape == fast.q.shape and slow.scale.shape == fast.scale.shape
    error = [float((b.dequantize()[:, :75] - w).norm()) for b in (slow, fast)]
    assert error[1] == pytest.approx(error[0], rel=1e-3)
    assert error[0] < {"int8": 0.01, "int4": 0.08}[kind] * float(w.norm())


def test_int4_searches_a_better_range_and_keeps_what_is_of_four_bits():
    w = torch.from_numpy(matrix(64, 96))
    found = quantize.round_int4(w)
    low, high = w.view(64, 3, 32).aminmax(dim=-1)
    step = ((high - low) / 15)[..., None]
    plain = ((w.view(64, 3, 32) - low[..., None]) / step).round() * step + low[..., None]
    assert float((found.dequantize() - w).norm()) < 0.98 * float((plain.flatten(1) - w).norm())
    again = quantize.round_int4(found.dequantize())
    assert float((again.dequantize() - found.dequantize()).abs().max()) < 2e-3 * float(w.abs().max())
    assert quantize.blocks_of(found, "int4") is found


def test_constant_and_zero_groups_survive():
    for value in (0.0, 0.5, -0.25):
        w = torch.full((3, 40), value)
        for kind in ("int8", "int4"):
            assert torch.allclose(quantize.rounded(w, kind).dequantize()[:, :40], w, rtol=1e-3)


def test_levels_agree_on_a_whole_model(library, monkeypatch):
    """Floats are rounded once on one machine and twice on another; integers never differ."""
    row, out = ids(CONFIGS["qwen3"], 40), {}
    monkeypatch.delenv("M27_CPU_ISA", raising=False)
    for level in build.levels():
        monkeypatch.setenv("M27_CPU_ISA", level)
        runner = CpuRunner.load(model("qwen3"), precision="float32", blocks=4)
        assert level in runner.facts()["backend"]
        out[level] = whole(runner, row)
        monkeypatch.delenv("M27_CPU_ISA")
    first, *others = out.values()
    for other in others:
        assert np.abs(first - other).max() < 1e-4 * np.abs(first).max()


def test_a_level_that_differs_is_left_for_the_next(library, monkeypatch, capsys):
    monkeypatch.delenv("M27_CPU_ISA", raising=False)
    binding._library.cache_clear()
    monkeypatch.setattr(binding, "agrees", lambda found: False)
    assert binding.library().level == "portable"
    if library.level != "portable":
        assert f"the {library.level} products differ" in capsys.readouterr().err
    binding._library.cache_clear()


def test_the_build_says_in_one_line_what_it_lacks(monkeypatch, tmp_path):
    monkeypatch.setenv("M27_CPU_ISA", "mmx")
    with pytest.raises(BuildError, match="'mmx' is none of"):
        build.levels()
    monkeypatch.setenv("M27_CACHE", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(BuildError, match="no C\\+\\+ compiler"):
        build.library("portable")
    monkeypatch.undo()
    if build.find_compiler() is None:
        pytest.skip("no compiler")
    monkeypatch.setenv("M27_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "_FLAGS", (*build._FLAGS, "-fno-such-flag"))
    with pytest.raises(BuildError, match="no-such-flag"):
        build.library("portable")
    assert not list(tmp_path.rglob("*.so*"))


@pytest.mark.slow
def test_avx512_compiles(library):
    assert build.library("avx512").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("level", ["avx2", "portable"])
def test_sanitizers_find_nothing(library, level):
    """The tests of the runner and of draws once more, with every access and every operation checked."""
    preload = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]  # fmt: skip
    environment = os.environ | {
        "LD_PRELOAD": " ".join(preload), "M27_CPU_SANITIZE": "1", "M27_CPU_ISA": level,
        "ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "tests/infer/cpu/test_runner.py",
         "tests/infer/cpu/test_draw.py"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
