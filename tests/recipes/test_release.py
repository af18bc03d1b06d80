"""One command runs every stage in order, skips what is done, goes on after a fault, and says what it took."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from recipes import release
from recipes.release import Ledger, ReleaseError, ReleaseRecipe, Stage
from tests import test_docs

ROOT = Path(__file__).parents[2]


@pytest.fixture
def recipe(tmp_path: Path) -> ReleaseRecipe:
    return ReleaseRecipe(out=tmp_path / "out", model=tmp_path / "model")


class Stubs:
    """Runs no stage, but remembers which; those named in `bad` end with status 3."""

    def __init__(self, *bad: str) -> None:
        self.bad, self.ran = bad, []

    def __call__(self, stage: Stage) -> int:
        self.ran.append(stage.name)
        return 3 if stage.name in self.bad else 0


def names(recipe: ReleaseRecipe) -> list[str]:
    return [stage.name for stage in release.stages(recipe)]


def test_all_stages_run_in_order_and_then_none(recipe):
    first, second = Stubs(), Stubs()
    assert release.release(recipe, run=first) == 0
    assert first.ran == names(recipe)
    order = "fetch image-encoder image-decoder base build projections joint sft asked write eval card"
    assert [name for name in first.ran if name in order.split()] == order.split()
    assert release.release(recipe, run=second) == 0
    assert second.ran == []


def test_a_fault_ends_it_and_the_next_call_goes_on_there(recipe, capsys):
    faulty, later = Stubs("joint"), Stubs()
    assert release.release(recipe, run=faulty) == 3
    assert faulty.ran[-1] == "joint"
    assert "--from joint" in capsys.readouterr().err
    assert release.release(recipe, run=later) == 0
    assert later.ran == names(recipe)[names(recipe).index("joint") :]


def test_what_follows_a_stage_that_ran_again_runs_again(recipe):
    release.release(recipe, run=Stubs())
    release.release(recipe, only=["build"], run=Stubs())
    after = Stubs()
    release.release(recipe, run=after)
    assert after.ran == names(recipe)[names(recipe).index("build") + 1 :]


def test_another_budget_is_another_command(recipe):
    release.release(recipe, run=Stubs())
    longer = replace(recipe, minutes=replace(recipe.minutes, joint=90.0))
    after = Stubs()
    release.release(longer, run=after)
    assert after.ran == names(recipe)[names(recipe).index("joint") :]


def test_from_and_only(recipe):
    begun, picked = Stubs(), Stubs()
    release.release(recipe, begin="eval", run=begun)
    assert begun.ran == ["eval", "samples", "card"]
    release.release(recipe, only=["card", "base"], run=picked)
    assert picked.ran == ["base", "card"]
    with pytest.raises(ReleaseError, match="did you mean 'joint'"):
        release.release(recipe, only=["jiont"], run=picked)


def test_what_was_spent_is_kept(recipe, monkeypatch):
    monkeypatch.setattr(release, "device_name", lambda device="auto": "A processor, 2 cores")
    release.release(recipe, run=Stubs("build"))
    rows = Ledger(recipe.out / "spent.jsonl").rows()
    assert [row["stage"] for row in rows] == names(recipe)[: names(recipe).index("build") + 1]
    assert rows[-1]["status"] == 3
    assert {"seconds", "cpu_seconds", "started", "command"} <= set(rows[0])
    assert (rows[0]["device"], rows[0]["threads"]) == ("A processor, 2 cores", 2)


def test_an_interrupt_is_noted_and_ends_it(recipe):
    def interrupted(stage: Stage) -> int:
        raise KeyboardInterrupt

    assert release.release(recipe, run=interrupted) == 130
    assert Ledger(recipe.out / "spent.jsonl").rows()[0]["status"] == 130


def test_a_real_process_runs_and_its_status_counts(recipe):
    assert release.execute(Stage("x", "json.tool", ("--help",), "")) == 0
    assert release.execute(Stage("x", "json.tool", ("no such file",), "")) != 0


def test_a_termination_ends_the_stage_under_way_too(recipe, monkeypatch, tmp_path):
    saved = tmp_path / "saved"
    (tmp_path / "stage.py").write_text(
        "import os, pathlib, signal, sys, time\n"
        "def save(*_):\n"
        f"    pathlib.Path({str(saved)!r}).touch()\n"
        "    sys.exit(1)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(release, "stages", lambda recipe: [Stage("one", "stage", (), "")])
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert release.main(["--out", str(recipe.out)]) == 130
    finally:
        signal.signal(signal.SIGTERM, before)
    assert saved.exists()
    assert Ledger(recipe.out / "spent.jsonl").rows()[0]["status"] == 130


def test_work_done_by_hand_can_be_noted(recipe, capsys):
    out = ["--out", str(recipe.out)]
    assert release.main([*out, "--record", "joint", "--seconds", "2820"]) == 0
    row = json.loads((recipe.out / "spent.jsonl").read_text())
    assert (row["stage"], row["seconds"]) == ("joint", 2820.0)
    assert release.main([*out, "--record", "joint"]) == 2
    (recipe.out / "spent.jsonl").write_text("{}\n")
    assert release.main([*out]) == 2
    assert "line 1" in capsys.readouterr().err


def test_the_list_says_what_is_done(recipe, capsys):
    release.release(recipe, run=Stubs("speech"))
    assert release.main(["--out", str(recipe.out), "--model", str(recipe.model), "--list"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("x fetch")
    assert said[2].startswith(". speech")


@pytest.mark.slow
def test_the_whole_chain_fits_together(tmp_path):
    """Every stage for real, with next to nothing in it: tens of minutes on two cores."""
    assert release.main(["--quick", "--out", str(tmp_path)]) == 0
    card = (tmp_path / "quick" / "m27-nano" / "README.md").read_text()
    assert "model-index:" in card and "device hours in all" in card


def test_quick_is_the_same_chain_with_less_and_apart(recipe):
    small = release.quick(recipe)
    assert names(small) == names(recipe)
    assert small.minutes.joint < 1 and small.samples < 10
    written = [part for stage in release.stages(small) for part in stage.arguments if "/" in part]
    assert all(Path(part).is_relative_to(recipe.out / "quick") for part in written)


@pytest.mark.parametrize("ablations", [False, True])
def test_each_command_can_be_typed(recipe, ablations):
    for stage in release.stages(replace(recipe, ablations=ablations)):
        if stage.module == "m27.cli":
            test_docs.parse(list(stage.arguments))
            continue
        source = (ROOT / (stage.module.replace(".", "/") + ".py")).read_text()
        missing = [a for a in stage.arguments if a.startswith("--") and f'"{a}"' not in source]
        assert missing == [], stage.command
