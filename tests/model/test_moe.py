"""Experts: the grouped path equals the loop, the router its definition, what is folded its original."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from m27.model.moe import Experts, MoE, choose, combine, sort
from tests.model.conftest import FAMILIES, random_decoder

CONFIG = FAMILIES["qwen3_moe"]


@pytest.fixture
def experts() -> Experts:
    made = Experts(CONFIG)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2)
    return made


def outcome(experts, path, x, chosen, weights):
    """The output and every gradient of one way through the experts."""
    leaves = [x.clone().requires_grad_(), weights.clone().requires_grad_()]
    experts.zero_grad()
    y = path(leaves[0], chosen, leaves[1])
    (y * torch.linspace(-1, 1, CONFIG.dim)).sum().backward()
    return [y, leaves[0].grad, leaves[1].grad, *(p.grad.clone() for p in experts.parameters())]


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("tokens", [1, 7, 64])
def test_grouped_equals_loop_forward_and_backward(experts, tokens, whole, monkeypatch):
    if not whole:  # where torch has no grouped product
        monkeypatch.setattr("m27.model.moe._has_grouped", lambda x, down: False)
    x, weights = torch.randn(tokens, CONFIG.dim), torch.rand(tokens, CONFIG.top_k)
    chosen = torch.rand(tokens, CONFIG.n_experts).topk(CONFIG.top_k).indices
    slow = outcome(experts, experts.loop, x, chosen, weights)
    fast = outcome(experts, experts, x, chosen, weights)
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_a_single_expert_counts_whole_and_its_router_learns():
    """One expert a token: its weight is one, as in the stock model, and the gradient its probability's."""
    torch.manual_seed(0)
    layer = MoE(replace(CONFIG, top_k=1))
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.2)
    x = torch.randn(9, CONFIG.dim)
    _, chosen, weights = layer.route(x)
    assert torch.equal(weights, torch.ones(9, 1))
    direction = torch.randn(9, 1)
    (weights * direction).sum().backward()
    found = layer.gate.weight.grad.clone()
    layer.zero_grad()
    p = (x @ layer.gate.weight.t()).softmax(-1).gather(1, chosen)
    (p / p.detach() * direction).sum().backward()
    torch.testing.assert_close(found, layer.gate.weight.grad)
    assert found.abs().max() > 1e-3


def test_an_expert_nobody_chose_is_left_alone(experts):
    chosen = torch.tensor([[0, 3], [3, 0]])
    x, weights = torch.randn(2, CONFIG.dim), torch.ones(2, 2)
    y, *_, gate_up, down = outcome(experts, experts, x, chosen, weights)
    torch.testing.assert_close(y, experts.one(0, x) + experts.one(3, x))
    for grad in (gate_up, down):
        assert [bool(g.any()) for g in grad] == [e in (0, 3) for e in range(CONFIG.n_experts)]


@pytest.mark.parametrize(("width", "inner", "dtype"), [(6, 5, torch.float32), (64, 48, torch.float64)])
def test_what_the_grouped_product_does_not_take_goes_one_by_one(width, inner, dtype):
    config = replace(CONFIG, dim=width, expert_dim=inner)
    experts = Experts(config).to(dtype)
    for parameter in experts.parameters():
        nn.init.normal_(parameter)
    x, weights = torch.randn(9, width, dtype=dtype), torch.rand(9, 2, dtype=dtype)
    chosen = torch.rand(9, CONFIG.n_experts).topk(2).indices
    want = experts.loop(x, chosen, weights)
    torch.testing.assert_close(experts(x, chosen, weights), want)
    experts(x, chosen, weights).sum().backward()  # a gradient whose rows are one row


def test_no_token_at_all(experts):
    x = torch.zeros(0, CONFIG.dim, requires_grad=True)
    y = experts(x, torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, 2))
    y.sum().backward()
    assert y.shape == (0, CONFIG.dim)


def test_under_autocast_products_are_narrow_and_the_sum_is_not_lost(experts):
    x, weights = torch.randn(64, CONFIG.dim), torch.rand(64, 2)
    chosen = torch.rand(64, CONFIG.n_experts).topk(2).indices
    want = outcome(experts, experts, x, chosen, weights)
    with torch.autocast("cpu", torch.bfloat16):
        found = outcome(experts, experts, x, chosen, weights)
        assert experts.sorted(x, torch.tensor([64, 0, 0, 0, 0, 0, 0, 0])).dtype == torch.bfloat16
    for a, b in zip(found, want, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() < 0.02 * b.norm()


def test_what_a_sort_spreads_is_combined_again():
    x, chosen = torch.randn(9, 4, dtype=torch.float64), torch.randint(0, 3, (9, 2))
    rows, counts, order, home = sort(x, chosen, 5)
    assert counts.tolist() == [int((chosen == e).sum()) for e in range(5)]
    assert torch.equal(chosen.flatten()[order], chosen.flatten().sort(stable=True).values)
    torch.testing.assert_close(rows, x[order // 2])
    weights = torch.rand(9, 2, dtype=torch.float64)
    torch.testing.assert_close(combine(rows, weights, order, home), x * weights.sum(1, keepdim=True))


def test_gradients_of_sort_and_combine_are_those_of_differences():
    chosen = torch.tensor([[0, 2], [2, 1], [0, 1]])
    scale = torch.linspace(0.5, 2, 6, dtype=torch.float64)[:, None]

    def through(x, weights):
        rows, _, order, home = sort(x, chosen, 3)
        return combine(rows * scale, weights, order, home)

    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(through, (x, weights))


def test_under_autocast_only_narrow_rows_move(experts):
    x = torch.randn(64, CONFIG.dim, requires_grad=True)
    chosen = torch.rand(64, CONFIG.n_experts).topk(2).indices
    with torch.autocast("cpu", torch.bfloat16):
        rows, *_ = sort(x, chosen, CONFIG.n_experts)
    assert rows.dtype == torch.bfloat16
    rows.float().sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 2))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # the compiler has its own
def test_a_layer_compiles_into_one_piece_as_a_gpu_wants_it():
    torch.manual_seed(0)
    layer = MoE(CONFIG)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.2)
    x = torch.randn(2, 32, CONFIG.dim)
    found = []
    for way in (layer, torch.compile(layer, fullgraph=True)):
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            y, _ = way(x)
        (y.float() * torch.linspace(-1, 1, CONFIG.dim)).sum().backward()
        found.append([y.detach(), *(p.grad.clone() for p in layer.parameters())])
    for a, b in zip(*found, strict=True):
        assert (a - b).norm() < 0.02 * a.norm()


def test_router_takes_the_likeliest_and_normalises():
    moe = MoE(CONFIG)
    x = torch.randn(9, CONFIG.dim)
    logits, chosen, weights = moe.route(x)
    chances = logits.detach().softmax(-1)
    torch.testing.assert_close(weights.sum(-1), torch.ones(9))
    for row in range(9):
        best = sorted(range(CONFIG.n_experts), key=lambda e: -float(chances[row, e]))
        assert chosen[row].tolist() == best[: CONFIG.top_k]
    moe.norm_topk = False
    torch.testing.assert_close(moe.route(x)[2], chances.gather(1, chosen))


def test_a_selection_bias_moves_the_choice_and_no_weight():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    chances = logits.softmax(-1)[0]
    assert choose(logits, 2)[1].tolist() == [[0, 1]]
    weights, chosen = choose(logits, 2, torch.tensor([0.0, -5.0, 0.0, 0.0]))
    assert chosen.tolist() == [[0, 2]]
    torch.testing.assert_close(weights[0], chances[[0, 2]])
    same = choose(logits, 2, torch.zeros(4))
    assert torch.equal(same[1], choose(logits, 2)[1])


def test_router_logits_come_out_of_every_layer():
    routing: list[torch.Tensor] = []
    model = random_decoder(CONFIG)
    model.hidden(model.embed(torch.randint(0, 97, (2, 5))), routing=routing)
    assert [tuple(r.shape) for r in routing] == [(10, CONFIG.n_experts)] * CONFIG.n_layers


def test_whoever_lays_out_the_experts_replaces_one_call():
    moe = random_decoder(CONFIG).model.layers[0].mlp
    x = torch.randn(2, 5, CONFIG.dim)
    want = moe(x)[0]
    inner = moe.experts
    moe.experts = Elsewhere(inner)
    torch.testing.assert_close(moe(x)[0], want)


class Elsewhere(nn.Module):
    """Stands for experts on other ranks: same call, another way to compute it."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x_MD, chosen_Mk, weights_Mk):
        return self.inner.loop(x_MD, chosen_Mk, weights_Mk)
