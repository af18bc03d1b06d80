"""`m27 eval FILE --form opening` (or isg-bench, interleaved): answers of words and pictures, kept; figures by rules;
and, apart from those, a judge's.

In the folder of a run: `answers.jsonl` with the media beside it in `media`, `rows.jsonl` (rules alone), `timing.jsonl`,
and a folder `judge-NAME` a judge with its `verdicts.jsonl`, `records.jsonl` and `rows.jsonl`. A run that was ended goes
on where it stopped.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from m27 import __version__
from m27.data.check import usable
from m27.data.progress import Progress
from m27.eval.answerers import Answerer, Asked, Facts
from m27.eval.interleaved import levels, pairwise, tier
from m27.eval.interleaved.content import kept, opened
from m27.eval.interleaved.makers import MEDIA, Maker
from m27.eval.interleaved.tier import Answered
from m27.eval.interleaved.verdicts import Bench
from m27.eval.journal import Journal, clear
from m27.eval.official import isg_bench, opening
from m27.eval.report import commit, files_hash
from m27.eval.samples import Sample, digest, prompt_hash, shown

Rows = list[dict[str, Any]]


class InterleavedError(ValueError):
    """A run that cannot be made; the message is one line that says why."""


def records(path: Path) -> Iterator[Sample]:
    """A user's own conversations whose last turn, with its pictures and sounds, is the gold answer."""
    for number, document in enumerate(usable(path)[0], 1):
        *asked, last = document["messages"]
        if last["role"] != "assistant" or not asked:
            raise InterleavedError(f"{path}: record {number}: does not end in an answer of the assistant's")
        sides = [[{**m, "content": _plain(m["content"])} for m in side] for side in (asked, [last])]
        yield Sample(str(document["id"]), sides[0], (), {"gold": sides[1][0]["content"]})


def _plain(content: Any) -> list[dict[str, Any]]:
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return [{k: v for k, v in part.items() if k != "loss"} for part in parts]


@dataclass(frozen=True)
class Form:
    """How a file is read, and by which of the two ways a judge is asked."""

    samples: Callable[[Path], Iterator[Sample]]
    pairs: bool
    follows: str


FORMS = {
    "opening": Form(opening.samples, True, "github.com/LanceZPF/OpenING@56b663bc84ef64960c0253325c4a89cd10ddf7f1"),
    "isg-bench": Form(
        isg_bench.samples, False, "github.com/Dongping-Chen/ISG@de504cdda1cab7bd874c252f670eb1833290db5a"
    ),
    "interleaved": Form(records, True, "m27"),
}


@dataclass(frozen=True)
class Plan:
    """What is asked, and how: `revision` is the hash of the file."""

    task: str
    form: str
    samples: Sequence[Sample]
    revision: str
    seed: int = 0
    max_tokens: int = 512
    temperature: float = 0.0
    media: tuple[str, ...] = MEDIA


def measure(
    plan: Plan, maker: Maker, out: Path, *, encoder: tier.Encoder | None = None, judge: Answerer | None = None,
    rival: Maker | None = None, fresh: bool = False, say: Callable[[str], None] = print,
) -> tuple[Rows, Rows]:  # fmt: skip
    """Make the answers, measure them by rules, and have them judged where there is a judge: (rows of rules, rows of the
    judge). `rival`: whose answers ours are compared with, in place of the data set's own (OpenING's "Human").

    Raises InterleavedError where there is nothing to ask, JournalError where `out` holds another run, AnswererError
    where model or judge stopped answering.
    """
    if not plan.samples:
        raise InterleavedError(f"{plan.task}: holds no question")
    if len({sample.id for sample in plan.samples}) < len(plan.samples):
        raise InterleavedError(f"{plan.task}: two questions have one id")
    if rival is not None and (judge is None or not FORMS[plan.form].pairs):
        raise InterleavedError("a rival is for a judge of pairs: --form opening or interleaved, with --judge")
    if fresh:
        _forget(out)
    common = _settings(plan, maker.facts())
    answers = _made(plan, maker, Journal(out, common), plan.samples)
    rows = [{**common, "judge": None, **row} for row in tier.measured(list(answers.values()), encoder)]
    Journal(out, common).settle("rows.jsonl", rows)
    for row in rows:
        say(line(row))
    if judge is None:
        return rows, []
    return rows, _judged(plan, answers, out, judge, rival, common, say)


def _forget(out: Path) -> None:
    """Remove what a run of this command wrote into a folder, and nothing else."""
    clear(out)
    for folder in [out / "media", *out.glob("judge-" + "[0-9a-f]" * 12)]:
        shutil.rmtree(folder, ignore_errors=True)


def _judged(
    plan: Plan, answers: Mapping[str, Answered], out: Path, judge: Answerer, rival: Maker | None,
    common: Mapping[str, Any], say: Callable[[str], None],
) -> Rows:  # fmt: skip
    pairs = FORMS[plan.form].pairs
    prompts = pairwise.PROMPTS if pairs else levels.PROMPTS
    subject: dict[str, Any] = {"answers": _answers_hash(answers.values()), "data_hash": common["data_hash"]}
    folder = out / f"judge-{digest([judge.facts().name, rival.facts().name if rival else None])}"
    if pairs:
        subject["rival"] = f"{rival.facts().name} ({rival.facts().revision})" if rival else "the data set's own answers"
        theirs = _rivals(plan, answers, folder / "rival", rival)
    bench = Bench(judge, folder, prompts, subject)
    found, kept_records = (
        pairwise.judged(plan.samples, answers, theirs, bench) if pairs else levels.judged(plan.samples, answers, bench)
    )
    rows = [{**common, **bench.pinned, **subject, **row} for row in found]
    journal = Journal(folder, {**bench.pinned, **subject})
    journal.settle("records.jsonl", [{"key": r["id"], **r} for r in kept_records])
    journal.settle("rows.jsonl", rows)
    for row in rows:
        say(line(row))
    return rows


def _rivals(
    plan: Plan, answers: Mapping[str, Answered], folder: Path, rival: Maker | None
) -> dict[str, Answered]:
    if rival is not None:
        return _made(plan, rival, Journal(folder, _settings(plan, rival.facts())), plan.samples)
    out = {}
    for name, answer in answers.items():
        gone = next((p["path"] for p in answer.gold if p.get("path") and not Path(p["path"]).is_file()), "")
        error = f"no file {gone}" if gone else ""
        out[name] = Answered(name, [] if gone else answer.gold, answer.gold, error=error)
    return out


def _made(plan: Plan, maker: Maker, journal: Journal, samples: Sequence[Sample]) -> dict[str, Answered]:
    """Every answer by id, made where it is not kept yet."""
    known = journal.lines("answers.jsonl")
    by_id = {sample.id: sample for sample in samples}
    todo = [Asked(s.id, s.messages, plan.seed) for s in samples if s.id not in known]
    with Progress(f"{plan.task}: answering", len(todo)) as bar:
        for made in maker.make(todo) if todo else ():
            content, error = [], made.error
            try:
                content = kept(made.content, journal.folder)
            except (ValueError, OSError) as why:  # a medium of the answer is none
                error = " ".join(str(why).split())
            sample = by_id[made.key]
            journal.append("timing.jsonl", {"key": made.key, "seconds": made.seconds})
            journal.append("answers.jsonl", {
                "key": made.key, "id": made.key, "seed": plan.seed, "prompt": shown(sample.messages), "answer": content,
                "cut": made.cut, "error": error,
            })  # fmt: skip
            bar.add()
    known = journal.lines("answers.jsonl")
    journal.settle("answers.jsonl", [known[sample.id] for sample in samples])
    return {
        s.id: Answered(s.id, opened(known[s.id]["answer"], journal.folder), s.meta["gold"], known[s.id]["cut"],
                       known[s.id]["error"])
        for s in samples
    }  # fmt: skip


def _settings(plan: Plan, facts: Facts) -> dict[str, Any]:
    return {
        "task": plan.task, "form": plan.form, "model": facts.name, "kind": facts.kind, "revision": facts.revision,
        "precision": facts.precision, "device": facts.device, "seed": plan.seed, "temperature": plan.temperature,
        "max_tokens": plan.max_tokens, "media": list(plan.media), "n_samples": len(plan.samples),
        "prompt_hash": prompt_hash(plan.samples), "data_hash": data_hash(plan.samples), "data_revision": plan.revision,
        "follows": FORMS[plan.form].follows, "scorer": "m27/interleaved", "scorer_revision": scorer_revision(),
        "commit": commit(), "m27": __version__, "torch": torch.__version__,
    }  # fmt: skip


def scorer_revision() -> str:
    """12 hex digits over the files that measure without a judge."""
    here = Path(__file__).parent
    return files_hash([here / "tier.py", here / "content.py", here.parent / "tasks" / "coherence.py"])


def data_hash(samples: Sequence[Sample]) -> str:
    """Equal where questions and gold answers are, wherever their files lie; gold pictures by name."""
    return digest([s.id, {**s.meta, "gold": [_named(part) for part in s.meta["gold"]]}] for s in samples)


def _named(part: Mapping[str, Any]) -> dict[str, Any]:
    if part["type"] == "text":
        return dict(part)
    return {"type": part["type"], "file": Path(part["path"]).name} if part.get("path") else shown(
        [{"role": "assistant", "content": [part]}])[0]["content"][0]  # fmt: skip


def _answers_hash(answers: Any) -> str:
    return digest(
        [a.id, [p if p["type"] == "text" else Path(p["path"]).name for p in a.content], a.error] for a in answers
    )


def line(row: Mapping[str, Any]) -> str:
    """A row in one line of words; a judge's says so, and how many of its replies could be used."""
    def figure(value: float | None) -> str:
        plain = row.get("unit") == "cosine" or "10" in str(row.get("scale"))
        return "–" if value is None else f"{value:.3f}" if plain else f"{100 * value:.1f} %"

    notes = [f"n {row['n']}"]
    if row.get("judge"):
        counts = f"read {row['read']} of {row['asked']}, unreadable {row['unparsed']}, failed {row['failed']}"
        notes += [f"judge {row['judge']}", f"replies {counts}"]
        if row.get("position_bias") is not None:
            notes.append(f"first place preferred {100 * row['prefers_first']:.0f} %, both orders agree "
                         f"{100 * row['consistent']:.0f} %")  # fmt: skip
    return (f"{row['task']} {row['metric']}: {figure(row['score'])} (95 %: {figure(row['low'])} to "
            f"{figure(row['high'])}), {', '.join(notes)}: {row['model']}")  # fmt: skip
