"""JSON values one after another: wherever the pieces are cut, the values and their lines are the same."""

import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from m27.data.importers import lines
from m27.data.importers.lines import Fault, values


def some(rng: random.Random, count: int) -> list[Any]:
    def text() -> str:
        return "".join(rng.choice('ab"\\[]{},é中\U0001f600\n ') for _ in range(rng.randint(0, 40)))

    return [{"id": n, text(): [text(), {"x": text()}, rng.random(), None]} for n in range(count)]


@pytest.mark.parametrize("chunk", [1, 2, 7, 64, 1 << 16])
@pytest.mark.parametrize("indent", [None, 1])
def test_a_list_is_read_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, indent: int | None
) -> None:
    monkeypatch.setattr(lines, "_CHUNK", chunk)
    records = some(random.Random(chunk), 60)
    text = "\n \n" + json.dumps(records, indent=indent, ensure_ascii=False)
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8", newline="")
    found = list(lines.array(path)) if chunk < 64 else list(values(path))
    assert [value for _, value in found] == records
    rows = text.split("\n")
    for (line, _), record in zip(found, records, strict=True):
        begins = "{" if indent else f'{{"id": {record["id"]}'
        assert begins in rows[line - 1]


def test_lines_of_every_kind(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n  \n[\n{"b": "\xff"}\n' + b"[" * 100_000 + b'\n"end"')
    found = list(values(path))
    assert [line for line, _ in found] == [1, 4, 5, 6, 7]
    assert (found[0][1], found[-1][1]) == ({"a": 1}, "end")
    reasons = [value.reason.split(":")[0] for _, value in found[1:-1]]
    assert reasons == ["is not JSON", "is not UTF-8", "is not JSON"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[]", [[]]), ("[ ]\n", [[]]), ('[\n]', []), ('[{"a": 1}]', [{"a": 1}]),
        ('[{"role": "user"}]\n[{"role": "user"}]', [[{"role": "user"}], [{"role": "user"}]]),
        ('[\n{"a": 1},\n{"a": 2}\n]', [{"a": 1}, {"a": 2}]), ("", []), ("\n\n", []), ("[1, 2]", [1, 2]),
        ('\ufeff[{"a": 1}, 7]', [{"a": 1}, 7]),
    ],
)  # fmt: skip
def test_a_list_is_told_from_lines(tmp_path: Path, text: str, expected: list[Any]) -> None:
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    assert [value for _, value in values(path)] == expected


def test_a_list_that_breaks_says_where(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[\n{"a": 1},\n{"a": oops},\n{"a": 3}]')
    (_, first), (line, fault) = values(path)
    assert (first, line) == ({"a": 1}, 3)
    assert isinstance(fault, Fault)
    assert fault.reason == "is not JSON: Expecting value; what follows is not read"


@pytest.mark.parametrize("form", ["lines", "list"])
def test_a_large_file_is_never_whole_in_memory(tmp_path: Path, form: str) -> None:
    path = tmp_path / "a.json"
    record = json.dumps({"text": "x" * 5_000})
    with path.open("w") as file:
        file.write("[\n" if form == "list" else "")
        for _ in range(400):
            file.write(record + (",\n" if form == "list" else "\n"))
        file.write("{}]" if form == "list" else "")
    tracemalloc.start()
    try:
        count = sum(1 for _ in values(path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count >= 400
    assert peak < path.stat().st_size / 4
