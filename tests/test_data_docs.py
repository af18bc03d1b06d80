"""docs/data.md is true: its commands run, its records are good, its errors are those that come."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from examples import make_data
from m27.cli import main
from m27.data import check, importers
from m27.data.importers import chat, llava, preferences, tables
from tests.test_docs import ROOT, commands, split

TEXT = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
DATA = ROOT / "examples" / "data"
RECORDS = re.findall(r"^```json\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
Said = Callable[..., tuple[int, str]]


@pytest.fixture
def m27(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Said:
    """Run a command of the document from the checkout's root; status and what was printed."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("M27_MODEL", str(ROOT / "weights" / "m27-nano"))

    def run(*words: str) -> tuple[int, str]:
        words = tuple(str(tmp_path / "index.html") if word.startswith("out/") else word for word in words)
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main(words)
        return int(left.value.code or 0), capsys.readouterr().out

    return run


@pytest.mark.parametrize("line", [c for c in commands(TEXT) if "bad.jsonl" not in c])
def test_each_command_runs(m27: Said, line: str) -> None:
    status, out = m27(*split(line)[1:])
    assert status == 0
    assert " samples" in out or " 0 bad" in out


def test_the_errors_are_those_that_come(m27: Said) -> None:
    (line,) = (c for c in commands(TEXT) if "bad.jsonl" in c)
    status, out = m27(*split(line)[1:])
    (shown,) = re.findall(r"^```text\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    assert status == 1
    assert out.replace(f"{DATA}{os.sep}", "").replace("examples/data/", "") == shown


@pytest.mark.parametrize("number", range(len(RECORDS)))
def test_each_record_is_good(tmp_path: Path, number: int) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(RECORDS[number], encoding="utf-8")
    report = check.check(importers.open(path, root=DATA))
    assert report.problems == []
    assert report.records == len(RECORDS[number].splitlines()) >= 2


def test_every_field_is_explained() -> None:
    known = {
        "messages", *chat.NAMES, *chat.TOOLS, *chat._PARTS, *preferences.OPENAI, *preferences.TRL,
        *llava.KEYS, *llava.ROLES, *tables.FILES, *tables.TEXTS, *tables.NAMES, *importers.KINDS,
        *(d for kind in importers.FOLDERS.values() for d in kind.directions),
        "role", "content", "weight", "name", "refusal", "path", "codes", "size", "letterbox", "loss", "text",
    }  # fmt: skip
    assert [name for name in sorted(known) if f"`{name}`" not in TEXT] == []


def test_python_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(ROOT)
    exec(compile(code, "docs/data.md", "exec"), {})
    assert re.fullmatch(r"8 records, 0 bad [67] [12]\n", capsys.readouterr().out)


def test_the_examples_are_what_their_script_writes(tmp_path: Path) -> None:
    make_data.write(tmp_path)
    made = {p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file()}
    assert made == {p.relative_to(DATA) for p in DATA.rglob("*") if p.is_file()}
    for name in made:
        if name.suffix in (".txt", ".csv", ".json", ".wav"):  # a PNG may be packed otherwise elsewhere
            assert (tmp_path / name).read_bytes() == (DATA / name).read_bytes(), name
    assert sum(p.stat().st_size for p in DATA.rglob("*") if p.is_file()) < 60_000
    assert json.loads((DATA / "llava.json").read_text())[0]["id"] == 0
