"""muon.py and average.py, against the singular values, `torch.optim.Muon` and the sum written out."""

import pytest
import torch
from torch import nn

from m27 import runtime
from m27.train import muon
from m27.train.average import Average
from m27.train.optim import OptimConfig, OptimError, Optimiser


@pytest.mark.parametrize("shape", [(48, 48), (32, 96), (96, 32), (3, 24, 40), (3, 40, 24)])
def test_singular_values_come_to_about_one_and_vectors_stay(shape):
    torch.manual_seed(0)
    given = torch.randn(shape) * 3
    u, _, vh = torch.linalg.svd(given, full_matrices=False)
    found = muon.orthogonal(given)
    assert found.shape == given.shape
    values = torch.linalg.svdvals(found)
    assert float(values.min()) > 0.5 and float(values.max()) < 1.3
    # What is left beside u vh is along the same singular vectors: off the diagonal there is rounding alone.
    inner = u.mT @ found @ vh.mT
    off = inner - torch.diag_embed(torch.diagonal(inner, dim1=-2, dim2=-1))
    assert float(off.abs().max()) < 0.05


def test_a_stack_is_so_many_matrices():
    torch.manual_seed(0)
    stack = torch.randn(4, 16, 24)
    torch.testing.assert_close(
        muon.orthogonal(stack), torch.stack([muon.orthogonal(one) for one in stack]), rtol=0.02, atol=0.02
    )


@pytest.mark.skipif(not runtime.cpu_bf16(), reason="torch.optim.Muon computes in bfloat16")
@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_steps_equal_those_of_torch(shape):
    torch.manual_seed(0)
    begun = torch.randn(shape)
    ours, theirs = nn.Parameter(begun.clone()), nn.Parameter(begun.clone())
    mine = muon.Muon({"w": ours}, 0.95, 0.1)
    oracle = torch.optim.Muon(
        [theirs], lr=0.02, momentum=0.95, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    for seed in range(4):
        gradient = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        mine.step(0.02)
        oracle.step()
    moved = (theirs.detach() - begun).norm()
    assert float((ours.detach() - theirs.detach()).norm() / moved) < 0.01


def test_hidden_matrices_are_moved_by_muon_and_all_else_by_adamw():
    shapes = {
        "model.layers.0.mlp.up_proj.weight": (8, 4), "model.layers.0.mlp.experts.down_proj": (2, 4, 8),
        "model.layers.0.mlp.gate.weight": (2, 4), "model.layers.0.self_attn.q_norm.weight": (4,),
        "model.embed_tokens.weight": (9, 4), "lm_head.weight": (9, 4), "image_map.up.weight": (4, 4),
        "model.layers.0.mlp.gate_proj.weight": (8, 4), "control.weight": (3, 4), "model.norm.weight": (4,),
    }  # fmt: skip
    parameters = {name: nn.Parameter(torch.ones(shape)) for name, shape in shapes.items()}
    optimiser = Optimiser(parameters, OptimConfig(kind="muon", schedule="constant", warmup=0))
    assert set(optimiser.muon.parameters) == {n for n in shapes if "_proj" in n}
    for parameter in parameters.values():
        parameter.grad = torch.randn_like(parameter)
    optimiser.step(0.5)
    assert all(not torch.equal(p, torch.ones_like(p)) for p in parameters.values())
    assert all(float(p.grad.abs().sum()) == 0 for p in parameters.values())
    state = optimiser.state()
    assert {n.removesuffix(".momentum") for n in state if n.endswith(".momentum")} == set(optimiser.muon.parameters)
    again = Optimiser(parameters, optimiser.config)
    again.load(state)
    assert again.state().keys() == state.keys()
    assert all(torch.equal(again.state()[name], tensor) for name, tensor in state.items())


def test_muon_without_a_hidden_matrix_is_refused():
    with pytest.raises(OptimError, match="body=full"):
        Optimiser({"a.lora_A": nn.Parameter(torch.ones(2, 2))}, OptimConfig(kind="muon"))


def test_weight_decay_is_of_matrices_alone():
    parameters = {"w": nn.Parameter(torch.ones(2, 2)), "norm": nn.Parameter(torch.ones(2))}
    optimiser = Optimiser(parameters, OptimConfig(lr=0.1, weight_decay=0.5, schedule="constant", warmup=0))
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step(0.5)
    assert float(parameters["w"][0, 0].detach()) == pytest.approx(0.95)
    assert float(parameters["norm"][0].detach()) == 1.0


def test_the_average_is_the_sum_written_out_and_goes_on():
    weight = nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    average, expected = Average({"w": weight}, 0.5), None
    for step in range(1, 9):
        weight.data.fill_(step / 8)
        if step == 5:  # resumed
            state = {name: tensor.clone() for name, tensor in average.state().items()}
            average = Average({"w": weight}, 0.5)
            average.load(state)
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = step / 8 if expected is None else decay * expected + (1 - decay) * step / 8
    assert average.tensors["w"].dtype == torch.float32
    assert average.tensors["w"].tolist() == pytest.approx([expected] * 3)
