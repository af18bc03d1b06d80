"""`m27 train`: what there is, what it is set to, and small runs of every general recipe through the one loop."""

import json
from pathlib import Path

import pytest
import torch

from m27.cli.train import settings
from m27.infer.adapters import read_adapter
from m27.model import checkpoint
from m27.train.settings import named, spelled
from recipes.registry import RECIPES

SMALL = (
    "--data.row", "160", "--data.rows", "2", "--data.step_rows", "2", "--compile", "false", "--dtype=float32",
    "--threads", "1", "--steps", "3", "--log", "none",
)  # fmt: skip


@pytest.fixture
def shards(run) -> str:
    """Shards of a dozen answers, built with the tiny model."""
    lines = []
    for number in range(12):
        question = {"role": "user", "content": f"What is {number} and {number}?"}
        lines.append({"messages": [question, {"role": "assistant", "content": f"It is {2 * number}."}]})
    Path("sums.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run("data", "build", "sums.jsonl", "--out", "shards").status == 0
    return "shards/sums-train"


@pytest.fixture
def pairs(run) -> str:
    """The same as pairs of a right and a wrong answer."""
    lines = [
        {"prompt": f"What is {n} and {n}?", "chosen": f"It is {2 * n}.", "rejected": f"It is {2 * n + 1}."}
        for n in range(12)
    ]
    Path("pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run("data", "build", "pairs.jsonl", "--out", "shards").status == 0
    return "shards/pairs-train"


def test_every_recipe_is_listed_with_its_line(run) -> None:
    done = run("train", "--list")
    assert done.status == 0
    assert [line.split()[0] for line in done.out.splitlines()] == list(RECIPES)
    assert all(recipe.line and recipe.line in done.out for recipe in RECIPES.values())
    assert {"pretrain", "sft", "lora", "qlora", "dpo", "nano-joint"} <= set(RECIPES)


def test_show_prints_every_setting_as_it_can_be_typed(run) -> None:
    changed = ("--optim.lr", "3e-2", "--data.rows=2", "--steps", "100", "--model.n_layers", "3", "--recompute")
    done = run("train", "pretrain", "--show", "--size", "tiny", *changed)
    assert done.status == 0, done.err
    lines = [line for line in done.out.splitlines() if not line.startswith("#")]
    wanted = [f"--{name}" for name, _ in named(RECIPES["pretrain"].configured({"size": "tiny"}))]
    assert [line.split()[0] for line in lines] == wanted
    assert {"--optim.lr 0.03", "--data.rows 2", "--steps 100", "--model.n_layers 3", "--recompute true"} <= set(lines)
    again = [word.strip("'") for line in lines for word in line.split(" ", 1)]
    ours = RECIPES["pretrain"].configured(settings(["--size", "tiny", *changed], ["recompute"]))
    typed = RECIPES["pretrain"].configured(settings(again))
    assert [(n, spelled(v)) for n, v in named(typed)] == [(n, spelled(v)) for n, v in named(ours)]


def test_a_stage_of_nano_shows_its_run_and_its_places(run) -> None:
    done = run("train", "nano-asked", "--show", "--steps", "7")
    assert done.status == 0, done.err
    assert "--steps 7" in done.out
    assert "--out weights/m27-nano" in done.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["pretrian"], "'pretrain'"),
        (["pretrain", "--lr", "3"], "'optim.lr'"),
        (["pretrain", "--optim.lrr=3"], "'optim.lr'"),
        (["pretrain", "--size", "tinny"], "tiny, nano"),
        (["pretrain", "--steps"], "--steps: a value is missing"),
        (["pretrain", "--steps", "many"], "'many' is not a int"),
        (["pretrain", "--steps", "1", "--steps=2"], "given twice"),
        (["pretrain", "more"], "'more'"),
        (["--optim.lr", "3", "pretrain"], "the recipe comes first"),
        ([], "--list"),
        (["pretrain", "--size", "tiny"], "--shards"),
        (["pretrain", "--size", "tiny", "--shards", "nowhere"], "nowhere"),
        (["pretrain", "--size", "tiny", "--model.n_kv_heads", "3"], "n_kv_heads"),
        (["dpo", "--preference.beta", "-1"], "beta"),
        (["sft", "--begin", "nowhere"], "nowhere"),
        (["sft", "--rows", "maps"], "shards"),
        (["sft", "--write", "average"], "optim.average"),
    ],
)
def test_what_cannot_be_is_one_line(run, arguments, says) -> None:
    done = run("train", *arguments)
    assert done.status == 2
    assert done.err.count("\n") == 1
    assert says in done.err


def test_pretraining_stops_goes_on_and_leaves_a_model_that_opens(run, shards, model) -> None:
    command = ("train", "pretrain", "--size", "tiny", "--shards", shards, *SMALL)
    first = run(*command, "--run", "a", "--until", "1")
    assert first.status == 0, first.err
    assert "stopped and saved" in first.err
    assert not Path("a/model").exists()
    second = run(*command, "--run", "a")
    assert second.status == 0, second.err
    assert "a/model: stock checkpoint, llama" in second.out
    whole = run(*command, "--run", "b", "--out", "b-model")
    assert whole.status == 0, whole.err
    ours, other = checkpoint.load("a/model"), checkpoint.load("b-model")
    assert ours.config.n_layers == 2
    assert all(torch.equal(t, other.state_dict()[n]) for n, t in ours.state_dict().items())
    # The tokenizer of the default model is that of the shards, and went along.
    assert Path("a/model/tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
    assert json.loads(Path("a/settings.json").read_text())["optim"]["kind"] == "muon"


def test_the_average_can_be_what_is_written(run, shards) -> None:
    command = ("train", "sft", "--shards", shards, *SMALL, "--optim.average", "0.9", "--optim.lr", "0.01")
    assert run(*command, "--run", "last").status == 0
    assert run(*command, "--run", "mean", "--write", "average").status == 0
    last, mean = (checkpoint.load(f"{name}/model").state_dict() for name in ("last", "mean"))
    name = "model.layers.0.mlp.down_proj.weight"
    assert not torch.equal(last[name], mean[name])
    from m27.train.checkpoint import latest

    held = latest(Path("mean")).optimiser[f"{name}.average"]
    torch.testing.assert_close(mean[name], held.bfloat16().float())


@pytest.mark.parametrize("recipe", ["lora", "qlora", "dpo"])
def test_adapters_are_written_for_peft(run, shards, pairs, recipe, model) -> None:
    data = pairs if recipe == "dpo" else shards
    done = run("train", recipe, "--shards", data, *SMALL, "--lora.rank", "2")
    assert done.status == 0, done.err
    assert f"runs/{recipe}/model: adapter of rank 2 on {model}" in done.out
    adapter = read_adapter(Path("runs") / recipe / "model")
    assert any(b.any() for _, b in adapter.matrices.values())


def test_a_dry_run_tells_memory_and_time_and_leaves_nothing(run, shards) -> None:
    done = run("train", "pretrain", "--size", "tiny", "--shards", shards, *SMALL, "--dry-run")
    assert done.status == 0, done.err
    assert "memory" in done.out
    assert "3 steps, 960 tokens" in done.out
    assert not Path("runs").exists()


def test_shards_of_another_vocabulary_are_refused(run, shards) -> None:
    path = Path(shards) / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocabulary_hash": "other"}))
    done = run("train", "sft", "--shards", shards, *SMALL)
    assert done.status == 2
    assert "vocabulary_hash" in done.err
