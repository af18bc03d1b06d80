"""m27 export: plain transformers opens it and chats; m27 sizes prints its table."""

import json
from pathlib import Path

import pytest
import torch

from m27.infer.cpu.build import find_compiler
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


def seen(told: str) -> list[dict[str, object]]:
    """The parts of an answer, files by what they hold: each answer's have names of their own."""
    parts = json.loads(told)["content"]
    return [{k: Path(v).read_bytes() if k == "path" else v for k, v in part.items()} for part in parts]


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_rounded_weights_are_a_model_for_our_own_commands(run, model: Path, precision: str) -> None:
    done = run("export", "--to", precision, "--out", "small")
    assert done.status == 0
    assert f"weights in {precision}" in done.out
    assert not list(Path("small").glob("model*.safetensors"))
    ask = ("chat", "hi", "--json", "--modalities", "image,text", "--seed", "1")
    stored = run(*ask, "--model", "small")
    assert stored.status == 0
    if find_compiler() is not None:  # without one there is no step, and torch does not round
        loaded = run(*ask, "--precision", precision)
        assert seen(loaded.out) == seen(stored.out)
    done = run(*ask, "--model", "small", "--precision", "float32")
    assert done.status == 2
    assert done.err.count("\n") == 1
    assert f"small: holds weights in {precision}" in done.err
    # Written again it may be, in either precision, but not from itself, nor beside another layout.
    assert run("export", "--to", "int8", "--out", "small").status == 0
    done = run("export", "--to", "int4", "--out", "other", "--model", "small")
    assert done.status == 2
    assert "holds weights in int8 already" in done.err
    assert run("export", "--out", "hf").status == 0
    for to, out in (("int4", "hf"), ("hf", "small")):
        done = run("export", "--to", to, "--out", out)
        assert done.status == 2
        assert "another layout" in done.err
    assert run("export", "--to", "hf", "--model", "small", "--out", "wide").status == 0


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_every_command_takes_a_folder_of_rounded_weights(run, precision: str) -> None:
    """`m27 serve` does in tests/serve/test_process.py."""
    assert run("export", "--to", precision, "--out", "small").status == 0
    step = find_compiler() is not None  # without it torch runs, which widens the blocks
    for wanted in ("auto", precision) if step else ("auto",):
        how = ("--precision", wanted, "--threads", "1")
        done = run("chat", "hi", "--model", "small", "--modalities", "text", "--json", *how)
        assert done.status == 0, done.err
        small = ("--prompt", "24", "--tokens", "4", "--runs", "1", "--json")
        done = run("bench", "decode", "--model", "small", *small, *how)
        assert done.status == 0, done.err
        found = json.loads(done.out)
        assert found["threads"] == 1 and (precision in found["precision"] or not step)
        tasks = ("--task", "structure", "--task", "capital", "--validity", "7", "--out", wanted)
        done = run("eval", "small", *tasks, *how)
        assert done.status == 0, done.err
        rows = [json.loads(line) for line in Path(wanted, "rows.jsonl").read_text().splitlines()]
        assert [row["task"] for row in rows] == ["capital", "structure"]
    done = run("eval", "small", "--task", "structure", "--precision", "float32")
    assert (done.status, done.err.count("\n")) == (2, 1) and "holds weights in" in done.err


def test_exports_that_are_refused(run, model: Path) -> None:
    for arguments in (
        ("--out", "x", "--to", "onnx"),
        ("--out", "/proc", "--to", "int4"),
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


def test_calibrated_weights_are_rounded_by_what_counts(run, tmp_path: Path) -> None:
    data = tmp_path / "own.jsonl"
    turns = [{"role": "user", "content": "hello there"}, {"role": "assistant", "content": "good day"}]
    data.write_text("".join(json.dumps({"messages": turns}) + "\n" for _ in range(3)))
    assert run("export", "--to", "int4", "--out", "even").status == 0
    assert run("export", "--out", "whole").status == 0
    done = run("calibrate", data, "--model", "whole", "--tokens", "40")
    assert done.status == 0
    assert done.out == "whole/importance.safetensors: 40 tokens\n"
    assert "40 tokens tell little; 2,048 or more" in done.err
    assert run("export", "--model", "whole", "--to", "int4", "--out", "weighted").status == 0
    even, weighted = (checkpoint.load(Path(side)).state_dict() for side in ("even", "weighted"))
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(even[name], weighted[name])
    for arguments, said in (
        (("calibrate", "nothing", "--model", "whole"), "no documents called 'nothing'"),
        (("calibrate", data, "--model", "weighted"), "weighted: holds weights in int4 already"),
        (("calibrate", tmp_path / "not.jsonl", "--model", "whole"), "not.jsonl: no such file"),
    ):
        done = run(*arguments)
        assert done.status == 2
        assert said in done.err and done.err.count("\n") == 1
