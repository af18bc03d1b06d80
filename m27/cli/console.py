"""What every command shares: where the model is, how errors are said, where outputs are written.

Imports nothing heavy, so that `m27 --help` and a wrong file name answer at once.
"""

import io
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

CHECKOUT = Path(__file__).resolve().parents[2]


# Packages that only some commands need, and the extra of pyproject.toml that brings them.
OPTIONAL = {
    "soundfile": "media",
    "soxr": "media",
    "pyarrow": "eval",
    "onnxruntime": "eval",
    "ctranslate2": "eval",
    "transformers": "export",
    "lm_eval": "harness",
    "lmms_eval": "harness",
    "fastapi": "serve",
    "starlette": "serve",
    "uvicorn": "serve",
    "python_multipart": "serve",
}


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


PrecisionOption = Annotated[
    str, typer.Option(help="Of the weights: auto, float32, bfloat16, int8 or int4.")
]

AdapterOption = Annotated[
    Path | None, typer.Option("--adapter", help="Folder of a LoRA adapter to answer with.")
]

ThreadsOption = Annotated[int, typer.Option("--threads", help="0 for every core.", min=0)]


def processes() -> tuple[int, int]:
    """This process's number and how many there are, as `torchrun` says it; (0, 1) without it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def standard_input() -> Iterator[TextIO]:
    """Standard input, read as UTF-8 whatever the locale; `InputError` where it is not."""
    stream = sys.stdin
    told = ("utf-8", "strict")  # not again, which is an error once it was read from
    if isinstance(stream, io.TextIOWrapper) and (stream.encoding, stream.errors) != told:
        stream.reconfigure(encoding="utf-8", errors="strict")
    try:
        yield sys.stdin
    except UnicodeDecodeError:
        raise InputError("standard input: is not UTF-8") from None


def describe(error: BaseException) -> str | None:
    """One line for an error that is the caller's to mend (a typed error of ours, one of the file
    system, an optional package that is not installed); None for any other, which is a fault in the
    program and keeps its traceback."""
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        if package in OPTIONAL:
            return f"needs the package {package}: pip install -e '.[{OPTIONAL[package]}]'"
        return None
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


def check_model(folder: Path, advice: str = "name its folder with --model") -> None:
    """Raise `InputError`, which ends in `advice`, where there is no model."""
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: no model here; {advice}")


class Outputs:
    """Pictures and sounds written to `folder` as image-1.png, audio-1.wav, …: under the next free
    number of their kind, or, with a `prefix` of the caller's, over what an earlier run left.

    Raises `InputError` where nothing can be written there, so that this is known before a medium is
    made; the folder itself is made with its first file."""

    def __init__(self, folder: Path, prefix: str = "") -> None:
        there = folder.absolute()
        while not there.exists():
            there = there.parent
        try:
            tempfile.TemporaryFile(dir=there).close()
        except OSError as error:
            raise InputError(f"{folder}: cannot be written to ({error.strerror})") from None
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
