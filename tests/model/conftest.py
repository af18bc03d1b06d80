"""Small random models of each family, spread enough that a wrong mask or angle shows."""

from dataclasses import replace

import pytest
import torch

from m27.model.config import SIZES, Config
from m27.model.decoder import Decoder

TINY = replace(SIZES["tiny"], vocab_size=97, ffn_dim=96)
FAMILIES = {
    "llama": TINY,
    "qwen3": replace(TINY, family="qwen3", tied=False, norm_eps=1e-6, head_dim=32),
    "qwen3_moe": replace(TINY, family="qwen3_moe", tied=False, n_experts=8, top_k=2, expert_dim=48),
}


def random_decoder(config: Config) -> Decoder:
    """Weights wide enough that logits differ by whole numbers and not by rounding."""
    model = Decoder(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.1)
    return model


@pytest.fixture(params=FAMILIES)
def config(request: pytest.FixtureRequest) -> Config:
    return FAMILIES[request.param]


@pytest.fixture
def model(config: Config) -> Decoder:
    return random_decoder(config)


@pytest.fixture
def tiny() -> Decoder:
    return random_decoder(TINY)
