"""m27 export: plain transformers opens it and chats; m27 sizes prints its table."""

import json
from pathlib import Path

import pytest
import torch

from m27.model import checkpoint
from tests import tiny


def test_plain_transformers_opens_the_export_and_chats(run, model: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    done = run("export", "--to", "hf", "--out", "hf")
    assert done.status == 0
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype="auto")
    assert theirs.dtype == torch.bfloat16
    assert type(theirs).__name__ == "LlamaForCausalLM"
    assert theirs.generation_config.eos_token_id == tiny.VOCABULARY.turn_end
    messages = [{"role": "user", "content": "hello"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == tiny.processor().encode(messages, generate=True).ids
    out = theirs.generate(torch.tensor([ids]), max_new_tokens=5, do_sample=False)
    assert isinstance(tokenizer.decode(out[0]), str)
    ours = checkpoint.load(model)
    with torch.inference_mode():
        mine, other = ours(torch.tensor([ids])), theirs.float()(torch.tensor([ids])).logits
    assert (mine - other).abs().max() < 0.1 * mine.abs().max()  # bf16 rounding, no more


def test_the_export_is_a_model_for_our_own_commands_too(run) -> None:
    assert run("export", "--out", "hf").status == 0
    assert json.loads(Path("hf/config.json").read_text())["torch_dtype"] == "bfloat16"
    # The index tells vLLM which safetensors files are the decoder's; the codecs' are not.
    index = json.loads(Path("hf/model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {"model.safetensors"}
    done = run("chat", "hi", "--model", "hf", "--json", "--modalities", "image,text")
    assert done.status == 0


def test_exports_that_are_refused(run, model: Path) -> None:
    for arguments in (
        ("--out", "x", "--to", "onnx"),
        ("--out", str(model)),
        ("--out", "x", "--model", "nowhere"),
        ("--out", "/proc"),
    ):
        done = run("export", *arguments)
        assert done.status == 2
        assert done.err.count("\n") == 1


def test_sizes_prints_every_size(run) -> None:
    out = run("sizes").out
    for name in ("tiny", "nano", "1b7", "7b", "moe"):
        assert any(name in line and "B" in line for line in out.splitlines())
