"""Each format gives our documents, found by looking; what cannot be told is refused in one line."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest

from m27.data import importers
from m27.data.importers.base import CheckError
from m27.language.template import segments
from tests.data import samples

KINDS = {
    "ours": "messages", "openai": "messages", "preferences": "preferences", "llava": "llava",
    "pictures": "images", "imagefolder": "images", "sounds": "sounds", "audiofolder": "sounds",
    "ljspeech": "sounds",
}  # fmt: skip


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return samples.write_all(tmp_path_factory.mktemp("forms"))


def documents(path: Path, **options: Any) -> list[Any]:
    return list(importers.open(path, **options))


@pytest.mark.parametrize("form", KINDS)
def test_the_format_is_found_and_gives_documents(forms: dict[str, Path], form: str) -> None:
    found = importers.open(forms[form])
    assert found.kind == KINDS[form]
    records = list(found.records())
    assert [record.reason for record in records] == ["", "", ""]
    for document in found:
        assert segments(document["messages"])
        assert document["id"] and document["source"]
    assert list(found) == list(importers.open(forms[form], found.kind))


def test_our_own_records(forms: dict[str, Path]) -> None:
    first, second, third = documents(forms["ours"])
    assert (first["id"], first["task"], first["source"]) == ("a", "vqa", "ours")
    assert first["messages"][0]["content"] == [
        {"type": "image", "path": str(forms["ours"].parent / "a.png")}
    ]
    assert second["messages"][1]["content"][0]["type"] == "audio"
    assert third["id"] == "ours.jsonl:3"


def test_openai_parts_become_ours(tmp_path: Path) -> None:
    png, wav = samples.png(), samples.wav()
    parts = [
        {"type": "text", "text": "Look:"},
        {"type": "image_url", "image_url": {"url": samples.data_url(png), "detail": "low"}},
        {"type": "image_url", "image_url": "pictures/b.png"},
        {"type": "input_audio", "input_audio": {"data": base64.b64encode(wav).decode(), "format": "wav"}},
        {"type": "audio_url", "audio_url": {"url": "/abs/c.wav"}},
    ]
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": parts, "name": "ann"},
        {"role": "assistant", "content": "one", "weight": 0},
        {"role": "user", "content": "more"},
        {"role": "assistant", "content": "two", "weight": 1, "refusal": None, "tool_calls": None},
    ]
    record = {"messages": messages, "parallel_tool_calls": False, "tools": []}
    (document,) = documents(samples.write_lines(tmp_path / "a.jsonl", [record]))
    system, user, one, _, two = document["messages"]
    assert system["role"] == "system"
    assert user["content"] == [
        {"type": "text", "text": "Look:"}, {"type": "image", "bytes": png},
        {"type": "image", "path": str(tmp_path / "pictures/b.png")},
        {"type": "audio", "bytes": wav}, {"type": "audio", "path": "/abs/c.wav"},
    ]  # fmt: skip
    assert one["content"] == [{"type": "text", "text": "one", "loss": False}]
    assert two["content"] == [{"type": "text", "text": "two"}]


def test_preferences_are_two_branches_that_begin_alike(tmp_path: Path) -> None:
    ask, good, bad = (
        {"role": "user", "content": "Draw"}, {"role": "assistant", "content": "yes"},
        {"role": "assistant", "content": "no"},
    )  # fmt: skip
    openai = {
        "input": {"messages": [ask], "tools": [], "parallel_tool_calls": True},
        "preferred_output": [good], "non_preferred_output": [bad],
    }  # fmt: skip
    records = [
        openai,
        {"prompt": "Draw", "chosen": "yes", "rejected": "no"},
        {"prompt": [ask, good, ask], "chosen": [good], "rejected": [bad], "id": "x"},
    ]
    first, second, third = documents(samples.write_lines(tmp_path / "a.jsonl", records))
    assert first["messages"] == second["messages"]
    assert first["preference"] is True and first["task"] == "preference"
    assert [m["content"][0]["text"] for m in first["messages"]] == ["Draw", "yes"]
    assert [m["content"][0]["text"] for m in first["branches"][0]] == ["Draw", "no"]
    assert third["messages"][:3] == third["branches"][0][:3]
    assert third["messages"][1]["content"][0]["loss"] is False, "an earlier answer is not learned"


def test_llava_placeholders_take_the_media_in_order(tmp_path: Path) -> None:
    record = {
        "id": 7, "images": ["a.png", "b.png"], "audio": "c.wav", "system": "Brief.", "model": "",
        "conversations": [
            {"from": "human", "value": "<image>\nand\n<image>\nthen <audio>?"},
            {"from": "gpt", "value": "yes"},
        ],
    }  # fmt: skip
    path = tmp_path / "a.json"
    path.write_text(json.dumps([record, {**record, "id": "8"}]))
    document = documents(path)[0]
    assert document["id"] == "7"
    assert document["messages"][0]["role"] == "system"
    assert document["messages"][1]["content"] == [
        {"type": "image", "path": str(tmp_path / "a.png")}, {"type": "text", "text": "and"},
        {"type": "image", "path": str(tmp_path / "b.png")}, {"type": "text", "text": "then "},
        {"type": "audio", "path": str(tmp_path / "c.wav")}, {"type": "text", "text": "?"},
    ]  # fmt: skip
    answer = {**record, "images": None, "audio": None, "image": "d.png"}
    answer["conversations"] = [{"from": "user", "value": "Draw"}, {"from": "assistant", "value": "<image>"}]
    (made,) = documents(samples.write_lines(tmp_path / "b.jsonl", [answer]))
    assert made["messages"][2]["content"] == [{"type": "image", "path": str(tmp_path / "d.png")}]


@pytest.mark.parametrize(
    ("form", "direction", "tasks"),
    [
        ("pictures", "both", ["caption_picture", "draw"]), ("pictures", "draw", ["draw"]),
        ("imagefolder", "caption", ["caption_picture"]), ("sounds", "both", ["transcribe", "speak"]),
        ("ljspeech", "speak", ["speak"]), ("audiofolder", "transcribe", ["transcribe"]),
    ],
)  # fmt: skip
def test_directions(forms: dict[str, Path], form: str, direction: str, tasks: list[str]) -> None:
    found = documents(forms[form], direction=direction)
    assert [document["task"] for document in found] == 3 * tasks
    assert len({document["id"] for document in found}) == len(found)
    for document in found:
        asked, answer = document["messages"]
        made = document["task"] in ("draw", "speak")
        media = answer["content"] if made else asked["content"][:1]
        assert Path(media[0]["path"]).is_file()
        words = asked["content"][-1]["text"] if made else answer["content"][0]["text"]
        assert re.search(r"[Aa] thing \d|One, two, \d|Number \d \"quoted", words), words


def test_requests_are_phrased_as_the_model_knows_them_or_by_the_user(forms: dict[str, Path]) -> None:
    def asked(**options: Any) -> list[str]:
        found = documents(forms["pictures"], **options)
        return [d["messages"][0]["content"][-1]["text"] for d in found]

    drawn = asked(direction="draw")
    assert all("a thing" in words and "thing 0.." not in words for words in drawn)
    assert drawn == asked(direction="draw")
    assert drawn != asked(direction="draw", seed=3)
    assert asked(direction="draw", prompt="Stamp: {text}")[1] == "Stamp: A thing 1."
    assert asked(direction="caption", prompt="As JSON")[1] == "As JSON"


@pytest.mark.parametrize(
    ("form", "options", "reason"),
    [
        ("pictures", {"direction": "speak"}, "images go both or draw or caption"),
        ("ours", {"direction": "draw"}, "messages go both"),
        ("pictures", {"prompt": "Draw {text}"}, "asks for one direction"),
        ("pictures", {"direction": "draw", "prompt": "Draw"}, "must stand in it"),
        ("pictures", {"kind": "llava"}, "is a folder"),
        ("ours", {"kind": "images"}, "are in a folder"),
        ("ours", {"kind": "parquet"}, "none of messages, "),
    ],
)
def test_options_that_do_not_go_with_it(
    forms: dict[str, Path], form: str, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(CheckError, match=re.escape(reason)) as caught:
        importers.open(forms[form], **options)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_told_says_what_was_looked_for(tmp_path: Path) -> None:
    def refused(name: str) -> str:
        with pytest.raises(CheckError) as caught:
            importers.open(tmp_path / name)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no such file" in refused("gone")
    samples.write_lines(tmp_path / "odd.jsonl", [{"question": "?", "answer": "!"}])
    said = refused("odd.jsonl")
    assert "question, answer" in said and "conversations (LLaVA)" in said
    samples.write_lines(tmp_path / "two.jsonl", [{"messages": [], "conversations": []}])
    assert "messages and like llava" in refused("two.jsonl")
    (tmp_path / "words.txt").write_text("hello\n")
    assert "holds no JSON records" in refused("words.txt")
    (tmp_path / "empty").mkdir()
    assert "metadata.csv, metadata.jsonl, captions.txt" in refused("empty")
    both = tmp_path / "both"
    both.mkdir()
    for name, data in (("a.png", samples.png()), ("b.wav", samples.wav())):
        (both / name).write_bytes(data)
        (both / name).with_suffix(".txt").write_text("x")
    assert "images and like sounds" in refused("both")
    assert importers.open(both, "sounds").kind == "sounds"
    (both / "metadata.csv").write_text("file_name,text\na.png,x\nb.wav,y\n")
    assert "pictures as well as sounds" in refused("both")
    (both / "captions.txt").write_text("a.png\tx\n")
    assert "metadata.csv and captions.txt" in refused("both")
    (both / "train.jsonl").write_text("{}\n")
    assert "train.jsonl and a table of media and images" in refused("both")


def test_a_folder_around_one_file_is_that_file(tmp_path: Path) -> None:
    samples.media_in(tmp_path)
    samples.write_lines(tmp_path / "train.jsonl", [samples.exchange("hi", "ho")])
    assert importers.open(tmp_path).path == tmp_path / "train.jsonl"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("captions.txt", "a.png\tA dog, grey\n"),
        ("captions.txt", 'image,caption\na.png,"A dog, grey"\n'),
        ("captions.txt", 'a.png,"A dog, grey"\n'),
        ("metadata.csv", '\ufeffwidth,file_name,caption\r\n8,a.png,"A dog, grey"\r\n'),
        ("metadata.jsonl", '{"file_name": "a.png", "text": "A dog, grey", "label": 3}\n'),
    ],
)
def test_tables(tmp_path: Path, name: str, text: str) -> None:
    samples.media_in(tmp_path)
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    for path in (tmp_path, tmp_path / name):
        (document,) = documents(path, direction="caption")
        assert document["messages"][1]["content"][0]["text"] == "A dog, grey"


def test_a_table_without_its_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(samples.png())
    (tmp_path / "metadata.csv").write_text("name,label\na.png,dog\n")
    with pytest.raises(CheckError, match=r"metadata.csv:1: needs the columns file_name .*has: name, label"):
        importers.open(tmp_path)


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("a.png", "{root}/a.png"), ("./b/../a.png", "{root}/a.png"), ("/abs/a.png", "/abs/a.png"),
        ("../a.png", "leaves the folder"), ("b/../../a.png", "leaves the folder"), ("..", "leaves the folder"),
        ("http://x.org/a.png", "nothing is fetched"), ("https:\\\\x.org", "nothing is fetched"),
        ("file:///etc/passwd", "nothing is fetched"), ("", "must be a string"), ("a\0b", "not a usable path"),
    ],
)  # fmt: skip
def test_paths_stay_in_the_folder_of_the_data(tmp_path: Path, path: str, kept: str) -> None:
    forms = [
        {"type": "image", "path": path},
        {"type": "image_url", "image_url": {"url": path}},
    ]
    for part in forms:
        file = samples.write_lines(tmp_path / "a.jsonl", [samples.exchange([part], "x")])
        (record,) = importers.open(file).records()
        if record.reason:
            assert record.reason.startswith("message 0, part 0: ")
            assert kept in record.reason
        else:
            found = record.documents[0]["messages"][0]["content"][0]["path"]
            assert found == kept.format(root=tmp_path)


def test_relative_paths_may_begin_elsewhere(tmp_path: Path) -> None:
    path = samples.write_lines(
        tmp_path / "a.jsonl", [samples.exchange([{"type": "image", "path": "a.png"}], "x")]
    )
    (document,) = documents(path, root=tmp_path / "media")
    assert document["messages"][0]["content"][0]["path"] == str(tmp_path / "media" / "a.png")


def test_folders_may_name_what_is_in_them(tmp_path: Path) -> None:
    for name in ("red_fox/1.png", "red_fox/2.png", "owl/1.png"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(samples.png())
    found = documents(tmp_path / "data", direction="caption")
    assert [d["messages"][1]["content"][0]["text"] for d in found] == ["owl", "red fox", "red fox"]
    assert [d["id"] for d in found][:2] == ["caption_picture:owl/1.png", "caption_picture:red_fox/1.png"]
    (tmp_path / "sides").mkdir()
    (tmp_path / "data").rename(tmp_path / "sides" / "train")
    with pytest.raises(CheckError, match="holds the folders train; name the one that is meant"):
        importers.open(tmp_path / "sides")
    # With a file of records beside them they are where its media lie.
    samples.write_lines(tmp_path / "sides" / "a.jsonl", [samples.exchange("x", "y")])
    assert importers.open(tmp_path / "sides").kind == "messages"
