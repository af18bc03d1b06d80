"""`check` names file, line and reason; `show` writes one page with everything in it."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m27.codec import media
from m27.data import catalogue, check, show
from m27.data.progress import Progress, track

GOOD: list[dict[str, Any]] = [
    {
        "role": "user",
        "content": [{"type": "image", "path": "a.png"}, {"type": "text", "text": "?"}],
    },
    {"role": "assistant", "content": "dog"},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    media.write_png(tmp_path / "a.png", np.full((8, 8, 3), 200, np.uint8))
    media.write_wav(tmp_path / "a.wav", np.zeros(1600, np.float32))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    return tmp_path


def answer(*parts: dict[str, Any], role: str = "assistant") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": list(parts)}]}


BAD: list[tuple[Any, str]] = [
    ("{", "is not JSON"),
    ("3", "must be an object with messages"),
    ({"messages": []}, "messages must be a list"),
    ({"text": "a"}, "unknown key 'text'"),
    ({"messages": GOOD, "id": 7}, "id must be a string"),
    (answer({"type": "text"}), "message 0, part 0: needs text"),
    (answer({"type": "video", "path": "a"}), "type must be text, image or audio"),
    (answer(role="robot"), "role must be one of"),
    (answer({"type": "text", "text": "a"}, role="user"), "nothing to learn"),
    (answer({"type": "image", "path": "none.png"}), "part 0: .*none.png: no such file"),
    (answer({"type": "image", "path": "broken.png"}), "broken.png: the picture is broken"),
    (answer({"type": "image", "path": "a.wav"}), "not a PNG"),
    (answer({"type": "audio", "bytes": "abc"}), "needs path or codes"),
]


def test_good_file(folder: Path) -> None:
    path = folder / "good.jsonl"
    records = [
        {"id": "1", "task": "vqa", "messages": GOOD},
        GOOD,
        answer({"type": "audio", "path": "a.wav"}, {"type": "image", "codes": [[1, 2], [3, 4]]}),
    ]
    path.write_text("\n\n".join(json.dumps(record) for record in records) + "\n")
    report = check.check(path)
    assert report.records == 3
    assert report.problems == []
    assert str(report) == "3 records, 0 bad"
    first, second, _ = check.read(path)
    assert first["id"] == "1"
    assert second["id"] == "good.jsonl:3"
    assert second["source"] == "good"
    assert first["messages"][0]["content"][0]["path"] == str(folder / "a.png")


def test_every_bad_record_is_named(folder: Path) -> None:
    path = folder / "bad.jsonl"
    lines = [bad if isinstance(bad, str) else json.dumps(bad) for bad, _ in BAD]
    path.write_text("\n".join([json.dumps(GOOD), *lines]) + "\n")
    report = check.check(path)
    assert report.records == len(BAD) + 1
    assert [problem.line for problem in report.problems] == list(range(2, len(BAD) + 2))
    for problem, (_, reason) in zip(report.problems, BAD, strict=True):
        assert str(problem).startswith(f"{path}:{problem.line}: ")
        assert re.search(reason, problem.reason), problem.reason


def test_media_can_be_left_closed(folder: Path) -> None:
    path = folder / "one.jsonl"
    path.write_text(json.dumps(answer({"type": "image", "path": "none.png"})))
    assert check.check(path, open_media=False).problems == []
    assert len(check.check(path).problems) == 1


def test_unusable_files(folder: Path) -> None:
    with pytest.raises(check.CheckError, match=r"none\.jsonl"):
        check.check(folder / "none.jsonl")
    (folder / "empty.jsonl").write_text("\n")
    with pytest.raises(check.CheckError, match="no records"):
        check.check(folder / "empty.jsonl")
    (folder / "latin.jsonl").write_bytes(b'["\xe9"]\n')
    assert "UTF-8" in check.check(folder / "latin.jsonl").problems[0].reason
    with pytest.raises(check.CheckError, match=r"latin.jsonl:1: is not UTF-8"):
        list(check.read(folder / "latin.jsonl"))


def test_page_holds_everything(folder: Path) -> None:
    (folder / "s.jsonl").write_text(
        json.dumps(
            {
                "task": "a<b",
                "messages": [
                    *GOOD,
                    *answer(
                        {"type": "audio", "path": "a.wav"},
                        {"type": "text", "text": "<script>"},
                        {"type": "image", "codes": [[1]]},
                    )["messages"],
                ],
            }
        )
    )
    out = folder / "page.html"
    assert show.show(show.samples([str(folder / "s.jsonl")], "train", 0, 5), out) == 1
    page = out.read_text()
    assert "data:image/png;base64," in page
    assert "data:audio/wav;base64," in page
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "a&lt;b" in page
    assert "http" not in page
    assert "given as codes" in page


def test_samples_take_tasks_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = [
        {"id": str(n), "task": "a" if n < 6 else "b", "source": "x", "messages": []}
        for n in range(20)
    ]
    monkeypatch.setattr(catalogue, "documents", lambda name: lambda side, seed: iter(made))
    assert [d["task"] for d in show.samples(["x"], "train", 0, 4)] == ["a", "b", "a", "b"]
    monkeypatch.undo()
    with pytest.raises(KeyError, match="no documents called 'x'"):
        list(show.samples(["x"], "train", 0, 4))


def test_every_catalogue_name_makes_documents() -> None:
    for name in catalogue.EVERY:
        assert callable(catalogue.documents(name))


def test_progress_is_silent_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(range(3), "counting", 3)) == [0, 1, 2]
    with Progress("thing", 10) as bar:
        bar.add(4)
        assert "40%" in bar._line(bar._began)
    assert capsys.readouterr().err == ""
