"""The hand-written pass against the decoder under autograd, which is its oracle."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from m27.data.branches import positions as branch_positions
from m27.model.attention import restarting_positions
from m27.model.config import SIZES
from m27.model.decoder import Decoder
from m27.train import attention, kernels
from m27.train import fused as fused_module
from m27.train.cpu import half
from m27.train.fused import Fused, FusedError
from m27.train.lora import Adapters, LoraConfig
from m27.train.passes import FusedPass
from m27.train.products import choose
from m27.train.rows import FreeRows
from m27.train.whole import WholePass
from tests.train import fixtures


def documents():
    """Two rows: documents of one block and of several, equal and unequal lengths, padding at an end."""
    rows = ([0] * 300 + [1] * 20 + [2] * 64, [3] * 20 + [4] * 64 + [5] * 40 + [6] * 250 + [-1] * 10)
    return torch.tensor(rows)


@pytest.mark.parametrize("targets", [("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj",
                                      "up_proj", "down_proj"), ("v_proj", "up_proj")])  # fmt: skip
def test_fused_equals_autograd(targets):
    decoder = fixtures.decoder()
    adapters = Adapters(decoder, LoraConfig(rank=4, alpha=8, targets=targets))
    for name, parameter in adapters.parameters().items():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(parameter, std=0.1)
    docs = documents()
    config = decoder.config
    fused = Fused(decoder, adapters, torch.float32)
    plan = attention.layout(
        docs, config.n_kv_heads, config.n_heads // config.n_kv_heads, torch.float32
    )
    x = torch.randn(*docs.shape, config.dim, requires_grad=True)
    positions = restarting_positions(docs).flatten()
    h, tape = fused.forward(x.detach().flatten(0, 1), positions, plan)
    g = torch.randn_like(h) * (docs.flatten() >= 0)[:, None]
    gx = fused.backward(g, tape)
    mine = {name: p.grad.clone() for name, p in adapters.parameters().items()}
    for parameter in adapters.parameters().values():
        parameter.grad = None

    adapters.attach(decoder)
    want = decoder.hidden(x, documents_BT=docs)
    want.backward(g.view_as(want))
    real = docs >= 0
    torch.testing.assert_close(h.view_as(want)[real], want[real], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gx.view_as(x), x.grad, rtol=1e-4, atol=2e-4)
    for name, parameter in adapters.parameters().items():
        scale = float(parameter.grad.abs().max())
        torch.testing.assert_close(mine[name], parameter.grad, rtol=1e-4, atol=1e-5 * scale)
    with pytest.raises(FusedError, match="used"):
        fused.backward(g, tape)


def test_refresh_takes_up_changed_adapters_and_leaves_the_base():
    decoder = fixtures.decoder()
    adapters = Adapters(decoder, LoraConfig(rank=4))
    fused = Fused(decoder, adapters, torch.float32)
    linear = fused.layers[0].down
    before = linear.weight.clone()
    for parameter in adapters.parameters().values():
        torch.nn.init.normal_(parameter)
    fused.refresh()
    fused.refresh()
    a, b = adapters["model.layers.0.mlp.down_proj"]
    torch.testing.assert_close(linear.weight, before + adapters.scale * b @ a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_frozen_decoder_is_held_once_and_stays_as_it_was(dtype):
    decoder = fixtures.decoder().to(dtype)
    before = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    adapters = Adapters(decoder, LoraConfig(rank=2))
    fused = Fused(decoder, adapters, torch.float32)
    for parameter in adapters.parameters().values():
        torch.nn.init.normal_(parameter)
    fused.refresh()
    for name, tensor in decoder.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    held = {tensor.untyped_storage().data_ptr() for tensor in decoder.state_dict().values()}
    bases = [
        matrix.base.untyped_storage().data_ptr()
        for layer in fused.layers for matrix in (layer.qkv, layer.out, layer.up, layer.down)
    ]  # fmt: skip
    assert (held >= set(bases)) == (dtype == torch.float32)


def test_the_base_states_are_those_without_adapters():
    decoder, docs = fixtures.decoder(), documents()
    adapters = Adapters(decoder, LoraConfig(rank=4))
    fused = Fused(decoder, adapters, torch.float32)
    for parameter in adapters.parameters().values():
        torch.nn.init.normal_(parameter)
    fused.refresh()
    config = decoder.config
    plan = attention.layout(
        docs, config.n_kv_heads, config.n_heads // config.n_kv_heads, torch.float32
    )
    x = torch.randn(*docs.shape, config.dim)
    got = fused.base_states(x.flatten(0, 1), restarting_positions(docs).flatten(), plan)
    want = decoder.hidden(x, documents_BT=docs)
    real = docs >= 0
    torch.testing.assert_close(got.view_as(want)[real], want[real], rtol=1e-4, atol=1e-4)


def test_attention_in_groups_equals_one_masked_row():
    docs = documents()
    kv, group, width = 2, 2, 16
    n = docs.numel()
    q, k, v = (
        torch.randn(n, kv, size, requires_grad=True) for size in (group * width, width, width)
    )
    plan = attention.layout(docs, kv, group, torch.float32)
    out, saved = attention.attend(q.detach() * width**-0.5, k.detach(), v.detach(), plan)
    rows = torch.arange(docs.shape[0])[:, None].expand_as(docs).flatten() * 1000 + docs.flatten()
    mask = (rows[:, None] == rows[None]) & torch.ones(n, n, dtype=torch.bool).tril()
    heads = [t.view(n, -1, width).transpose(0, 1) for t in (q, k, v)]
    want = F.scaled_dot_product_attention(*heads, attn_mask=mask, enable_gqa=True)
    want = want.transpose(0, 1).flatten(1)
    torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-5)
    g = torch.randn_like(out)
    want.backward(g)
    gq, gk, gv = attention.attend_backward(g, saved, plan)
    torch.testing.assert_close(gq * width**-0.5, q.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gk, k.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gv, v.grad, rtol=1e-4, atol=1e-5)


def test_branches_are_what_their_conversations_are_alone():
    """One document of a beginning and three branches against three documents, forward and backward."""
    decoder = fixtures.decoder()
    config = decoder.config
    adapters = Adapters(decoder, LoraConfig(rank=4))
    for name, parameter in adapters.parameters().items():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(parameter, std=0.1)
    fused = Fused(decoder, adapters, torch.float32)
    shape = (config.n_kv_heads, config.n_heads // config.n_kv_heads, torch.float32)
    shared, lengths = 210, (70, 20, 33)
    branch = torch.tensor([0] * shared + [n for n, k in enumerate(lengths, 1) for _ in range(k)])
    x = torch.randn(len(branch), config.dim)
    g = torch.randn(len(branch), config.dim)
    g[:shared] = 0
    alone = [(branch == 0) | (branch == n) for n in (1, 2, 3)]

    def run(x_ND, g_ND, documents, positions, branches=None):
        plan = attention.layout(documents[None], *shape, branches_BT=branches)
        h, tape = fused.forward(x_ND, positions, plan)
        gx = fused.backward(g_ND, tape)
        grads = {name: p.grad.clone() for name, p in adapters.parameters().items()}
        for parameter in adapters.parameters().values():
            parameter.grad = None
        return h, gx, grads

    positions = torch.from_numpy(branch_positions(branch.numpy()))
    other = torch.full((40,), 7)  # a plain document beside it
    documents = torch.cat([torch.zeros_like(branch), other])
    beside = torch.randn(40, config.dim)
    got = run(
        torch.cat([x, beside]), torch.cat([g, torch.zeros_like(beside)]), documents,
        torch.cat([positions, torch.arange(40)]), torch.cat([branch, 0 * other])[None],
    )  # fmt: skip
    index = torch.cat([chosen.nonzero().flatten() for chosen in alone])
    each = torch.cat([torch.full((int(c.sum()),), n) for n, c in enumerate(alone)])
    places = torch.cat([torch.arange(int(c.sum())) for c in alone])
    want = run(x[index], g[index], each, places)
    torch.testing.assert_close(got[0][index], want[0], rtol=1e-4, atol=1e-4)
    gx = torch.zeros_like(x).index_add_(0, index, want[1])
    torch.testing.assert_close(got[1][: len(x)], gx, rtol=1e-4, atol=2e-4)
    for name, grad in want[2].items():
        scale = float(grad.abs().max())
        torch.testing.assert_close(got[2][name], grad, rtol=1e-4, atol=1e-5 * scale)


def test_kernels_differentiate_themselves_rightly():
    x, gain = torch.randn(5, 8, requires_grad=True), torch.rand(8) + 0.5
    g = torch.randn(5, 8)
    kernels.norm(x, gain, 1e-5, torch.float32).backward(g)
    got, _ = kernels.norm_backward(torch.zeros(5, 8), g, x.detach(), gain, 1e-5)
    torch.testing.assert_close(got, x.grad)
    both = torch.randn(5, 16, requires_grad=True)
    kernels.swiglu(both).backward(g)
    got, again = kernels.swiglu_backward(g, both.detach())
    torch.testing.assert_close(got, both.grad)
    torch.testing.assert_close(again, kernels.swiglu(both.detach()))


def test_other_families_are_refused_by_name():
    config = dataclasses.replace(SIZES["tiny"], family="qwen3")
    decoder = Decoder(config)
    with pytest.raises(FusedError, match="qwen3"):
        Fused(decoder, Adapters(decoder, LoraConfig(rank=2)), torch.float32)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return fixtures.corpus(tmp_path_factory.mktemp("shards"))


def free(path, **changes):
    return fixtures.config(body="full", rows="free", path=path, **changes)


def whole_step(way, model, batches):
    """Losses and every gradient of a step of several batches."""
    way.refresh()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    losses = [way.run(batch, plan, 7.0).targets_M for batch, plan in batches]
    way.collect()
    return torch.cat(losses), {name: p.grad.clone() for name, p in model.named_parameters()}


in_cpp = pytest.mark.skipif(half.load() is None, reason="products in C++ are not for this processor")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("dtype", "most", "fast"),
    [(torch.float32, 1e-5, False), (torch.bfloat16, 0.03, False),
     pytest.param(torch.bfloat16, 0.03, True, marks=in_cpp)],
)  # fmt: skip
def test_every_weights_gradient_equals_autograds(shards, tmp_path, monkeypatch, tied, dtype, most, fast):
    monkeypatch.setattr(fused_module, "choose", lambda d, device, _: choose(d, device, fast))
    trainer = fixtures.trainer(tmp_path, shards, free("fused"))
    batches = [(batch, trainer.scoring.plan(batch)) for batch in next(iter(trainer.loader))[0]]
    assert len(batches) == 2
    oracle = fixtures.decoder(fixtures.AUDIO[1], tied=tied)
    want, wanted = whole_step(WholePass(oracle, FreeRows(oracle, torch.float32)), oracle, batches)
    model = fixtures.decoder(fixtures.AUDIO[1], tied=tied)
    way = FusedPass(model, Adapters(model, LoraConfig(targets=())), FreeRows(model, dtype), dtype, False, True)
    got, found = whole_step(way, model, batches)
    if way.fused.products.half is not None:
        way.fused.products.half.forget()
    assert (got - want).norm() < most * want.norm()
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() < most * gradient.norm(), name


def test_twenty_steps_go_the_oracles_way(shards, tmp_path):
    curves = []
    for path in ("auto", "whole"):
        trainer = fixtures.trainer(tmp_path / path, shards, free(path, steps=20))
        assert isinstance(trainer.way, FusedPass if path == "auto" else WholePass)
        steps = trainer._steps()
        curves.append([trainer._train_step(next(steps)[0])["loss"] for _ in range(20)])
    torch.testing.assert_close(torch.tensor(curves[0]), torch.tensor(curves[1]), rtol=1e-5, atol=1e-5)
    assert curves[0][-1] < curves[0][0]


def test_gradients_that_were_dropped_are_taken_up_again():
    model = fixtures.decoder(fixtures.AUDIO[1])
    fused = Fused(model, Adapters(model, LoraConfig(targets=())), torch.float32, full=True)
    parameter = model.get_parameter("model.layers.0.self_attn.k_proj.weight")
    window = parameter.grad
    window.fill_(1.0)
    parameter.grad = None
    fused.refresh()
    assert parameter.grad.data_ptr() == window.data_ptr()
    assert not window.any()
    with pytest.raises(FusedError, match="no base"):
        fused.layers[0].qkv.forward_base(torch.zeros(1, 1))
    with pytest.raises(FusedError, match=r"q_proj.*float32"):
        Fused(model.bfloat16(), Adapters(model, LoraConfig(targets=())), torch.float32, full=True)
