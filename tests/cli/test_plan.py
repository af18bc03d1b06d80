"""`m27 plan`: a table, one recommendation, JSON; a fault is one line and exit status 2."""

import json
import re
from pathlib import Path

import pytest

from tests.cli.conftest import Run


def test_a_table_and_the_command_to_type(run: Run):
    done = run("plan", "7b", "--gpus", "8", "--memory", "80")
    assert done.status == 0, done.err
    assert "full shard" in done.out and "replicate" in done.out
    *_, recommended, typed = done.out.strip().splitlines()
    assert recommended.startswith("recommended: full shard")
    assert typed.startswith("torchrun --standalone --nproc-per-node 8 -m -- m27.cli train pretrain --size 7b")


def test_json_has_every_number(run: Run):
    done = run("plan", "moe", "--gpus", "16", "--json")
    found = json.loads(done.out)
    assert found["machine"]["nodes"] == 2
    best = found["ways"][found["recommended"]]
    held = best["memory"]
    parts = sum(held[k] for k in ("weights", "gradients", "optimiser", "activations", "communication"))
    assert held["total"] == pytest.approx(parts + max(held["head"], held["work"]))
    assert best["traffic"]["bytes"] > 0 and best["time"]["mfu"] < 0.5
    assert found["command"].startswith("torchrun --nnodes 2")


def test_a_checkpoint_folder_is_a_size_too(run: Run, model):
    done = run("plan", model, "--memory", "4", "--length", "256", "--json")
    assert done.status == 0, done.err
    assert f"--begin {model}" in json.loads(done.out)["command"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("7c",), "7c: no size, and no folder with a config.json"),
        (("nanoo",), "did you mean nano?"),
        (("7b", "--gpus", "0"), "gpus: 0 is not positive"),
        (("7b", "--memory", "-80"), "memory: -80 GB is not positive"),
        (("7b", "--network", "pigeon"), "--network pigeon: a number of GB/s, infiniband or ethernet"),
        (("7b", "--kind", "half"), "--kind half: must be one of full, lora, qlora"),
        (("7b", "--efficiency", "2"), "efficiency: 2 is no share between 0 and 1"),
    ],
)
def test_nonsense_is_one_line_and_status_2(run: Run, arguments, told):
    done = run("plan", *arguments)
    assert done.status == 2
    assert told in done.err and done.err.count("\n") == 1


def test_where_nothing_fits_the_table_is_shown_and_it_is_said(run: Run):
    done = run("plan", "7b", "--memory", "24")
    assert done.status == 2 and "replicate" not in done.out
    assert "single" in done.out and "nothing fits: the least is" in done.err


def test_what_the_document_shows_is_what_is_printed(run: Run):
    text = (Path(__file__).parents[2] / "docs" / "train.md").read_text(encoding="utf-8")
    shown = re.findall(r"^```text\n\$ m27 (plan [^\n]*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(shown) == 2
    for command, lines in shown:
        printed = [line.rstrip() for line in run(*command.split()).out.splitlines()]
        assert [line for line in lines.splitlines() if line not in printed] == []
