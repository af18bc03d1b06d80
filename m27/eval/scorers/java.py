"""METEOR 1.5 and SPICE by their own programs, which this house does not ship: Java and the authors' jars.

`M27_METEOR` names `meteor-1.5.jar` and `M27_SPICE` names `spice-1.0.jar` (with its `lib` folder beside it, as the COCO
caption evaluation carries them); either may be another program that takes the same arguments. Both get the words of
`scorers.caption.coco_words`, as in the COCO caption evaluation. Where a program is not there its figure is left out,
and `missing()` says why.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from m27.eval.scorers.caption import coco_words

SCORER = "pypi.org/project/pycocoevalcap==1.2"
SECONDS = 3600.0  # after which a program that says nothing is ended


class ProgramError(ValueError):
    """A scorer's own program failed; the message names it and what it said."""


@dataclass(frozen=True)
class Program:
    """A program that a variable of the environment names."""

    name: str
    variable: str
    memory: str

    def path(self) -> Path | None:
        """What the variable names, None where it is not set."""
        told = os.environ.get(self.variable)
        return Path(told) if told else None

    def missing(self) -> str:
        """Why it cannot be run, in words; empty where it can."""
        path = self.path()
        if path is None:
            return f"{self.variable} names no {self.name} program"
        if not path.is_file():
            return f"{self.variable} names {path}, which is no file"
        return "no java on the path" if path.suffix == ".jar" and not shutil.which("java") else ""

    def there(self) -> bool:
        """Whether it can be run."""
        return not self.missing()

    def version(self) -> str:
        """The file's name and the first 12 hex digits of its sha256."""
        path = self._file()
        return f"{path.name} ({hashlib.sha256(path.read_bytes()).hexdigest()[:12]})"

    def command(self, *arguments: str) -> list[str]:
        """The command with its arguments. Raises ProgramError where it cannot be run."""
        path = self._file()
        java = ["java", f"-Xmx{self.memory}", "-jar"] if path.suffix == ".jar" else []
        return [*java, str(path.resolve()), *arguments]

    def _file(self) -> Path:
        path = self.path()
        if path is None or self.missing():
            raise ProgramError(f"{self.name}: {self.missing()}")
        return path


METEOR = Program("METEOR", "M27_METEOR", "2G")
SPICE = Program("SPICE", "M27_SPICE", "8G")


def _words(text: str) -> str:
    """Words with single spaces; the bars that METEOR's protocol separates by are taken out."""
    return " ".join(coco_words(text.replace("|||", " ")))


def meteor(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, str]:
    """METEOR 1.5 of a corpus, 0 to 1 (English, normalised, all matchers), and the program's version.

    Raises ProgramError where it fails or answers otherwise than METEOR does.
    """
    lines = [
        " ||| ".join(["SCORE", *(_words(one) for one in known), _words(said)])
        for said, known in zip(candidates, references, strict=True)
    ]
    if not lines:
        return 0.0, METEOR.version()
    command = METEOR.command("-", "-", "-stdio", "-l", "en", "-norm")
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8"
        )  # fmt: skip
        clock = threading.Timer(SECONDS, process.kill)
        clock.start()
        try:
            assert process.stdin is not None and process.stdout is not None
            counts = [_asked(process.stdin, process.stdout, line) for line in lines]
            _asked(process.stdin, process.stdout, " ||| ".join(["EVAL", *counts]))
            for _ in lines[1:]:
                process.stdout.readline()  # the score of each alone
            whole = process.stdout.readline()
            return float(whole), METEOR.version()
        except (OSError, ValueError) as error:
            process.kill()
            process.wait()
            errors.seek(0)
            raise ProgramError(f"METEOR: {_tail(errors.read()) or error}") from error
        finally:
            clock.cancel()
            process.kill()
            process.communicate()


def _asked(into: IO[str], out: IO[str], line: str) -> str:
    into.write(line + "\n")
    into.flush()
    answer = out.readline().strip()
    if not re.fullmatch(r"[-\d.eE+ ]+|NaN", answer):
        raise ValueError(f"said {answer[:200]!r}")
    return answer


def spice(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[list[float], str]:
    """SPICE (F of scene graphs, 0 to 1) of each candidate, and the program's version.

    Raises ProgramError where it fails or leaves one out.
    """
    asked = [
        {"image_id": k, "test": _words(said), "refs": [_words(one) for one in known]}
        for k, (said, known) in enumerate(zip(candidates, references, strict=True))
    ]
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.json"), Path(folder, "out.json")
        source.write_text(json.dumps(asked), encoding="utf-8")
        command = SPICE.command(str(source), "-out", str(target), "-silent")
        try:
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, encoding="utf-8", timeout=SECONDS, check=False
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ProgramError(f"SPICE: {error}") from error
        try:
            rows = {row["image_id"]: row["scores"]["All"]["f"] for row in json.loads(target.read_text("utf-8"))}
            each = [float(rows[k]) for k in range(len(asked))]
        except (OSError, ValueError, KeyError, TypeError) as error:
            said = _tail(done.stderr) or f"{type(error).__name__}: {error}"
            raise ProgramError(f"SPICE: {said} (exit status {done.returncode})") from error
    return each, SPICE.version()


def _tail(text: str) -> str:
    return " ".join(text.split())[-300:]
