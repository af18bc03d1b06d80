"""Pictures in a terminal: by its own protocol where it has one, else as coloured half-blocks.

Belongs to the command line; knows nothing of models. What a terminal can do is read from its
environment, never asked of it: a question it does not understand would end up in the output.
"""

import base64
import os
import shutil
from collections.abc import Mapping
from typing import TextIO

from m27.codec import media

PROTOCOLS = ("kitty", "iterm2", "sixel", "blocks", "off")


def protocol(stream: TextIO, environ: Mapping[str, str] = os.environ, piped: str = "off") -> str:
    """How `stream` shows a picture: one of `PROTOCOLS`; `M27_PICTURES` overrules the guess.

    `piped` where the stream is no terminal (a pipe, a log); "off" where NO_COLOR is set.
    """
    asked = environ.get("M27_PICTURES", "")
    if asked in PROTOCOLS:
        return asked
    term, program = environ.get("TERM", ""), environ.get("TERM_PROGRAM", "")
    if environ.get("FORCE_COLOR"):
        return "blocks"
    if environ.get("NO_COLOR"):
        return "off"
    if not stream.isatty():
        return piped
    if term in ("", "dumb"):
        return "off"
    if "TMUX" in environ or term.startswith(("screen", "tmux")):
        return "blocks"  # multiplexers swallow picture protocols
    if "KITTY_WINDOW_ID" in environ or "kitty" in term or program == "ghostty":
        return "kitty"
    if program in ("iTerm.app", "WezTerm", "mintty") or environ.get("LC_TERMINAL") == "iTerm2":
        return "iterm2"
    if "sixel" in term or term.startswith(("foot", "mlterm", "yaft")):
        return "sixel"
    return "blocks"


def render(rgb: media.Pixels, how: str, columns: int = 40) -> str:
    """uint8 [H, W, 3] as the text that shows it by protocol `how`, at most `columns` cells wide,
    ending in a newline; empty for "off"."""
    columns = max(2, min(columns, shutil.get_terminal_size().columns))
    if how == "kitty":
        return _kitty(media.png_bytes(rgb), columns)
    if how == "iterm2":
        return _iterm2(media.png_bytes(rgb), columns)
    if how == "sixel":
        return _sixel(rgb, columns * 8)
    return _blocks(rgb, columns) if how == "blocks" else ""


def _kitty(png: bytes, columns: int) -> str:
    """The kitty graphics protocol: PNG (f=100) in pieces of at most 4096 base64 characters."""
    text = base64.standard_b64encode(png).decode()
    pieces = [text[i : i + 4096] for i in range(0, len(text), 4096)]
    out = []
    for number, piece in enumerate(pieces):
        head = f"a=T,f=100,c={columns}," if number == 0 else ""
        more = int(number + 1 < len(pieces))
        out.append(f"\x1b_G{head}m={more};{piece}\x1b\\")
    return "".join(out) + "\n"


def _iterm2(png: bytes, columns: int) -> str:
    """The inline images protocol of iTerm2 (also WezTerm, mintty)."""
    text = base64.standard_b64encode(png).decode()
    return f"\x1b]1337;File=inline=1;size={len(png)};width={columns}:{text}\a\n"


def _sixel(rgb: media.Pixels, width: int) -> str:
    """DEC sixel graphics with 64 colours: bands of six rows, one pass a colour, runs packed."""
    from PIL import Image

    height = max(1, round(rgb.shape[0] * width / rgb.shape[1]))
    small = Image.fromarray(media.fit_image(rgb, height, width)).quantize(64)
    pixels, palette = small.load(), small.getpalette() or []
    if pixels is None:
        return ""
    out = [f'\x1bPq"1;1;{width};{height}']
    for number in range(len(palette) // 3):
        red, green, blue = (round(v * 100 / 255) for v in palette[3 * number : 3 * number + 3])
        out.append(f"#{number};2;{red};{green};{blue}")
    for top in range(0, height, 6):
        masks: dict[int, list[int]] = {}
        for x in range(width):
            for bit, y in enumerate(range(top, min(top + 6, height))):
                masks.setdefault(int(pixels[x, y]), [0] * width)[x] |= 1 << bit  # type: ignore[arg-type]
        passes = [f"#{colour}" + _runs(bits) for colour, bits in sorted(masks.items())]
        out.append("$".join(passes) + "-")
    return "".join(out) + "\x1b\\\n"


def _runs(bits: list[int]) -> str:
    out, start = [], 0
    for x in range(1, len(bits) + 1):
        if x == len(bits) or bits[x] != bits[start]:
            count, char = x - start, chr(63 + bits[start])
            out.append(f"!{count}{char}" if count > 3 else char * count)
            start = x
    return "".join(out)


def _blocks(rgb: media.Pixels, columns: int) -> str:
    """Two pixels a character cell: the upper half-block in the colour of the upper one, on the
    colour of the lower one."""
    true_colour = os.environ.get("COLORTERM", "") in ("truecolor", "24bit")
    rows = max(1, round(columns * rgb.shape[0] / rgb.shape[1] / 2))
    small = media.fit_image(rgb, 2 * rows, columns)
    lines = []
    for row in range(rows):
        cells = []
        for upper, lower in zip(small[2 * row].tolist(), small[2 * row + 1].tolist(), strict=True):
            front, back = _colour(upper, true_colour), _colour(lower, true_colour)
            cells.append(f"\x1b[38;{front};48;{back}m▀")
        lines.append("".join(cells) + "\x1b[0m")
    return "\n".join(lines) + "\n"


def _colour(rgb: list[int], true_colour: bool) -> str:
    """The colour part of an SGR sequence: 24 bits, or the nearest of the 6x6x6 cube."""
    if true_colour:
        return "2;" + ";".join(str(v) for v in rgb)
    red, green, blue = (round(v * 5 / 255) for v in rgb)
    return f"5;{16 + 36 * red + 6 * green + blue}"
