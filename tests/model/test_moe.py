"""Experts: the grouped path equals the loop, the router its definition, the loss its bounds."""

import pytest
import torch
from torch import nn

from m27.model.moe import Experts, MoE, balancing_loss
from tests.model.conftest import FAMILIES, random_decoder

CONFIG = FAMILIES["qwen3_moe"]


@pytest.fixture
def experts() -> Experts:
    made = Experts(CONFIG)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2)
    return made


@pytest.mark.parametrize("tokens", [1, 7, 64])
def test_grouped_equals_loop_forward_and_backward(experts, tokens):
    x = torch.randn(tokens, CONFIG.dim)
    chosen = torch.rand(tokens, CONFIG.n_experts).topk(CONFIG.top_k).indices
    weights = torch.rand(tokens, CONFIG.top_k)
    results = []
    for path in (experts.loop, experts.grouped):
        leaves = [x.clone().requires_grad_(), weights.clone().requires_grad_()]
        experts.zero_grad()
        y = path(leaves[0], chosen, leaves[1])
        (y * torch.linspace(-1, 1, CONFIG.dim)).sum().backward()
        grads = [p.grad.clone() for p in experts.parameters()]
        results.append([y, leaves[0].grad, leaves[1].grad, *grads])
    for slow, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow)


def test_an_expert_nobody_chose_is_left_alone(experts):
    chosen = torch.tensor([[0, 3], [3, 0]])
    x, weights = torch.randn(2, CONFIG.dim), torch.ones(2, 2)
    torch.testing.assert_close(
        experts.grouped(x, chosen, weights), experts.one(0, x) + experts.one(3, x)
    )


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


def test_router_logits_come_out_of_every_layer():
    routing: list[torch.Tensor] = []
    model = random_decoder(CONFIG)
    model.hidden(model.embed(torch.randint(0, 97, (2, 5))), routing=routing)
    assert [tuple(r.shape) for r in routing] == [(10, CONFIG.n_experts)] * CONFIG.n_layers
    balancing_loss(routing, CONFIG.top_k).backward()
    assert all(block.mlp.gate.weight.grad.abs().sum() > 0 for block in model.model.layers)


def test_balancing_loss_is_one_when_even_and_worst_when_collapsed():
    even = torch.eye(8).repeat(4, 1) * 1e-3
    assert balancing_loss([even, even], 1) == pytest.approx(1, abs=1e-3)
    collapsed = torch.zeros(32, 8)
    collapsed[:, :2] = 50
    assert balancing_loss([collapsed], 2) == pytest.approx(8 / 2, abs=1e-3)
    mixed = torch.cat((even, collapsed))
    keep = torch.arange(64) < 32
    assert balancing_loss([mixed], 1, keep) == pytest.approx(1, abs=1e-3)
