"""A decoder in blocks, in a folder: what is written is read, as it is or widened, and nothing else."""

from dataclasses import replace

import pytest
import torch

from m27.infer.quantize import quantized
from m27.model.checkpoint import CheckpointError, load, open_state
from m27.model.gguf import Blocks
from m27.model.quantized import held_precision, open_quantized, save_quantized
from m27.model.rounding import round_int8
from tests.model.conftest import TINY, random_decoder

NARROW = replace(TINY, dim=40, n_heads=5, n_kv_heads=1, head_dim=8, ffn_dim=72)  # no whole groups


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("config", [TINY, NARROW])
def test_what_is_written_is_read(config, precision, tmp_path):
    decoder = random_decoder(config)
    want = dict(quantized(decoder.state_dict(), precision))
    save_quantized(tmp_path, config, want.items(), precision)
    assert held_precision(tmp_path) == precision
    assert open_quantized(tmp_path)[2] == precision
    found_config, state = open_state(tmp_path)
    assert found_config == config
    assert set(state) == set(want)
    for name, value in want.items():
        found = state[name]
        if not isinstance(value, Blocks):
            assert torch.equal(found, value)
            continue
        assert isinstance(found, Blocks)
        assert torch.equal(found.q, value.q)
        assert torch.equal(found.scale, value.scale)
        assert (found.minimum is None) == (value.minimum is None)
        assert value.minimum is None or torch.equal(found.minimum, value.minimum)
    # Widened it is a plain decoder, near the one it was made of.
    widened = load(tmp_path).state_dict()
    for name, weight in decoder.state_dict().items():
        assert widened[name].shape == weight.shape
        assert (widened[name] - weight).norm() <= {"int8": 0.01, "int4": 0.1}[
            precision
        ] * weight.norm()


def test_what_is_no_such_folder_is_refused_by_name(tmp_path):
    assert held_precision(tmp_path) is None
    decoder = random_decoder(TINY)
    with pytest.raises(CheckpointError, match="'int3' is neither"):
        save_quantized(tmp_path, TINY, {}.items(), "int3")
    experts = replace(TINY, family="qwen3_moe", n_experts=4, top_k=2, expert_dim=32)
    with pytest.raises(CheckpointError, match="experts"):
        save_quantized(tmp_path, experts, {}.items(), "int4")
    assert not list(tmp_path.iterdir())
    state = dict(quantized(decoder.state_dict(), "int4"))
    missing = state.pop("model.norm.weight")
    save_quantized(tmp_path, TINY, state.items(), "int4")
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight is missing"):
        open_state(tmp_path)
    state |= {"model.norm.weight": missing, "odd.weight": missing + 1}
    save_quantized(tmp_path, TINY, state.items(), "int4")
    with pytest.raises(CheckpointError, match=r"odd\.weight has no place"):
        open_state(tmp_path)
    state.pop("odd.weight")
    name = "model.layers.0.input_layernorm.weight"
    save_quantized(tmp_path, TINY, (state | {name: round_int8(torch.ones(1, 64))}).items(), "int4")
    with pytest.raises(CheckpointError, match=rf"{name} is \[1, 64\]"):
        load(tmp_path)
    other = tmp_path / "quantised.safetensors"
    other.write_bytes(other.read_bytes().replace(b"m27-quantised-1", b"m27-quantised-9"))
    with pytest.raises(CheckpointError, match="not of format 'm27-quantised-1'"):
        held_precision(tmp_path)
