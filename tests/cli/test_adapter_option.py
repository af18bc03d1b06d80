"""`--adapter` of m27 eval and m27 bench: it answers and is named, in words, pictures and perplexities."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from m27.eval.report import weights_revision
from m27.infer.engine import Engine
from m27.infer.likelihood import log_likelihoods
from m27.infer.load import load_engine
from m27.train.lora import LoraConfig
from m27.train.peft import write_adapter
from tests import tiny


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A strong adapter of the tiny model's only block."""
    folder = tmp_path_factory.mktemp("adapter")
    generator = torch.Generator().manual_seed(0)
    config = tiny.CONFIG
    widths = {"q_proj": config.n_heads * config.head_dim, "v_proj": config.n_kv_heads * config.head_dim}
    factors = {}
    for name, out in widths.items():
        stem = f"model.layers.0.self_attn.{name}"
        factors[f"{stem}.lora_A"] = torch.randn(4, config.dim, generator=generator)
        factors[f"{stem}.lora_B"] = torch.randn(out, 4, generator=generator)
    write_adapter(folder, factors, LoraConfig(4, 8.0, targets=tuple(widths)), "tiny")
    return folder


def test_a_loaded_adapter_answers_every_request_and_counts_for_perplexity(run, model: Path, adapter: Path) -> None:
    ids = [list(range(40, 60))]
    found = {}
    for name, given in (("base", None), ("tuned", adapter)):
        engine = load_engine(model, Engine, precision="float32", backend="torch", adapter=given)
        found[name] = log_likelihoods(engine.runner, ids, engine.blocks, adapter=engine.adapter[1])[0]
        engine.close()
    assert not np.allclose(found["base"], found["tuned"])


def test_one_s_own_questions_are_answered_with_it(run, model: Path, adapter: Path, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "x"}]
    (tmp_path / "set.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    common = ("--max-tokens", "6", "--precision", "float32")
    said = {}
    for name, extra in (("base", ()), ("tuned", ("--adapter", adapter))):
        done = run("eval", "set.jsonl", "--model", model, "--out", name, *common, *extra)
        assert done.status == 0, done.err
        said[name] = json.loads((tmp_path / name / "answers.jsonl").read_text().splitlines()[0])
    assert said["base"]["answer"] != said["tuned"]["answer"]
    wrong = run("eval", "set.jsonl", "--model", "stored:x", "--adapter", adapter)
    assert (wrong.status, "--adapter" in wrong.err) == (2, True)


def test_the_card_s_rows_name_the_adapter(run, model: Path, adapter: Path, tmp_path: Path) -> None:
    done = run("eval", model, "--task", "structure", "--validity", "7", "--samples", "2", "--out", "rows",
               "--adapter", adapter)  # fmt: skip
    assert done.status == 0, done.err
    row = json.loads((tmp_path / "rows" / "rows.jsonl").read_text())
    assert row["weights"] == weights_revision(model, adapter)
    assert row["weights"].startswith(weights_revision(model) + "+")


def test_bench_measures_with_an_adapter_and_names_it(run, adapter: Path) -> None:
    small = ("--prompt", "24", "--tokens", "4", "--runs", "1", "--precision", "float32")
    done = run("bench", "decode", "--json", "--adapter", adapter, *small)
    assert done.status == 0, done.err
    assert json.loads(done.out)["adapter"] == str(adapter)
    wrong = run("bench", "decode", "--adapter", "nowhere", *small)
    assert wrong.status == 2
    assert "nowhere" in wrong.err
