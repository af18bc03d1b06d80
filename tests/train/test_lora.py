import pytest
import torch

from m27.train.lora import Adapters, LoraConfig, LoraError
from tests.train import fixtures


def test_attached_equals_merged():
    decoder = fixtures.decoder()
    adapters = Adapters(decoder, LoraConfig(rank=4, alpha=8))
    x = torch.randn(1, 9, 64)
    plain = decoder.hidden(x)
    for parameter in adapters.parameters().values():
        torch.nn.init.normal_(parameter, std=0.1)
    adapters.merge_into(decoder)
    merged = decoder.hidden(x)
    fresh = fixtures.decoder()
    adapters.attach(fresh)
    torch.testing.assert_close(fresh.hidden(x), merged, rtol=1e-3, atol=1e-4)
    assert (merged - plain).abs().max() > 0.1


def test_adapters_begin_as_nothing_and_load_by_name():
    decoder = fixtures.decoder()
    adapters = Adapters(decoder, LoraConfig(rank=4))
    x = torch.randn(1, 9, 64)
    before = decoder.hidden(x)
    adapters.attach(decoder)
    assert torch.equal(decoder.hidden(x), before)
    state = {name: torch.ones_like(p) for name, p in adapters.parameters().items()}
    assert "model.layers.1.mlp.down_proj.lora_A" in state
    adapters.load(state)
    assert all(bool((p == 1).all()) for p in adapters.parameters().values())
    del state["model.layers.0.mlp.up_proj.lora_B"]
    with pytest.raises(LoraError, match=r"up_proj\.lora_B: missing"):
        adapters.load(state)


def test_a_target_that_names_nothing_is_an_error():
    with pytest.raises(LoraError, match="qq_proj"):
        Adapters(fixtures.decoder(), LoraConfig(targets=("q_proj", "qq_proj")))
