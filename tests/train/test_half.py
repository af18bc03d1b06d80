"""The products in C++ against exact ones, and against what bfloat16 makes of them, in each kind that runs here."""

import ctypes
import itertools
import shutil

import pytest
import torch
import torch.nn.functional as F

from m27.train import attention, kernels
from m27.train.cpu import build, half
from m27.train.products import HalfProducts, Products, choose

# Largest error of a product's elements, over the norms of its row and column: that of rounding both to bfloat16.
MOST = {"float16": 2e-3, "bfloat16": 2**-8 * 1.01}


@pytest.fixture(scope="module", params=build.KINDS, ids=lambda kind: kind.name)
def compiled(request):
    kind = request.param
    if not build.cpu_flags() >= kind.needs:
        pytest.skip(f"this processor has no {', '.join(sorted(kind.needs - build.cpu_flags()))}")
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    return half.Half(ctypes.CDLL(str(build.library(kind))), kind.name)


@pytest.fixture
def library(compiled):
    yield compiled
    compiled.forget()


def apart(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())


def matrix(rows: int, columns: int, turned: bool, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Values whose rows and columns are of sizes far apart."""
    x = torch.randn(rows, columns) * torch.logspace(-3, 3, rows)[:, None]
    return (x.t().contiguous().t() if turned else x).to(dtype)


@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("shape", [(1, 1, 1), (13, 64, 64), (100, 130, 77), (25, 3100, 2100)])
def test_a_product_is_no_farther_than_one_of_bfloat16(library, shape, turned):
    m, n, k = shape
    a, b = matrix(m, k, turned[0]), matrix(n, k, not turned[1]).t()
    want = a.double() @ b.double()
    rounded = a.bfloat16().double() @ b.bfloat16().double()
    exact = library.product(a, b, torch.empty(m, n))
    if library.kind == "float16":
        assert apart(exact, want) < max(1e-3, 0.9 * apart(rounded, want))
    else:
        assert apart(exact, rounded) < 1e-6  # what is left are sums in float32
    each = (exact.double() - want).abs() / (a.double().norm(dim=1)[:, None] * b.double().norm(dim=0))
    assert each.max() < 2 * MOST[library.kind]  # no row suffers from another's size
    narrow = library.product(a.bfloat16(), b.bfloat16(), torch.empty(m, n, dtype=torch.bfloat16))
    assert apart(narrow, rounded) < 4e-3
    under = matrix(m, n, False)
    added = under.clone()
    assert apart(library.product(a, b, torch.empty(m, n), under), under + exact) < 1e-6
    assert apart(library.product(a, b, added, added), under + exact) < 1e-6


def test_sizes_that_float16_does_not_hold(library):
    a, b = torch.randn(20, 200) * 1e-20, torch.randn(200, 70) * 1e25
    assert apart(library.product(a, b, torch.empty(20, 70)), a.double() @ b.double()) < MOST[library.kind]
    a[3, 5] = float("nan")
    got = library.product(a, b, torch.empty(20, 70))
    assert got[3].isnan().all()
    assert got[torch.arange(20) != 3].isfinite().all()
    assert not library.product(torch.zeros(3, 8), torch.zeros(8, 4), torch.ones(3, 4)).any()
    with pytest.raises(ValueError, match="product of"):
        library.product(torch.zeros(3, 8), torch.zeros(7, 4), torch.ones(3, 4))


@pytest.mark.parametrize(("heads", "keys", "width"), [(9, 3, 64), (4, 2, 16), (2, 1, 128)])
def test_attention_is_no_farther_than_one_in_bfloat16(library, heads, keys, width):
    docs = torch.tensor([[0] * 150 + [1] * 20 + [2] * 6, [3] * 1 + [4] * 165 + [-1] * 10])
    n = docs.numel()
    q, k, v = (torch.randn(n, keys, s).bfloat16() for s in (heads // keys * width, width, width))
    q *= width**-0.5
    g = torch.randn(n, heads * width).bfloat16()
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        plan = attention.layout(docs, keys, heads // keys, dtype)
        out, saved = attention.attend(q.to(dtype), k.to(dtype), v.to(dtype), plan)
        results.append([out, *attention.attend_backward(g.to(dtype), saved, plan)])
    products = HalfProducts(library)
    plan = products.plan(docs, keys, heads, width, None)
    out, saved = products.attend(q, k, v, plan)
    ours = [out, *products.attend_backward(g, saved, plan)]
    for got, want, rival in zip(ours, *results, strict=True):
        assert apart(got, want) < 1.1 * apart(rival, want)


def test_the_number_of_threads_changes_no_bit(library):
    a, b = torch.randn(200, 1500), torch.randn(1500, 300)
    q, k, v = (torch.randn(90, 2, width).bfloat16() for width in (32, 16, 16))
    products = HalfProducts(library)
    plan = products.plan(torch.tensor([[0] * 70 + [1] * 20]), 2, 4, 16, None)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            out, saved = products.attend(q, k, v, plan)
            product = library.product(a, b, torch.empty(200, 300, dtype=torch.bfloat16))
            found.append([product, out, *products.attend_backward(out, saved, plan)])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_the_losses_gradient_takes_the_scores_place(library):
    scores = (torch.randn(5, 1003) * 4).bfloat16()
    targets, weights = torch.tensor([0, 1002, 5, 500, 77]), torch.rand(5)
    x = scores.float().requires_grad_()
    want = F.cross_entropy(x, targets, reduction="none")
    (want * weights).sum().backward()
    got = library.entropy(scores, targets, weights)
    torch.testing.assert_close(got, want.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores.float(), x.grad, rtol=5e-3, atol=1e-7)
    x.grad = None
    drawn = x.detach().bfloat16()
    (F.cross_entropy(x, targets, reduction="none") + 0.1 * x.logsumexp(-1) ** 2).mul(weights).sum().backward()
    library.entropy(drawn, targets, weights, 0.1)
    torch.testing.assert_close(drawn.float(), x.grad, rtol=5e-3, atol=1e-7)


def test_the_gated_unit_is_the_kernels(library):
    gate_up, g = (torch.randn(7, 2 * 37) * 6).bfloat16(), torch.randn(7, 37).bfloat16()
    gate_up[0, :3] = torch.tensor([-300.0, 300.0, 0.0])
    torch.testing.assert_close(library.swiglu(gate_up), kernels.swiglu(gate_up), rtol=8e-3, atol=1e-30)
    for got, want in zip(library.swiglu_backward(g, gate_up), kernels.swiglu_backward(g, gate_up), strict=True):
        torch.testing.assert_close(got, want, rtol=8e-3, atol=1e-5)


def test_torch_does_where_it_does_not_fit(monkeypatch, capsys):
    cpu = torch.device("cpu")
    assert type(choose(torch.float32, cpu, True)) is Products
    assert type(choose(torch.bfloat16, cpu, False)) is Products
    for flags in ({"avx512_fp16"}, {"avx512_bf16"}, build.KINDS[0].needs | {"amx_bf16"}):
        half.load.cache_clear()
        monkeypatch.setattr(build, "cpu_flags", lambda flags=flags: flags)
        assert type(choose(torch.bfloat16, cpu, True)) is Products
    half.load.cache_clear()
    monkeypatch.setattr(build, "cpu_flags", lambda: build.KINDS[0].needs)
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    assert type(choose(torch.bfloat16, cpu, True)) is Products
    assert capsys.readouterr().err.count("cannot be built") == 1
    half.load.cache_clear()


def test_float16_is_taken_where_both_are_there(monkeypatch):
    for kind in build.KINDS:
        monkeypatch.setattr(build, "cpu_flags", lambda kind=kind: set(kind.needs) | {"sse2"})
        assert build.kind() is kind


@pytest.mark.slow  # seconds of compiling each
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_each_kind_compiles_into_a_library_of_its_own():
    paths = [build.library(kind) for kind in build.KINDS]
    assert all(path.is_file() for path in paths)
    assert all(one != other for one, other in itertools.combinations(paths, 2))


def test_a_compiler_that_fails_is_told_in_one_line(monkeypatch, tmp_path):
    if build.shutil.which("g++") is None:
        pytest.skip("no g++")
    monkeypatch.setenv("M27_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "_FLAGS", ("-fno-such-flag",))
    with pytest.raises(build.BuildError, match=r"fails: .*no-such-flag"):
        build.library(build.KINDS[-1])
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
