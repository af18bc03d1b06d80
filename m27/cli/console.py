"""What every command shares: where the model is, how errors are said, where outputs are written.

Imports nothing heavy, so that `m27 --help` and a wrong file name answer at once.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

CHECKOUT = Path(__file__).resolve().parents[2]


class InputError(ValueError):
    """An argument or a file that cannot be used; the message is one line that names it."""


def default_model() -> Path:
    """`M27_MODEL`, else weights/m27-nano in the working folder, else beside the package."""
    if "M27_MODEL" in os.environ:
        return Path(os.environ["M27_MODEL"])
    here = Path("weights/m27-nano")
    return here if here.is_dir() else CHECKOUT / here


ModelOption = Annotated[
    Path, typer.Option("--model", help="Folder of the model.", default_factory=default_model)
]


def describe(error: BaseException) -> str | None:
    """One line for an error that is the caller's to mend (a typed error of ours, or of the file
    system); None for any other, which is a fault in the program and keeps its traceback."""
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename else ""
        return f"{name}{error.strerror or 'cannot be read or written'}"
    if type(error).__module__.startswith("m27.") and isinstance(error, Exception):
        return " ".join(str(error).split())
    return None


@contextmanager
def busy(text: str) -> Iterator[None]:
    """Show on standard error that something is under way, where somebody is watching."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield


def check_model(folder: Path) -> None:
    """Raise `InputError` where there is no model."""
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: no model here; name its folder with --model")


class Outputs:
    """Pictures and sounds written to `folder` as image-1.png, audio-1.wav, …: under the next free
    number of their kind, or, with a `prefix` of the caller's, over what an earlier run left."""

    def __init__(self, folder: Path, prefix: str = "") -> None:
        self.folder = folder
        self.prefix = prefix
        self._counts = {"image": 0, "audio": 0}

    def save(self, part: dict[str, Any]) -> dict[str, Any]:
        """Write the medium of a part; its JSON form comes back (text as it is).

        {"type":"image","path","width","height"} in pixels or {"type":"audio","path","seconds"}.
        """
        from m27.codec import media

        kind = part["type"]
        if kind == "text":
            return {"type": "text", "text": part["text"]}
        if kind not in part:
            raise InputError(f"the model has no {kind} codec to turn its codes into a file")
        if kind == "image":
            path = self._free("image", "png")
            media.write_png(path, part["image"])
            height, width = part["image"].shape[:2]
            return {"type": "image", "path": str(path), "width": width, "height": height}
        path = self._free("audio", "wav")
        media.write_wav(path, part["audio"])
        seconds = round(len(part["audio"]) / media.SAMPLE_RATE, 3)
        return {"type": "audio", "path": str(path), "seconds": seconds}

    def _free(self, kind: str, suffix: str) -> Path:
        while True:
            self._counts[kind] += 1
            path = self.folder / f"{self.prefix}{kind}-{self._counts[kind]}.{suffix}"
            if self.prefix or not path.exists():
                return path
