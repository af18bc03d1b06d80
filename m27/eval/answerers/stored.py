"""Answers that were given before, read from a file and scored again.

Lines of JSON with an id and an answer (such as `answers.jsonl` of an earlier run), or one JSON object from id to
answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from m27.eval.answerers.base import Answer, AnswererError, Asked, Facts
from m27.eval.report import files_hash

_NAMES = ("answer", "prediction", "response", "text")


class Stored:
    """Saved answers by id. Raises AnswererError naming the file and line where it cannot be read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._answers = dict(_read(path))
        except OSError as error:
            raise AnswererError(f"{path}: {error.strerror or error}") from None
        except UnicodeDecodeError:
            raise AnswererError(f"{path}: is not UTF-8") from None

    def facts(self) -> Facts:
        """The file's hash is the revision."""
        revision = files_hash([self._path])
        goes = "nowhere: saved answers"
        return Facts(f"stored:{self._path}", "stored", revision, "as stored", "none", data_goes=goes)

    def answer(self, asked: Sequence[Asked]) -> Iterator[Answer]:
        """The saved answer to each; a question that has none is an error of that question."""
        for one in asked:
            plain = one.key.partition("#")[0] if one.key not in self._answers else one.key
            if plain in self._answers:
                yield Answer(one.key, self._answers[plain])
            else:
                yield Answer(one.key, "", error="no answer was stored")

    def close(self) -> None:
        """Nothing is held."""


def _read(path: Path) -> Iterator[tuple[str, str]]:
    text = path.read_text(encoding="utf-8")
    try:
        whole = json.loads(text)
    except ValueError:
        whole = None
    if isinstance(whole, dict) and not {"id", "key"} & whole.keys():
        for name, value in whole.items():
            yield str(name), value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record: Any = json.loads(line)
        except ValueError:
            raise AnswererError(f"{path}:{number}: is not JSON") from None
        name = record.get("key", record.get("id")) if isinstance(record, dict) else None
        answer = next((record[n] for n in _NAMES if n in record), None) if isinstance(record, dict) else None
        if name is None or not isinstance(answer, str):
            raise AnswererError(f"{path}:{number}: needs an id and an answer")
        yield str(name), answer
