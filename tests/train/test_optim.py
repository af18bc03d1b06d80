import math

import pytest
import torch
from torch import nn

from m27.train.optim import OptimConfig, Optimiser, factor


def test_wsd_warms_up_holds_and_decays():
    config = OptimConfig(warmup=0.1, decay=0.2, floor=0.0)
    assert factor(config, 0.05) == pytest.approx(0.5)
    assert factor(config, 0.0) > 0
    assert factor(config, 0.3) == factor(config, 0.8) == 1.0
    assert factor(config, 0.85) == pytest.approx(1 - math.sqrt(0.25))
    assert factor(config, 1.0) == factor(config, 1.5) == pytest.approx(0.0)


def test_cosine_and_constant():
    assert factor(OptimConfig(schedule="cosine", warmup=0, floor=0.1), 0.5) == pytest.approx(0.55)
    assert factor(OptimConfig(schedule="constant", warmup=0), 1.0) == 1.0


def test_each_kind_of_parameter_has_its_rate_and_clipping_bounds_the_whole():
    names = ("a.lora_A", "image_map.up.weight", "control.weight")
    parameters = {name: nn.Parameter(torch.ones(3)) for name in names}
    config = OptimConfig(
        lr=0.1, map_lr=0.2, control_lr=0.3, schedule="constant", warmup=0, weight_decay=0
    )
    optimiser = Optimiser(parameters, config)
    for parameter in parameters.values():
        parameter.grad = torch.full((3,), 7.0)
    _, norm = optimiser.step(0.0)
    assert norm == pytest.approx(21.0)
    moved = [1 - float(p[0].detach()) for p in parameters.values()]
    assert moved == pytest.approx([0.1, 0.2, 0.3], rel=1e-3)  # Adam's first step is the rate
    assert all(float(p.grad.abs().sum()) == 0 for p in parameters.values())


def test_a_gradient_that_is_not_finite_is_an_error():
    parameter = nn.Parameter(torch.ones(2))
    optimiser = Optimiser({"x": parameter}, OptimConfig())
    parameter.grad = torch.tensor([1.0, math.nan])
    with pytest.raises(FloatingPointError, match="nan"):
        optimiser.step(0.5)
