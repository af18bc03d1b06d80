"""checkpoint.py: a snapshot that was damaged is never loaded; the last whole one is."""

import json

import pytest
import torch

from m27.train import checkpoint


@pytest.fixture
def run(tmp_path):
    for step in (1, 2):
        trained = {"w": torch.full((64,), float(step))}
        checkpoint.save(tmp_path, step, trained, {"w.step": torch.tensor(float(step))}, {"tokens": step})
    return tmp_path


def cut(path):
    path.write_bytes(path.read_bytes()[:-10])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))


def other_step(path):
    path.write_text(path.read_text().replace('"step": 2', '"step": 1'))


def other_state(path):
    path.write_text(path.read_text().replace('"tokens": 2', '"tokens": 7'))


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("trained.safetensors", cut), ("trained.safetensors", flip), ("optimiser.safetensors", cut),
        ("optimiser.safetensors", flip), ("optimiser.safetensors", empty), ("state.json", cut),
        ("state.json", empty), ("state.json", other_step), ("state.json", other_state),
        ("state.json", lambda path: path.unlink()), ("trained.safetensors", lambda path: path.unlink()),
        ("state.json", lambda path: path.write_text("[1]")),
    ],
)  # fmt: skip
def test_a_damaged_snapshot_is_passed_over_with_a_line(run, name, damage, capsys):
    assert checkpoint.latest(run).step == 2
    damage(run / "step-000002" / name)
    found = checkpoint.latest(run)
    assert (found.step, float(found.trained["w"][0])) == (1, 1.0)
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "step-000002" in told and "passed over" in told
    # Going on from there, it does not come between again.
    checkpoint.save(run, 2, found.trained, found.optimiser, {"tokens": 2})
    assert [step for step, _ in checkpoint.steps(run)] == [1, 2]
    assert checkpoint.latest(run).step == 2


def test_a_damaged_later_one_does_not_count_among_the_kept(run):
    empty(run / "step-000002" / "state.json")
    (run / "step-000002").rename(run / "step-000009")
    checkpoint.save(run, 3, {"w": torch.ones(1)}, {}, {"tokens": 3})
    assert [step for step, _ in checkpoint.steps(run)] == [1, 3]


def test_where_all_are_damaged_the_oldest_is_named(run, capsys):
    for step in (1, 2):
        cut(run / f"step-00000{step}" / "trained.safetensors")
    with pytest.raises(checkpoint.ResumeError, match="step-000001"):
        checkpoint.latest(run)
    assert capsys.readouterr().err.count("\n") == 2


def test_snapshots_without_digests_are_still_read(run):
    path = run / "step-000002" / "state.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in state.items() if k not in ("files", "seal")}))
    assert checkpoint.latest(run).step == 2


def test_what_killed_processes_left_is_swept_up(run):
    (run / ".step-000003.4711").mkdir()
    (run / ".step-000001.gone").mkdir()
    checkpoint.save(run, 3, {"w": torch.ones(1)}, {}, {"tokens": 3})
    assert not list(run.glob(".*"))
