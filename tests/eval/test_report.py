"""Rows carry their origin, tables line up, files appear whole."""

import json
import subprocess
from pathlib import Path

import torch
from safetensors.torch import save_file

from m27.codec.image import ImageCodec
from m27.eval.report import (
    Origin,
    Row,
    bars,
    commit,
    files_hash,
    reading_revision,
    table,
    weights_revision,
    write_jsonl,
)

WEIGHTS = Path(__file__).parents[2] / "weights" / "m27-nano"
ORIGIN = Origin(seed=7, commit="abc", weights="0123456789ab")


def row(**changes):
    fields = {
        "task": "cifar10", "n": 200, "score": 0.5, "low": 0.43, "high": 0.57, "chance": 0.1,
        "frequent": 0.12, "by_kind": None, "passed": True, "bar": "above", "data": "d0d0",
        "seconds": 1.5, "origin": ORIGIN,
    }  # fmt: skip
    return Row(**{**fields, **changes})


def test_a_row_is_flat_json_with_its_origin():
    flat = row().to_json()
    assert json.loads(json.dumps(flat)) == flat
    assert "origin" not in flat
    assert (flat["seed"], flat["commit"], flat["weights"], flat["data"]) == (
        7, "abc", "0123456789ab", "d0d0",
    )  # fmt: skip


def test_bars_say_what_is_met():
    assert bars(0.5, 0.5, 0.85) == (True, False, "floor 50 %, goal 85 %")
    assert bars(0.49, 0.5, 0.85)[:2] == (False, False)
    assert bars(1.03, 1.05, 1.02, lower=True, unit="ratio") == (
        True, False, "at most 1.05, goal 1.02",
    )  # fmt: skip
    assert bars(1.0, 1.0, 1.0) == (True, True, "floor 100 %")


def test_the_table_lines_up_and_says_what_failed():
    text = table([row(), row(task="ppl", score=1.02, low=1, high=1.1, unit="ratio", passed=False)])
    lines = text.splitlines()
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1
    assert "50.0 %" in lines[2]
    assert "1.020" in lines[3]
    assert "**no**" in lines[3]


def test_write_jsonl_replaces_whole_files(tmp_path):
    path = tmp_path / "deep" / "rows.jsonl"
    write_jsonl(path, [{"a": "é"}])
    write_jsonl(path, [{"a": 1}, {"b": 2}])
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"a": 1}, {"b": 2}]
    assert [p.name for p in path.parent.iterdir()] == ["rows.jsonl"]


def test_commit_tells_changed_files_and_its_absence(tmp_path):
    assert commit(tmp_path) == "unknown"

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True
        )

    git("init")
    (tmp_path / "f").write_text("1")
    git("add", "f")
    git("commit", "-m", "one")
    clean = commit(tmp_path)
    (tmp_path / "f").write_text("2")
    assert len(clean) == 12
    assert commit(tmp_path) == clean + "+"


def test_revisions_change_with_names_and_contents(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"1")
    first = weights_revision(tmp_path)
    for name in ("regression.safetensors", "importance.safetensors"):  # lie beside the weights, and are not these
        (tmp_path / name).write_bytes(b"x")
        assert weights_revision(tmp_path) == first
    (tmp_path / "README.md").write_text("no part of the weights")
    assert weights_revision(tmp_path) == first == files_hash([tmp_path / "a.safetensors"])
    (tmp_path / "a.safetensors").write_bytes(b"2")
    second = weights_revision(tmp_path)
    (tmp_path / "a.safetensors").rename(tmp_path / "b.safetensors")
    assert len({first, second, weights_revision(tmp_path)}) == 3


def test_reading_revision_changes_with_what_decides_ids_and_not_with_decoders(tmp_path):
    def codec(name, **tensors):
        filled = {key: torch.full((2, 3), value) for key, value in tensors.items()}
        save_file({key.replace("__", "."): value for key, value in filled.items()}, tmp_path / name)

    (tmp_path / "trained.safetensors").write_bytes(b"1")
    codec("image_codec.safetensors", neck__a=1.0, decoder__a=1.0)
    codec("audio_codec.safetensors", ear__a=1.0, decoder__a=1.0)
    first, whole = reading_revision(tmp_path), weights_revision(tmp_path)
    codec("image_codec.safetensors", neck__a=1.0, decoder__a=2.0)
    codec("audio_codec.safetensors", ear__a=1.0, decoder__b=2.0, refiner__a=1.0)
    assert reading_revision(tmp_path) == first and weights_revision(tmp_path) != whole
    found = {first}
    codec("image_codec.safetensors", neck__a=3.0, decoder__a=2.0)
    found.add(reading_revision(tmp_path))
    codec("audio_codec.safetensors", ear__b=1.0, decoder__a=1.0)
    found.add(reading_revision(tmp_path))
    (tmp_path / "trained.safetensors").write_bytes(b"2")
    found.add(reading_revision(tmp_path))
    assert len(found) == 4


def test_reading_revision_of_the_shipped_codecs_is_theirs_whatever_the_decoder(tmp_path):
    shipped = ImageCodec.load(WEIGHTS)
    before = shipped.codes_revision
    shipped.save(tmp_path)
    first = reading_revision(tmp_path)
    with torch.no_grad():
        next(shipped.decoder.parameters()).mul_(2)
    shipped.save(tmp_path)
    assert reading_revision(tmp_path) == first and ImageCodec.load(tmp_path).codes_revision == before
    with torch.no_grad():
        next(shipped.neck.parameters()).mul_(2)
    shipped.save(tmp_path)
    assert reading_revision(tmp_path) != first
