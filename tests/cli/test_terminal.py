"""terminal.py: what each kind of terminal is sent."""

import base64
import io
import re

import numpy as np
import pytest

from m27.cli import terminal
from m27.codec import media


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"TERM": "xterm-256color"}, "blocks"),
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "ghostty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({"TERM": "foot"}, "sixel"),
        ({"TERM": "xterm-kitty", "TMUX": "1"}, "blocks"),
        ({"TERM": "dumb"}, "off"),
        ({"TERM": "xterm-kitty", "NO_COLOR": "1"}, "off"),
        ({"TERM": "dumb", "M27_PICTURES": "sixel"}, "sixel"),
    ],
)
def test_protocol_is_read_from_the_environment(environ: dict[str, str], expected: str) -> None:
    assert terminal.protocol(Terminal(), environ) == expected


def test_pipes_and_logs_get_what_the_caller_wants() -> None:
    assert terminal.protocol(io.StringIO(), {"TERM": "xterm-kitty"}) == "off"
    assert terminal.protocol(io.StringIO(), {}, piped="blocks") == "blocks"
    assert terminal.protocol(io.StringIO(), {"NO_COLOR": "1"}, piped="blocks") == "off"
    assert terminal.render(np.zeros((8, 8, 3), np.uint8), "off") == ""


def test_blocks_carry_both_halves_of_each_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLORTERM", "truecolor")
    rgb = np.zeros((8, 8, 3), np.uint8)
    rgb[::2] = (255, 0, 0)
    shown = terminal.render(rgb, "blocks", 8)
    assert shown.splitlines() == ["\x1b[38;2;255;0;0;48;2;0;0;0m▀" * 8 + "\x1b[0m"] * 4
    monkeypatch.setenv("COLORTERM", "")
    assert "38;5;196;48;5;16m" in terminal.render(rgb, "blocks", 8)


def test_kitty_and_iterm2_carry_the_png_itself() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    pieces = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", terminal.render(rgb, "kitty"))
    assert len(pieces) > 1
    assert [head[-3:] for head, _ in pieces] == ["m=1"] * (len(pieces) - 1) + ["m=0"]
    data = base64.b64decode("".join(body for _, body in pieces))
    assert np.array_equal(media.read_image(data), rgb)
    body = terminal.render(rgb, "iterm2").split(":", 1)[1].rstrip("\n").rstrip("\a")
    assert np.array_equal(media.read_image(base64.b64decode(body)), rgb)


def test_sixel_spells_the_same_pixels() -> None:
    rgb = np.zeros((16, 16, 3), np.uint8)
    rgb[:, 8:] = (255, 255, 255)
    text = terminal.render(rgb, "sixel", 2)
    colours = dict(re.findall(r"#(\d+);2;(\d+;\d+;\d+)", text))
    body = re.sub(r"^.*?(?=#\d+[^;\d])", "", text.split("\x1b\\")[0], count=1)
    first_band = body.split("-")[0]
    row = ["?"] * 16
    for number, run in re.findall(r"#(\d+)([^#$]*)", first_band):
        wide = re.sub(r"!(\d+)(.)", lambda m: m[2] * int(m[1]), run)
        for x, char in enumerate(wide):
            if char != "?":
                row[x] = colours[number]
    assert row == ["0;0;0"] * 8 + ["100;100;100"] * 8
