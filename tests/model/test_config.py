"""Configurations: in and out of the stock form, what is refused, and the size table."""

import re
from dataclasses import replace

import pytest
import torch

from m27.model.config import SIZES, Config, ConfigError, size_row, size_table
from m27.model.decoder import Decoder


@pytest.mark.parametrize("name", SIZES)
def test_stock_form_round_trips(name):
    assert Config.from_hf(SIZES[name].to_hf()) == SIZES[name]


@pytest.mark.parametrize("name", SIZES)
def test_size_row_counts_what_is_built(name):
    with torch.device("meta"):
        model = Decoder(SIZES[name])
    row = size_row(name, SIZES[name])
    assert row.parameters == sum(p.numel() for p in model.parameters())
    vectors = sum(p.numel() for p in model.parameters() if p.dim() == 1)
    assert row.bf16 == 2 * row.parameters
    assert row.int8 == (row.parameters - vectors) * 34 // 32 + 2 * vectors
    idle = sum(
        p.numel() * (SIZES[name].n_experts - SIZES[name].top_k) // SIZES[name].n_experts
        for key, p in model.named_parameters()
        if ".experts." in key
    )
    assert row.active_parameters == row.parameters - idle


def test_sizes_are_what_their_names_say():
    rows = {row.name: row for row in size_table()}
    assert list(rows) == ["tiny", "nano", "1b7", "7b", "moe"]
    assert 6.5e9 <= rows["7b"].parameters <= 8e9
    assert 28e9 <= rows["moe"].parameters <= 32e9
    assert 2.7e9 <= rows["moe"].active_parameters <= 3.6e9
    assert rows["nano"].parameters == 134_515_008 + (73_856 - 49_152) * 576
    assert SIZES["nano"].vocab_size % 128 == 0


def test_cache_bytes_are_those_of_the_tensors():
    # SmolLM2-135M: 30 layers, keys and values, 3 heads of 64, 2 bytes.
    assert size_row("nano", SIZES["nano"]).cache_per_token == 30 * 2 * 3 * 64 * 2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "gpt2"}, "model_type"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_bias": True}, "attention_bias"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters"),
        ({"num_key_value_heads": 3}, "n_kv_heads"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"use_sliding_window": True}, "use_sliding_window"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(change, named):
    with pytest.raises(ConfigError, match=named):
        Config.from_hf(SIZES["tiny"].to_hf() | change)


@pytest.mark.parametrize(
    "change",
    [{"n_experts": 4}, {"head_dim": 15}, {"ffn_dim": 0}, {"family": "x"}],
)
def test_contradictions_are_refused(change):
    with pytest.raises(ConfigError, match=re.escape(next(iter(change)).split("_")[0])):
        replace(SIZES["tiny"], **change)


def test_newer_stock_form_of_the_rotary_base_is_read():
    data = SIZES["nano"].to_hf()
    del data["rope_theta"]
    data["rope_parameters"] = {"rope_type": "default", "rope_theta": 100_000.0}
    assert Config.from_hf(data) == SIZES["nano"]
