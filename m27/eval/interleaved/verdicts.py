"""A judge model's verdicts: one question each, one reply each, kept with what was asked; failures and replies that no
rule reads are counted apart and never become a score.

The judge is any answerer, asked at temperature 0 with one seed. Its name, revision, what the server called itself and
the hash of the prompts stand in every verdict and row. Prompts are our wording; an answer can still try to talk to the
judge, so marks inside of what is judged are taken apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m27.data.progress import Progress
from m27.eval.answerers import Answerer, Asked
from m27.eval.interleaved.content import Part
from m27.eval.journal import Journal
from m27.eval.report import files_hash
from m27.eval.samples import digest, shown

SEED = 0
NAMES = "question|reference|answer|first|second|text|picture"


@dataclass(frozen=True)
class Query:
    """One thing that the judge is asked: parts of a message, and how its reply is read (None: no verdict)."""

    key: str
    parts: list[Part]
    read: Callable[[str], Any]


@dataclass(frozen=True)
class Tally:
    """What became of so many questions to a judge: read, answered but not readable, or not answered at all."""

    asked: int
    read: int
    unparsed: int
    failed: int

    @property
    def parse_rate(self) -> float | None:
        """Of the replies that came, the share that could be read."""
        came = self.read + self.unparsed
        return self.read / came if came else None

    def to_json(self) -> dict[str, Any]:
        """As part of a row."""
        return {**vars(self), "parse_rate": self.parse_rate}


class Bench:
    """A judge with the folder that its verdicts are kept in. Raises JournalError where that holds another judge's."""

    def __init__(self, judge: Answerer, folder: Path, prompts: Sequence[str], subject: Mapping[str, Any]) -> None:
        """`prompts`: every wording that may be asked; `subject`: what is judged (answers and data by hash)."""
        facts = judge.facts()
        self._judge = judge
        self.prompt_hash = digest(prompts)
        self.pinned: dict[str, Any] = {
            "judge": facts.name, "judge_revision": facts.revision, "judge_precision": facts.precision,
            "judge_prompt": self.prompt_hash, "judge_code": code_revision(), "judge_temperature": 0.0,
            "judge_seed": SEED,
        }  # fmt: skip
        self._journal = Journal(folder, {**self.pinned, **subject})

    def ask(self, queries: Sequence[Query], label: str) -> dict[str, Any]:
        """key → verdict, for each query that has one; replies that are kept are not asked for again."""
        known = self._journal.lines("verdicts.jsonl")
        todo = [q for q in queries if q.key not in known]
        asked = [Asked(q.key, [{"role": "user", "content": q.parts}], SEED) for q in todo]
        prompts = {one.key: digest(shown(one.messages)) for one in asked}
        with Progress(label, len(todo)) as bar:
            for reply in self._judge.answer(asked):
                served = str(self._judge.facts().more.get("answered_as") or "")
                record = {"key": reply.key, "judge": self.pinned["judge"], "answered_as": served,
                          "judge_prompt": self.prompt_hash, "asked": prompts[reply.key], "reply": reply.text,
                          "error": reply.error}  # fmt: skip
                self._journal.append("verdicts.jsonl", record)
                bar.add()
        known = self._journal.lines("verdicts.jsonl")
        out = {}
        for query in queries:
            record = known[query.key]
            verdict = None if record["error"] else query.read(record["reply"])
            if verdict is not None:
                out[query.key] = verdict
        return out

    def tally(self, queries: Sequence[Query], verdicts: Mapping[str, Any]) -> Tally:
        """What became of these queries."""
        known = self._journal.lines("verdicts.jsonl")
        failed = sum(bool(known[q.key]["error"]) for q in queries)
        read = sum(q.key in verdicts for q in queries)
        return Tally(len(queries), read, len(queries) - read - failed, failed)

    def served(self) -> list[str]:
        """What the server called the model in its replies: one name, if it is pinned."""
        return sorted({record["answered_as"] for record in self._journal.lines("verdicts.jsonl").values()})


def code_revision() -> str:
    """12 hex digits over the files that ask and read."""
    here = Path(__file__).parent
    return files_hash([here / name for name in ("verdicts.py", "pairwise.py", "levels.py")])


def inside(name: str, content: Sequence[Part]) -> list[Part]:
    """Parts between the marks `<name>` and `</name>`."""
    ends = [{"type": "text", "text": text} for text in (f"<{name}>\n", f"\n</{name}>\n")]
    return [ends[0], *map(unmarked, content), ends[1]]


def unmarked(part: Part) -> Part:
    """A part whose text cannot close the marks that it stands between."""
    if part["type"] != "text":
        return part
    return {"type": "text", "text": re.sub(rf"<(/?)({NAMES})>", r"‹\1\2›", part["text"], flags=re.IGNORECASE)}


def number(reply: str, low: float, high: float) -> float | None:
    """The last "Score: N" of a reply, or a reply that is a number alone; None where it has none in range."""
    found = re.findall(r"score\W{0,6}(\d+(?:\.\d+)?)", reply, re.IGNORECASE) or re.findall(r"^\W*(\d+)\W*$", reply)
    value = float(found[-1]) if found else low - 1
    return value if low <= value <= high else None


def yes(reply: str) -> bool | None:
    """Yes or no, by the last "Answer: …" or the first word; None where it is neither."""
    found = re.findall(r"answer\W{1,6}(yes|no)\b", reply, re.IGNORECASE) or re.findall(
        r"^\W*(yes|no)\b", reply, re.IGNORECASE
    )
    return found[-1].lower() == "yes" if found else None
