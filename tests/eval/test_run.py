"""A whole run on a tiny model: rows on disk with their origin, a table, and clear refusals."""

import json
from dataclasses import replace

import pytest

from m27.cli import main
from m27.eval.run import FAILED, EvalError, chosen, evaluate
from m27.eval.tasks import TASKS
from tests import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny.write_model(folder)
    return folder


@pytest.fixture(autouse=True)
def codecs(monkeypatch):
    monkeypatch.setattr("m27.codec.image.ImageCodec", tiny.TinyImageCodec)
    monkeypatch.setattr("m27.codec.audio.AudioCodec", tiny.TinyAudioCodec)
    monkeypatch.setattr("m27.eval.report.commit", lambda: "0123456789ab")  # may change meanwhile


def test_rows_and_answers_are_written_with_their_origin(folder, tmp_path):
    said = []
    rows = evaluate(
        folder, only=["capital", "structure"], validity=14, seed=3, out=tmp_path, say=said.append
    )
    assert [row.task for row in rows] == ["capital", "structure"]
    read = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [r["task"] for r in read] == ["capital", "structure"]
    assert all(r["seed"] == 3 and len(r["weights"]) == 12 and r["commit"] for r in read)
    assert read[1]["passed"]
    assert read[1]["n"] == 14
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [a["task"] for a in answers] == ["capital"] + ["structure"] * 14
    assert said[0].count("\n") == 3


class Broken:
    def __init__(self, name):
        self.name = name

    def run(self, bench):
        raise OSError("no such file\nat all")


def test_a_task_that_fails_has_a_row_and_the_others_go_on(folder, tmp_path, monkeypatch):
    settings = {"only": ["capital", "structure"], "validity": 7, "out": tmp_path, "say": len}
    with monkeypatch.context() as patch:
        patch.setitem(TASKS, "capital", Broken("capital"))
        failed, structure = evaluate(folder, **settings)
    assert (failed.n, failed.passed) == (0, False)
    assert failed.note == FAILED + "OSError: no such file"
    assert structure.passed
    # What failed is run again, what is there is kept, as long as nothing changed.
    monkeypatch.setitem(TASKS, "structure", Broken("structure"))
    again = evaluate(folder, **settings, resume=True)
    assert [row.n for row in again] == [1, 7]
    assert again[1] == structure
    lines = (tmp_path / "answers.jsonl").read_text("utf-8").split("\n")[:-1]
    assert [json.loads(a)["task"] for a in lines] == ["capital"] + ["structure"] * 7
    assert evaluate(folder, **settings, resume=True, seed=1)[1].note.startswith(FAILED)


@pytest.mark.slow
def test_several_processes_give_the_same_rows(folder, tmp_path):
    settings = {"only": ["capital", "perplexity-manual"], "samples": 9, "say": len}
    one = evaluate(folder, **settings, out=tmp_path / "1")
    two = evaluate(folder, **settings, out=tmp_path / "2", jobs=2)
    assert [replace(r, seconds=0) for r in one] == [replace(r, seconds=0) for r in two]


def test_the_same_seed_gives_the_same_rows(folder, tmp_path):
    def run(seed):
        settings = {"only": ["structure"], "validity": 7, "out": tmp_path, "say": len}
        (row,) = evaluate(folder, seed=seed, **settings)
        return row.data, row.note

    assert run(0) == run(0) != run(1)


def test_perplexity_of_a_model_and_its_own_base(folder, tmp_path, monkeypatch):
    text = [("a", "call me ishmael " * 20), ("b", "fellow citizens " * 20)]
    monkeypatch.setattr("m27.eval.tasks.language.passages", lambda count, seed: text)
    (row,) = evaluate(folder, only=["perplexity"], samples=10, out=tmp_path, say=len)
    # The trained rows of a random model take their share of every softmax, so the ratio is above 1.
    assert row.unit == "ratio"
    assert row.low <= row.score <= row.high
    assert row.score > 1
    assert row.passed == (row.score <= 1.05)


def test_tasks_keep_the_order_of_the_table():
    assert [task.name for task in chosen(["structure", "cifar10"])] == ["cifar10", "structure"]
    assert [task.name for task in chosen([])] == list(TASKS)
    with pytest.raises(EvalError, match="no task is called 'cifar'; there are cifar10, "):
        chosen(["cifar"])


def test_the_command_refuses_in_one_line(folder, tmp_path, capsys):
    own = tmp_path / "own.jsonl"
    own.touch()
    for arguments, words in (
        (["eval", str(folder), "--task", "nothing"], "no task is called 'nothing'"),
        (["eval", str(tmp_path / "none")], "none"),
        (["eval", str(folder), "--samples", "0"], "samples must be at least 1"),
        (["eval", "nano", "--model", str(folder)], "--model is for one's own set, and 'nano' is a model"),
        (["eval", str(own), "--resume"], "--resume is for the table of a model"),
    ):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == 2
        captured = capsys.readouterr()
        assert words in captured.err
        assert captured.err.count("\n") == 1
        assert captured.out == ""
