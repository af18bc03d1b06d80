"""Bad records of every kind, in every format: named by file and line, and nothing is trained unseen."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from m27.data import check, importers
from m27.data.importers.lines import values
from tests import tiny
from tests.data import samples


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    samples.media_in(tmp_path)
    return tmp_path


def asked(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"messages": samples.exchange(list(parts), "yes")}


def image(path: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": path}}


def sound(path: str) -> dict[str, Any]:
    return {"type": "audio_url", "audio_url": {"url": path}}


# What is wrong with a record of messages, and what is said of it.
MESSAGES: dict[str, tuple[Any, str]] = {
    "missing picture": (asked(image("gone.png")), "message 0, part 0: {folder}/gone.png: no such file"),
    "missing sound": (asked(sound("gone.wav")), "gone.wav: no such file"),
    "wrong role": ({"messages": [{"role": "robot", "content": "x"}]}, "role must be one of system, user"),
    "broken UTF-8": (b'{"messages": "\xe9"}', "is not UTF-8"),
    "not JSON": ('{"messages": [', "is not JSON"),
    "not an object": ("17", "must be an object with messages"),
    "zero-length sound": (asked(sound("none.wav")), "none.wav: holds no sound"),
    "a picture of 0 pixels": (asked(image("nothing.png")), "nothing.png: the picture"),
    "a picture cut short": (asked(image("cut.png")), "cut.png: the picture is broken or cut short"),
    "a sound for a picture": (asked(image("a.wav")), "a.wav: WAV data, not a PNG"),
    "unknown key": ({**asked(image("a.png")), "label": 1}, "unknown key 'label'"),
    "unknown key of a message": (
        {"messages": [{"role": "user", "content": "x", "lang": "en"}]}, "message 0: unknown key 'lang'"),
    "unknown key of a part": (
        asked({"type": "image_url", "image_url": {"url": "a.png", "size": 3}}), "unknown key 'size'"),
    "unknown type of part": (asked({"type": "video_url"}), "type must be text, image or audio"),
    "no assistant": ({"messages": [{"role": "user", "content": "x"}]}, "so there is nothing to learn"),
    "no loss": (
        {"messages": [{"role": "assistant", "content": "x", "weight": 0}]}, "no part carries loss"),
    "empty answer": ({"messages": samples.exchange("x", " \n")}, "message 1: the assistant's answer is empty"),
    "no answer": ({"messages": samples.exchange("x", [])}, "answer is empty"),
    "null answer": ({"messages": samples.exchange("x", None)}, "content must be a string or a list"),
    "an address": (asked(image("https://example.org/cat.png")), "cat.png: is an address"),
    "a broken data URL": (asked(image("data:image/png;base64,?")), "is not base64"),
    "a data URL of no picture": (asked(image(samples.data_url(b"hello"))), "part 0: image data: not a PNG"),
    "an empty data URL": (asked(image("data:image/png;base64,")), "image data: is empty"),
    "a tool call": (
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]},
        "calls of tools cannot be trained"),
    "tools": ({**asked(image("a.png")), "tools": [{"type": "function"}]}, "calls of tools"),
    "a wrong weight": ({"messages": [{"role": "assistant", "content": "x", "weight": 2}]}, "weight must be 0 or 1"),
    "a wrong size": (asked({"type": "image", "path": "a.png", "size": [100, 128]}), "size must be [height"),
    "codes of a picture": (asked({"type": "image", "codes": [[1, 2], [3]]}), "codes must be rows of numbers"),
    "codes of a sound": (asked({"type": "audio", "codes": [1, "2"]}), "codes must be a list of numbers"),
    "no codes": (asked({"type": "audio", "codes": []}), "codes must be a list of numbers"),
    "no list": ({"messages": "hello"}, "messages must be a list"),
    "types of JSON": ({"messages": [{"role": ["user"], "content": {"type": []}}]}, "role must be"),
    "a type that is a list": (asked({"type": ["image_url"]}), "type must be"),
}  # fmt: skip
PREFERENCE = {"prompt": "x", "chosen": "yes", "rejected": "no"}
PREFERENCES: dict[str, tuple[Any, str]] = {
    "one answer": ({"prompt": "x", "chosen": "yes"}, "rejected is missing"),
    "equal answers": ({**PREFERENCE, "rejected": "yes"}, "chosen and rejected are the same"),
    "an empty answer": ({**PREFERENCE, "rejected": ""}, "rejected: message 0: the assistant's answer is empty"),
    "an answer of the user's": (
        {**PREFERENCE, "chosen": [{"role": "user", "content": "x"}]}, "must be the assistant's"),
    "a prompt that ends in an answer": (
        {**PREFERENCE, "prompt": samples.exchange("x", "y")}, "prompt: the last message of a prompt"),
    "an unknown key": ({**PREFERENCE, "score": 3}, "unknown key 'score'"),
    "no messages": (
        {"input": {}, "preferred_output": [], "non_preferred_output": []}, "input: messages must be a list"),
    "an input of no object": (
        {"input": "x", "preferred_output": [], "non_preferred_output": []}, "must be an object"),
}  # fmt: skip
TALK = [{"from": "human", "value": "<image>\nx"}, {"from": "gpt", "value": "y"}]
LLAVA: dict[str, tuple[Any, str]] = {
    "too few pictures": ({"conversations": TALK}, "turn 0: <image> stands here"),
    "too many pictures": (
        {"conversations": TALK, "image": ["a.png", "a.png"]}, "image names 2, but <image> stands 1 times"),
    "missing picture": ({"conversations": TALK, "image": "gone.png"}, "gone.png: no such file"),
    "an address": ({"conversations": TALK, "image": "http://x.org/a.png"}, "image: http://x.org/a.png: is an"),
    "wrong role": ({"conversations": [{"from": "bot", "value": "x"}]}, "turn 0: from must be one of"),
    "unknown key": ({"conversations": TALK, "image": "a.png", "bbox": []}, "unknown key 'bbox'"),
    "unknown key of a turn": ({"conversations": [{**TALK[0], "n": 1}], "image": "a.png"}, "turn 0: unknown key"),
    "empty answer": (
        {"conversations": [TALK[0], {"from": "gpt", "value": ""}], "image": "a.png"}, "answer is empty"),
    "no answer": ({"conversations": TALK[:1], "image": "a.png"}, "nothing to learn"),
    "no conversation": ({"id": 3}, "must be an object with conversations"),
    "a list as a name": ({"conversations": [{"from": [], "value": "x"}]}, "turn 0: from must be"),
}  # fmt: skip
GOOD = {
    "messages": asked(image("a.png")), "preferences": PREFERENCE,
    "llava": {"conversations": TALK, "image": "a.png"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "cases"), [("messages", MESSAGES), ("preferences", PREFERENCES), ("llava", LLAVA)]
)
def test_each_bad_line_is_named(folder: Path, kind: str, cases: dict[str, tuple[Any, str]]) -> None:
    lines = [GOOD[kind], *(bad for bad, _ in cases.values()), GOOD[kind]]
    path = samples.write_lines(folder / "data.jsonl", lines)
    report = check.check(path)
    assert report.records == len(lines)
    assert [problem.line for problem in report.problems] == list(range(2, len(lines)))
    for problem, (name, (_, said)) in zip(report.problems, cases.items(), strict=True):
        assert said.format(folder=folder) in problem.reason, (name, problem.reason)
        assert str(problem).startswith(f"{path}:{problem.line}: ")
        assert "\n" not in str(problem)


def test_each_bad_record_of_a_json_list_is_named(folder: Path) -> None:
    path = folder / "data.json"
    broken = "\udce9"
    records = [GOOD["llava"], *(bad for bad, _ in LLAVA.values()), {"id": "\0"}, GOOD["llava"]]
    text = json.dumps(records, indent=2).replace("\\u0000", broken)
    path.write_bytes(text.encode("utf-8", errors="surrogateescape"))
    report = check.check(path)
    assert (report.records, len(report.problems)) == (len(LLAVA) + 3, len(LLAVA) + 1)
    assert report.problems[-1].reason == "is not UTF-8"
    rows = text.splitlines()
    for problem in report.problems:
        assert rows[problem.line - 1] == "  {", "the line is that on which the record begins"


def test_a_json_list_that_breaks_off_is_named_where_it_does(folder: Path) -> None:
    path = folder / "data.json"
    path.write_text(json.dumps([GOOD["llava"]] * 3, indent=2)[:-30])
    report = check.check(path)
    assert (report.records, len(report.problems)) == (3, 1)
    assert "is not JSON" in report.problems[0].reason
    assert "what follows is not read" in report.problems[0].reason


@pytest.mark.parametrize("medium", ["images", "sounds"])
def test_each_bad_row_of_a_table_is_named(folder: Path, medium: str) -> None:
    good, empty = ("a.png", "nothing.png") if medium == "images" else ("a.wav", "none.wav")
    rows = [
        ("file_name,text", ""), (f"{good},x", ""), ("gone.png,x", "gone.png: no such file"),
        (f"{empty},x", "the picture" if medium == "images" else "holds no sound"),
        (f"{good},", "is empty"), (good, "too few columns"), ("../a.png,x", "leaves the folder"),
        ("https://x.org/a.png,x", "is an address"), (f'{good},"a"b"', "is not a row of a table"),
        (f"{good},\udce9", "is not UTF-8"),
    ]  # fmt: skip
    if medium == "sounds":
        rows = [(row.replace(".png", ".wav"), said.replace(".png", ".wav")) for row, said in rows]
    text = "\n".join(row for row, _ in rows) + "\n"
    table = folder / "metadata.csv"
    table.write_bytes(text.encode("utf-8", errors="surrogateescape"))
    report = check.check(importers.open(folder, medium))
    found = {problem.line: problem.reason for problem in report.problems}
    assert list(found) == [n for n, (_, said) in enumerate(rows, 1) if said]
    for line, reason in found.items():
        assert rows[line - 1][1] in reason
    assert report.documents == 2 * (report.records - len(found))


def test_bad_rows_of_json_are_named(folder: Path) -> None:
    rows = [
        {"file_name": "a.png", "text": "x"}, {"file_name": "a.png"}, {"text": "x"}, "{", [],
        {"file_name": 3, "text": "x"},
    ]  # fmt: skip
    samples.write_lines(folder / "metadata.jsonl", rows)
    reasons = [problem.reason for problem in check.check(folder / "metadata.jsonl").problems]
    assert [reason.split(":")[0] for reason in reasons] == [
        "has no text or caption or transcription or transcript or sentence or normalized_text",
        "has no file_name", "is not JSON", "must be an object with file_name and text",
        "file_name and text must be strings",
    ]  # fmt: skip


def test_bad_pairs_are_named_by_their_file(tmp_path: Path) -> None:
    write: dict[str, Callable[[Path], Any]] = {
        "good.png": lambda p: p.write_bytes(samples.png()), "good.txt": lambda p: p.write_text("x"),
        "alone.png": lambda p: p.write_bytes(samples.png()), "lonely.txt": lambda p: p.write_text("x"),
        "blank.png": lambda p: p.write_bytes(samples.png()), "blank.txt": lambda p: p.write_text(" \n"),
        "cut.png": lambda p: p.write_bytes(samples.png()[:50]), "cut.txt": lambda p: p.write_text("x"),
        "latin.png": lambda p: p.write_bytes(samples.png()), "latin.txt": lambda p: p.write_bytes(b"\xe9"),
        "README.txt": lambda p: p.write_text("x"),
    }  # fmt: skip
    for name, make in write.items():
        make(tmp_path / name)
    report = check.check(tmp_path)
    assert [str(problem) for problem in report.problems] == [
        f"{tmp_path}/alone.png: no caption: alone.txt is not beside it",
        f"{tmp_path}/blank.png: the caption is empty",
        f"{tmp_path}/cut.png: {tmp_path}/cut.png: the picture is broken or cut short",
        f"{tmp_path}/latin.png: latin.txt: is not UTF-8",
        f"{tmp_path}/lonely.txt: no image file of this name is beside it",
    ]
    assert report.documents == 2


def test_nothing_is_given_while_a_record_is_bad(folder: Path) -> None:
    lines = [GOOD["messages"], *(bad for bad, _ in MESSAGES.values()), GOOD["messages"]]
    path = samples.write_lines(folder / "data.jsonl", lines)
    with pytest.raises(check.BadRecordsError) as caught:
        check.usable(path)
    assert len(caught.value.report.problems) == len(MESSAGES)
    assert f"{len(lines)} records, {len(MESSAGES)} bad" in str(caught.value)
    assert f"{path}:2: " in str(caught.value)
    assert "\n" not in str(caught.value)
    documents, report = check.usable(path, skip_bad=True)
    assert (report.records, len(report.problems), len(documents)) == (len(lines), len(MESSAGES), 2)
    for _ in range(2):
        assert [document["id"] for document in documents] == ["data.jsonl:1", f"data.jsonl:{len(lines)}"]


def test_where_nothing_is_left_nothing_is_given(folder: Path) -> None:
    path = samples.write_lines(folder / "data.jsonl", ["{"])
    with pytest.raises(check.CheckError, match=r"1 records, 1 bad; none is left: .*data.jsonl:1: is not JSON"):
        check.usable(path, skip_bad=True)


def test_a_record_that_turned_bad_is_not_trained_on(folder: Path) -> None:
    path = samples.write_lines(folder / "data.jsonl", [GOOD["messages"]] * 2)
    documents, _ = check.usable(path)
    samples.write_lines(path, [GOOD["messages"], "{"])
    with pytest.raises(check.CheckError, match=r"data.jsonl:2: is not JSON.*which it was not before"):
        list(documents)


def test_a_line_that_is_too_long_is_passed_over(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m27.data.importers.lines.MAX_LINE", 200)
    path = samples.write_lines(folder / "data.jsonl", [GOOD["messages"], "x" * 500, GOOD["messages"]])
    (problem,) = check.check(path).problems
    assert (problem.line, problem.reason) == (2, "the line is longer than 200 bytes")


def test_over_long_documents_are_named(folder: Path) -> None:
    processor = tiny.processor()
    lines = [
        {"messages": samples.exchange("x", "y" * 40)}, {"messages": samples.exchange("x", "y" * 400)},
        asked(image("a.png")), asked({"type": "image", "path": "a.png", "size": [256, 256]}),
        asked(sound("a.wav")), asked({"type": "audio", "codes": [1, 2, 3]}),
        {"messages": samples.exchange("x", "yes")}, asked({"type": "image", "codes": [[99]]}),
    ]  # fmt: skip
    path = samples.write_lines(folder / "data.jsonl", lines)
    report = check.check(path, processor=processor, max_tokens=150)
    assert [str(problem).split(": ", 1)[1] for problem in report.problems] == [
        "has 422 tokens, more than the 150 of a row", "has 284 tokens, more than the 150 of a row",
        "message 0, part 0: code 99 is outside 0..15",
    ]  # fmt: skip
    # What is counted without a codec is what the codec gives.
    documents, report = check.usable(path, True, processor=processor, max_tokens=150)
    lengths = [len(processor.encode(document["messages"]).ids) for document in documents]
    assert len(lengths) == 5
    assert report.longest == max(lengths)


@pytest.mark.parametrize("samples_T", [1, 399, 400, 401, 16_000])
def test_a_sound_is_counted_as_its_codec_spells_it(tmp_path: Path, samples_T: int) -> None:
    (tmp_path / "a.wav").write_bytes(samples.wav(samples_T))
    path = samples.write_lines(tmp_path / "a.jsonl", [asked({"type": "audio", "path": "a.wav"})])
    processor = tiny.processor()
    (document,) = importers.open(path)
    longest = check.check(path, processor=processor).longest
    assert longest == len(processor.encode(document["messages"]).ids)


def test_branches_count_as_they_are_joined(tmp_path: Path) -> None:
    path = samples.write_lines(tmp_path / "a.jsonl", [{**PREFERENCE, "prompt": "x" * 90}])
    longest = check.check(path, processor=tiny.processor()).longest
    assert 100 < longest < 180, "the prompt is spelled once"


def test_two_pictures_to_choose_from_count_twice(tmp_path: Path) -> None:
    answers = []
    for name, shade in (("a.png", 10), ("b.png", 200)):
        (tmp_path / name).write_bytes(samples.png(shade))
        answers.append([{"role": "assistant", "content": [{"type": "image", "path": name}]}])
    record = {"prompt": "Draw", "chosen": answers[0], "rejected": answers[1]}
    path = samples.write_lines(tmp_path / "a.jsonl", [record])
    assert check.check(path, processor=tiny.processor()).longest > 2 * 64


def test_a_model_without_ears_is_told(folder: Path, tmp_path: Path) -> None:
    from m27.language.processor import Processor

    deaf = Processor(tiny.TOKENIZER, tiny.VOCABULARY)
    path = samples.write_lines(folder / "a.jsonl", [asked(image("a.png")), asked(sound("a.wav"))])
    reasons = [problem.reason for problem in check.check(path, processor=deaf).problems]
    assert reasons == [
        "holds a picture, and the model has no image codec", "holds a sound, and the model has no audio codec",
    ]  # fmt: skip


def test_what_a_record_says_does_not_reach_the_terminal_raw(folder: Path) -> None:
    lines = [{"messages": [], "\x1b[2J\n" * 500: 1}, asked(image("../\x1b[31m\nred")), asked(image("\ud800.png"))]
    path = samples.write_lines(folder / "data.jsonl", lines)
    for problem in check.check(path).problems:
        assert str(problem).isprintable()
        assert len(problem.reason) <= 1_000
    with pytest.raises(check.CheckError) as caught:
        list(check.read(path))
    assert str(caught.value).isprintable()


ODD: list[Any] = [
    None, 0, -1, 1e400, True, "", "x", "\0", "<image>", [], {}, [[]], [None], {"type": []}, {"a": {}},
    [{"type": "text"}], "data:", "data:;base64,", "..", "/", ["a.png"] * 3, {"url": 3}, 10**30, "\ud800",
]  # fmt: skip


def mutated(value: Any, rng: random.Random) -> Any:
    """The value with something odd in one place of it."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        if rng.random() < 0.1:
            return {**value, rng.choice(["x", "loss", "role", "weight", "size", "codes"]): rng.choice(ODD)}
        return {**value, key: mutated(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.85:
        at = rng.randrange(len(value))
        return [*value[:at], mutated(value[at], rng), *value[at + 1 :]]
    return rng.choice(ODD)


@pytest.mark.parametrize("form", ["ours", "openai", "preferences", "llava"])
def test_whatever_stands_in_a_record_the_check_says_something(tmp_path: Path, form: str) -> None:
    rng = random.Random(form)
    path = samples.write_all(tmp_path / "forms")[form]
    kind = importers.open(path).kind
    good = [value for _, value in values(path)]
    records = [mutated(rng.choice(good), rng) for _ in range(1_500)]
    samples.write_lines(path.with_suffix(".jsonl"), [json.dumps(record) for record in records])
    found = importers.open(path.with_suffix(".jsonl"), kind)
    report = check.check(found, processor=tiny.processor(), max_tokens=2_000)
    assert report.records == len(records)
    assert all(problem.reason.isprintable() for problem in report.problems)
    assert len(report.problems) > 500
    documents, again = check.usable(found, skip_bad=True)
    assert len(list(documents)) == again.documents >= report.documents
