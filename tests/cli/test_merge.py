"""m27 merge: the stock checkpoint says what the adapter on its base says, in transformers, PEFT and ours."""

import shutil
from pathlib import Path

import pytest
import torch

from m27.model import checkpoint
from m27.train.lora import Adapters, LoraConfig
from m27.train.peft import write_adapter

SHIPPED = Path(__file__).parents[2] / "weights" / "m27-nano"


def adapter(base: Path, folder: Path, std: float = 0.3) -> Path:
    decoder = checkpoint.load(base)
    made = Adapters(decoder, LoraConfig(4, 8.0), seed=3)
    for name, factor in made.parameters().items():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(factor, std=std)
    write_adapter(folder, made.parameters(), made.config, base.name)
    return folder


def compare(run, base: Path, tmp_path: Path, std: float) -> None:
    """Base, adapter → merge; ours, transformers on the merged, PEFT on the exported base."""
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    folder = adapter(base, tmp_path / "adapter", std)
    done = run("merge", folder, "--base", base, "--out", "merged", "--dtype", "float32")
    assert done.status == 0, done.err
    assert "stock checkpoint" in done.out
    checkpoint.save(checkpoint.load(base), tmp_path / "stock", dtype=torch.float32)
    load = transformers.AutoModelForCausalLM.from_pretrained
    adapted = peft.PeftModel.from_pretrained(load(tmp_path / "stock"), folder).eval()
    ids = torch.arange(3, 30)[None]
    with torch.inference_mode():
        ours = checkpoint.load(tmp_path / "merged")(ids)
        stock = load(tmp_path / "merged").eval()(ids).logits
        theirs = adapted(ids).logits
        plain = checkpoint.load(base)(ids)
    assert (ours - plain).abs().max() > 0.1
    scale = float(ours.abs().max())
    assert (ours - stock).abs().max() < 1e-4 * scale
    assert (ours - theirs).abs().max() < 1e-4 * scale


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_merged_equals_adapter_on_base(run, model: Path, tmp_path: Path) -> None:
    compare(run, model, tmp_path, 0.3)
    assert (tmp_path / "merged" / "tokenizer.json").is_file()
    assert (tmp_path / "merged" / "image_codec.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_merged_equals_adapter_on_the_shipped_base(run, tmp_path: Path) -> None:
    compare(run, SHIPPED, tmp_path, 0.02)


def test_what_cannot_be_merged_is_told_in_a_line(run, model: Path, tmp_path: Path) -> None:
    folder = adapter(model, tmp_path / "adapter")
    small = tmp_path / "small"
    shutil.copytree(model, small)
    layers = torch.nn.ModuleDict({"up_proj": torch.nn.Linear(7, 5)})
    wrong = Adapters(layers, LoraConfig(4, 8.0, ("up_proj",)))
    factors = {
        f"model.layers.0.mlp.{name}": tensor for name, tensor in wrong.parameters().items()
    }
    write_adapter(tmp_path / "wrong", factors, wrong.config, "x")
    for arguments, words in (
        ((folder, "--base", "nowhere", "--out", "m"), "no model here"),
        (("nowhere", "--base", model, "--out", "m"), "no adapter_config.json"),
        ((folder, "--base", model, "--out", model), "choose another folder"),
        ((folder, "--base", model, "--out", small), "another layout"),
        ((folder, "--base", model, "--out", "m", "--dtype", "int3"), "--dtype int3"),
        ((tmp_path / "wrong", "--base", model, "--out", "m"), "no matrix of its shape"),
    ):
        done = run("merge", *arguments)
        assert done.status == 2
        assert words in done.err
        assert done.err.count("\n") == 1
    assert not (tmp_path / "m").exists()
