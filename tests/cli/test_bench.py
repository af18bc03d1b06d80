"""m27 bench: every figure of a tiny model, as JSON and as lines."""

import json

import pytest

SMALL = ("--prompt", "24", "--tokens", "4", "--requests", "2", "--seconds", "0.2", "--runs", "1")


def test_json_holds_every_figure(run) -> None:
    done = run("bench", "--json", "--precision", "float32", *SMALL)
    assert done.status == 0, done.err
    result = json.loads(done.out)
    for what in ("decode", "prefill", "batch"):
        assert result[what]["tokens_per_second"] > 0
    assert result["prefill"]["first_token_seconds"] > 0
    assert result["image"]["seconds"] > 0
    assert 0 <= result["audio"]["first_packet_seconds"] <= result["audio"]["seconds"]
    assert result["precision"] == "float32"
    assert 0 < result["resident_mb"] <= result["peak_mb"] + 1


def test_lines_of_what_was_asked(run) -> None:
    done = run("bench", "decode", "--precision", "float32", *SMALL)
    assert done.status == 0, done.err
    lines = done.out.splitlines()
    assert any(line.startswith("decode tokens per second: ") for line in lines)
    assert not any(line.startswith(("image", "audio", "batch")) for line in lines)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--tokens", "1"), "m27: --tokens 1: is too few\n"),
        (("--runs", "0"), "m27: --runs 0: is too few\n"),
        (("--seconds", "0"), "m27: --seconds 0: is too short\n"),
    ],
)
def test_wrong_numbers_are_told(run, arguments: tuple[str, ...], line: str) -> None:
    done = run("bench", *arguments)
    assert (done.status, done.err) == (2, line)
