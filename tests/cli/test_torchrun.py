"""Commands under `torchrun`: one answer, of the model over both processes, and one line for what is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from m27.infer.engine import Engine
from m27.infer.request import Request
from m27.model.checkpoint import load
from tests import tiny
from tests.train import fixtures

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model without codecs: it answers in words alone."""
    return tiny.write_words(tmp_path_factory.mktemp("tiny-model"))


def torchrun(*arguments: str, said: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*command, "-m", "--", "m27.cli", *arguments], input=said, cwd=ROOT, text=True,
        capture_output=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def ours(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines that are not torchrun's."""
    return [line for line in done.stderr.splitlines() if line.startswith("m27: ")]


def test_chat_answers_as_one_process_does(model: Path) -> None:
    options = ("--model", str(model), "--precision", "float32", "--modalities", "text")
    options += ("--temperature", "0", "--max-tokens", "12")
    done = torchrun("chat", "hello", *options, "--json")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    engine = Engine.load(model, precision="float32", backend="torch")
    asked = Request(
        [{"role": "user", "content": [{"type": "text", "text": "hello"}]}], modalities=("text",),
        temperature=0.0, max_tokens=12,
    )  # fmt: skip
    expected = engine.chat(asked).content
    assert json.loads(done.stdout)["content"] == expected
    engine.close()
    talked = torchrun("chat", *options, said="hello\n/quit\n")
    assert talked.returncode == 0 and talked.stderr == "", talked.stderr
    assert talked.stdout.startswith(expected[0]["text"])


def test_bench_measures_both(model: Path) -> None:
    small = ("--prompt", "24", "--tokens", "4", "--runs", "1", "--json")
    done = torchrun("bench", "decode", "--model", str(model), "--precision", "float32", *small)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["processes"] == 2 and found["decode"]["tokens_per_second"] > 0


def test_eval_scores_both(model: Path, tmp_path: Path) -> None:
    options = ("--task", "structure", "--validity", "3", "--precision", "float32", "--out", str(tmp_path))
    done = torchrun("eval", str(model), *options)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "rows.jsonl").read_text())["score"] == 1.0


def test_train_trains_in_every_process(tmp_path: Path) -> None:
    fixtures.corpus(tmp_path / "shards")
    shards = ",".join(map(str, sorted((tmp_path / "shards").iterdir())))
    options = ["train", "pretrain", "--size", "tiny", "--shards", shards]
    options += ["--steps", "2", "--data.row", "160", "--data.rows", "1", "--data.step_rows", "4"]
    options += ["--device", "cpu", "--dtype", "float32"]
    wrong = torchrun(*options, "--run", str(tmp_path / "wrong"), "--parallel.shard", "3")
    assert wrong.returncode != 0
    assert ours(wrong) == ["m27: parallel: shard 3 x replicate 1 is not the number of ranks, 2"]
    done = torchrun(*options, "--run", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("stock checkpoint") == 1
    one = [sys.executable, "-m", "m27.cli", *options, "--run", str(tmp_path / "one")]
    subprocess.run(one, cwd=ROOT, check=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"})
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("one", "two")]
    for left, right in zip(*(map(json.loads, lines) for lines in logs), strict=True):
        assert abs(left["loss"] - right["loss"]) < 2e-5 and left["targets"] == right["targets"]
    states = [load(tmp_path / name / "model", torch.float32).state_dict() for name in ("one", "two")]
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], rtol=1e-2, atol=1e-2)  # bfloat16 on disk


def test_what_is_wrong_is_one_line(model: Path) -> None:
    for arguments, line in (
        (("chat", "hi", "--image", "nowhere.png"), "m27: nowhere.png: no such file"),
        (("eval", str(model), "--jobs", "2"),
         "m27: --jobs 2: not under torchrun, whose processes share one engine"),
    ):  # fmt: skip
        done = torchrun(*arguments)
        assert done.returncode != 0 and done.stdout == ""
        assert ours(done) == [line]
