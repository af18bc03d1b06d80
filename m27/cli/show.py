"""An answer in the terminal, as it is produced: text by text, each picture and sound when whole."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from m27.cli.console import Outputs

if TYPE_CHECKING:
    from m27.infer.request import Usage


@dataclass
class Shown:
    """What was shown: `content` with codes, to be said back in the next turn; `saved`, the same
    parts as JSON with the paths of the files; and what it took."""

    content: list[dict[str, Any]] = field(default_factory=list)
    saved: list[dict[str, Any]] = field(default_factory=list)
    usage: "Usage | None" = None
    seconds: float = 0.0


def show(events: Iterable[dict[str, Any]], outputs: Outputs, piped: str = "off") -> Shown:
    """Print the events of `Engine.stream` on standard output, and write its media to `outputs`.

    `piped`: how pictures are shown where that is no terminal (see `terminal.protocol`).
    """
    from m27.cli import terminal

    shown = Shown()
    how = terminal.protocol(sys.stdout, piped=piped)
    fresh = True  # whether the cursor is at the start of a line

    def line(text: str) -> None:
        nonlocal fresh
        sys.stdout.write(("" if fresh else "\n") + text)
        fresh = True

    for event in events:
        kind = event["type"]
        if kind == "text":
            if shown.content and shown.content[-1]["type"] == "text":
                shown.content[-1]["text"] += event["text"]
            else:
                shown.content.append({"type": "text", "text": event["text"]})
                shown.saved.append(shown.content[-1])
            sys.stdout.write(event["text"])
            fresh = event["text"].endswith("\n")
        elif kind in ("image_begin", "audio_begin"):
            remark("drawing …" if kind == "image_begin" else "sounding …")
        elif kind in ("image", "audio"):
            remark("")
            saved = outputs.save(event)
            shown.content.append({"type": kind, "codes": event["codes"]})
            shown.saved.append(saved)
            if kind == "image":
                line(terminal.render(event["image"], how))
                line(f"[picture {saved['path']}, {saved['width']} x {saved['height']}]\n")
            else:
                line(f"[sound {saved['path']}, {saved['seconds']:.1f} s]\n")
        elif kind == "done":
            shown.usage, shown.seconds = event["usage"], event["seconds"]
            if shown.usage.finish_reason == "length":
                line("[cut at the most tokens allowed]\n")
        sys.stdout.flush()
    line("")
    sys.stdout.flush()
    return shown


def remark(text: str) -> None:
    """A passing remark on standard error, where somebody is watching; "" takes it back."""
    if sys.stderr.isatty() and sys.stdout.isatty():
        sys.stderr.write("\n" + text if text else "\r\x1b[K\x1b[A")
        sys.stderr.flush()
