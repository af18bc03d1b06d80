"""m27 chat: streams, JSON, conversations, and one line for each thing that is wrong."""

import io
import json
from pathlib import Path

import pytest

from m27.codec import media


def test_json_is_one_object_and_nothing_else(run, picture: Path, sound: Path) -> None:
    for modalities in ("image,audio", "text,image,audio"):
        done = run(
            "chat", "What is this?", "--image", picture, "--audio", sound, "--json",
            "--modalities", modalities, "--max-tokens", "120", "--seed", "5", "--out", "made",
        )  # fmt: skip
        assert done.status == 0
        assert done.err == ""
        result = json.loads(done.out)
        assert set(result) == {"content", "usage", "seconds"}
        assert result["usage"]["total_tokens"] == (
            result["usage"]["prompt_tokens"] + result["usage"]["completion_tokens"]
        )
        for part in result["content"]:
            assert part["type"] in modalities
            if part["type"] == "image":
                assert set(part) == {"type", "path", "width", "height"}
                shape = (part["height"], part["width"], 3)
                assert media.read_image(part["path"]).shape == shape == (128, 128, 3)
            elif part["type"] == "audio":
                assert set(part) == {"type", "path", "seconds"}
                samples = media.read_audio(part["path"])
                assert len(samples) / 16_000 == pytest.approx(part["seconds"])
            else:
                assert set(part) == {"type", "text"}


def test_same_seed_same_words_and_new_files_beside_old(run) -> None:
    arguments = ("chat", "hi", "--json", "--modalities", "image", "--max-tokens", "140")
    first, second = (json.loads(run(*arguments, "--seed", "1").out) for _ in range(2))
    paths = [part["path"] for result in (first, second) for part in result["content"]]
    assert len(set(paths)) == len(paths)
    assert all(Path(path).parent == Path("out/chat") for path in paths)
    pictures = [media.read_image(path) for path in paths]
    assert (pictures[0] == pictures[len(pictures) // 2]).all()
    assert first["usage"] == second["usage"]


def test_text_streams_and_media_are_named(run) -> None:
    done = run("chat", "x", "--modalities", "image", "--max-tokens", "69", "--out", "o")
    assert done.status == 0
    assert f"[picture {Path('o/image-1.png')}, 128 x 128]" in done.out
    assert Path("o/image-1.png").is_file()
    plain = run("chat", "x", "--modalities", "text", "--max-tokens", "5", "--temperature", "1")
    assert plain.status == 0
    assert plain.out.endswith("\n")


def test_prompt_from_standard_input(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("from a pipe"))
    usage = json.loads(run("chat", "-", "--json", "--modalities", "text").out)["usage"]
    assert usage["prompt_tokens"] > len("from a pipe")


def test_input_that_is_not_utf8_is_told(run, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in (("chat", "-"), ("chat",), ("decode", "-", "--out", "x.png")):
        broken = io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), "ascii", "surrogateescape")
        monkeypatch.setattr("sys.stdin", broken)
        done = run(*arguments)
        assert (done.status, done.err) == (2, "m27: standard input: is not UTF-8\n")


def test_a_conversation_from_a_pipe(run, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = io.TextIOWrapper(io.BytesIO("hello\ncafé\n/quit\n".encode()), "ascii", "surrogateescape")
    monkeypatch.setattr("sys.stdin", lines)
    done = run("chat", "--modalities", "text", "--max-tokens", "4", "--temperature", "0")
    assert (done.status, done.err) == (0, "")
    assert done.out.count("[cut at the most tokens allowed]") == 2


@pytest.mark.parametrize("option", ["--image", "--audio"])
def test_unusable_files_give_one_line_and_status_2(run, option: str, tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"junk" * 20)
    (tmp_path / "broken.wav").write_bytes(b"RIFF\x00\x00\x00\x00WAVEjunk")
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(30_000_000)
    for name in ("missing.png", "empty.png", "broken.png", "broken.wav", "huge.png", "."):
        for extra in ((), ("--json",)):
            done = run("chat", "What?", option, name, *extra)
            assert done.status == 2, name
            assert done.out == ""
            assert done.err.startswith("m27: ")
            assert name in done.err
            assert done.err.count("\n") == 1
            assert "Traceback" not in done.err
            assert "0x" not in done.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--modalities", "video"), "modalities"),
        (("--modalities", ","), "modalities"),
        (("--temperature", "-1"), "temperature"),
        (("--temperature", "1e-309"), "temperature"),
        (("--temperature", "inf"), "temperature"),
        (("--max-tokens", "0"), "max_tokens"),
        (("--max-tokens", "9", "--modalities", "image"), "at least"),
        (("--guidance", "nan"), "guidance"),
        (("--seed", "-3"), "seed"),
        (("--model", "nowhere"), "nowhere: no model here"),
    ],
)
def test_unusable_options_give_one_line_and_status_2(run, arguments, words: str) -> None:
    done = run("chat", "hi", *arguments)
    assert done.status == 2
    assert words in done.err
    assert done.err.count("\n") == 1


def test_json_needs_a_prompt(run) -> None:
    assert run("chat", "--json").status == 2


def test_a_prompt_that_is_too_long_is_told(run) -> None:
    done = run("chat", "a" * 5000)
    assert done.status == 2
    assert "tokens long" in done.err


def test_an_output_folder_that_cannot_be_is_told(run, picture: Path) -> None:
    for out in (picture, picture / "below", "/proc"):
        done = run("chat", "x", "--modalities", "text", "--out", out, "--max-tokens", "2")
        assert done.status == 2  # although no file came of it: known before the model is asked
        assert done.out == ""
        assert done.err.startswith(f"m27: {out}: cannot be written to")
        assert done.err.count("\n") == 1


def test_conversation_remembers_resets_and_survives_faults(
    run, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from m27.infer.engine import Engine

    asked = []
    stream = Engine.stream

    def spy(self, request):
        asked.append(request.messages)
        return stream(self, request)

    monkeypatch.setattr(Engine, "stream", spy)
    lines = [
        f"/image {picture}", "what is this?", "/image missing.png", "/image ", "and now?", "/reset", "again",
        "/help", "", "/quit", "never read",
    ]  # fmt: skip
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    done = run("chat", "--max-tokens", "80", "--seed", "2")
    assert done.status == 0
    assert "missing.png: no such file" in done.err
    assert "/image needs a file" in done.err
    assert "/reset" in done.out
    assert [len(messages) for messages in asked] == [1, 3, 1]
    assert [p["type"] for p in asked[0][0]["content"]] == ["image", "text"]
    assert asked[1][1]["role"] == "assistant"
    assert asked[1][:1] == asked[0]
    assert [p["type"] for p in asked[2][0]["content"]] == ["text"]


def test_a_fault_in_the_program_keeps_its_traceback(run, monkeypatch: pytest.MonkeyPatch) -> None:
    from m27.infer.engine import Engine

    def fault(self, request):
        raise ZeroDivisionError

    monkeypatch.setattr(Engine, "chat", fault)
    with pytest.raises(ZeroDivisionError):
        run("chat", "hi", "--json")
