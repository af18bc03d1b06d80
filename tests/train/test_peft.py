"""peft.py: a folder that plain PEFT loads on the stock checkpoint, with the same logits as ours."""

import json

import pytest
import torch
from safetensors.torch import load_file

from m27.infer.adapters import read_adapter
from m27.model import checkpoint
from m27.train.lora import Adapters, LoraConfig, LoraError
from m27.train.peft import WEIGHTS, write_adapter
from tests import tiny


def adapters(rank: int = 4, alpha: float = 6.0) -> Adapters:
    made = Adapters(tiny.decoder(), LoraConfig(rank, alpha), seed=1)
    for factor in made.parameters().values():
        torch.nn.init.normal_(factor, std=0.3)
    return made


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_plain_peft_gives_the_same_logits(tmp_path):
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    made = adapters()
    write_adapter(tmp_path / "adapter", made.parameters(), made.config, "tiny")
    ours = tiny.decoder()
    checkpoint.save(ours, tmp_path / "model", dtype=torch.float32)
    stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    theirs = peft.PeftModel.from_pretrained(stock, tmp_path / "adapter").eval()
    ids = torch.arange(3, 20)[None]
    with torch.inference_mode():
        plain = ours(ids)
        made.merge_into(ours)
        expected, found = ours(ids), theirs(ids).logits
    assert (expected - plain).abs().max() > 0.1  # it changes something
    assert (expected - found).abs().max() < 1e-4 * expected.abs().max()


def test_the_engine_reads_what_was_written(tmp_path):
    made = adapters()
    write_adapter(tmp_path, made.parameters(), made.config, "tiny")
    read = read_adapter(tmp_path, "mine")
    assert set(read.matrices) == set(made)
    for name, (a, b) in read.matrices.items():
        ours_a, ours_b = made[name]
        assert torch.equal(torch.from_numpy(a), ours_a.detach())
        assert torch.allclose(torch.from_numpy(b), 1.5 * ours_b.detach())
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (4, 6.0)
    assert settings["base_model_name_or_path"] == "tiny"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter_config.json", WEIGHTS]
    assert all("lora_" in name for name in load_file(tmp_path / WEIGHTS))


def test_what_peft_has_no_place_for_is_refused(tmp_path):
    made = adapters()
    first, *_ = made.parameters()
    for factors, config, words in (
        ({"control.weight": torch.ones(2, 32)}, made.config, "no factor"),
        ({first: torch.ones(3, 32)}, made.config, "rank 4"),
        ({first: torch.full((4, 32), torch.nan)}, made.config, "not finite"),
    ):
        with pytest.raises(LoraError, match=words):
            write_adapter(tmp_path / "x", factors, config, "tiny")
    assert not (tmp_path / "x").exists()
