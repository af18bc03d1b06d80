"""`m27 eval my.jsonl`: any model on any set of questions → a row, and every prompt, answer and score.

Answers are appended to `answers.jsonl` as they come, so a run that was ended goes on where it stopped and leaves the
same `answers.jsonl` and `rows.jsonl`; how long they took stands apart, in `timing.jsonl` and `speed.json`.
"""

from __future__ import annotations

import statistics as plain_statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from m27 import __version__
from m27.data.progress import Progress
from m27.eval import judge as judging
from m27.eval.answerers import Answerer, Asked, Facts
from m27.eval.figures import Answered, Figures, averaged
from m27.eval.journal import Journal, clear, write_json
from m27.eval.metrics import Metric
from m27.eval.report import commit, files_hash
from m27.eval.samples import Sample, data_hash, prompt_hash, shown
from m27.eval.statistics import Estimate, estimate


class AskError(ValueError):
    """A run that cannot be made; the message is one line that says why."""


@dataclass(frozen=True)
class Plan:
    """What is asked: a task's name, its samples, how they are scored, and `revision`, the hash or version of the data
    as it lies on the disk. With several `seeds` every question is asked once for each."""

    task: str
    samples: Sequence[Sample]
    metric: Metric
    revision: str
    seeds: Sequence[int] = (0,)
    max_tokens: int = 256
    temperature: float = 0.0


@dataclass(frozen=True)
class Result:
    """A finished run: the row, what each answer got (None: the judge gave no grade), and how fast it went."""

    row: dict[str, Any]
    records: list[dict[str, Any]]
    speed: dict[str, Any]
    facts: Facts
    metric: Metric = field(repr=False)


def ask(
    plan: Plan,
    model: Answerer,
    out: Path,
    *,
    judge: Answerer | None = None,
    fresh: bool = False,
    say: Callable[[str], None] = print,
) -> Result:
    """Ask, score, write. Raises AskError where nothing is to be asked or a judge is missing or surplus, JournalError
    where `out` holds another run, AnswererError where the model stopped answering (what it answered is kept)."""
    if not plan.samples:
        raise AskError(f"{plan.task}: holds no question")
    if (plan.metric.scorer is None) != (judge is not None):
        raise AskError("the metric judge needs a judge, and no other metric takes one")
    facts = model.facts()
    if fresh:
        clear(out)
    journal = Journal(out, _settings(plan, facts, judge))
    keys = {
        (f"{s.id}#{seed}" if len(plan.seeds) > 1 else s.id): (s, seed) for s in plan.samples for seed in plan.seeds
    }
    if len(keys) < len(plan.samples) * len(plan.seeds):
        raise AskError(f"{plan.task}: two questions have one id")
    _answers(plan, model, journal, keys)
    records, judged = _scored(plan, journal, keys, judge)
    journal.settle("answers.jsonl", records)
    row = {**_row(plan, facts, judge, records), **judged}
    journal.settle("rows.jsonl", [row])
    speed = _speed(journal, model.facts())
    write_json(out / "speed.json", speed)
    say(line(row))
    return Result(row, records, speed, model.facts(), plan.metric)


Keys = dict[str, tuple[Sample, int]]


def _answers(plan: Plan, model: Answerer, journal: Journal, keys: Keys) -> None:
    """Ask what was not answered yet."""
    kept = journal.lines("answers.jsonl")
    todo = [Asked(key, sample.messages, seed) for key, (sample, seed) in keys.items() if key not in kept]
    if not todo:
        return
    began = time.perf_counter()
    with Progress(f"{plan.task}: asking", len(todo)) as bar:
        for answer in model.answer(todo):
            sample, seed = keys[answer.key]
            since = time.perf_counter() - began
            timing = {
                "key": answer.key, "seconds": answer.seconds, "first": answer.first, "since_last": since,
                "prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.completion_tokens,
                "refused": bool(answer.error),
            }  # fmt: skip
            journal.append("timing.jsonl", timing)  # first: an answer in the file has its time
            record = {
                "key": answer.key, "id": sample.id, "seed": seed, "prompt": shown(sample.messages),
                "references": list(sample.references), "answer": answer.text, "error": answer.error,
            }  # fmt: skip
            journal.append("answers.jsonl", record)
            began += since
            bar.add()


def _scored(
    plan: Plan, journal: Journal, keys: Keys, judge: Answerer | None
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Every record with what was extracted, its score and weight; what got no answer is wrong. And what a row must say
    of a judge's replies."""
    lines = journal.lines("answers.jsonl")
    grades = judging.Grades({})
    if judge is not None:
        asked = [q for key, (sample, _) in keys.items() if not lines[key]["error"]
                 for q in judging.questions(sample, lines[key]["answer"], key)]  # fmt: skip
        grades = judging.graded(asked, judge, journal, f"{plan.task}: judging")
    scorer = plan.metric.scorer(plan.samples) if plan.metric.scorer is not None else None
    out = []
    for key, (sample, _) in keys.items():
        record = {k: v for k, v in lines[key].items() if k not in ("extracted", "score", "weight")}
        if scorer is not None:
            mark = scorer(sample, record["answer"])
            out.append({**record, "extracted": mark.extracted, "score": mark.score, "weight": mark.weight})
        else:
            score, said = (0.0, "") if record["error"] else grades.of(key)
            out.append({**record, "extracted": said, "score": score, "weight": 1.0})
    return out, grades.figures() if judge is not None else {}


def _settings(plan: Plan, facts: Facts, judge: Answerer | None) -> dict[str, Any]:
    """What makes a run the run that it is."""
    judged = judge.facts() if judge is not None else None
    return {
        "task": plan.task, "metric": plan.metric.name, "model": facts.name, "kind": facts.kind,
        "revision": facts.revision, "precision": facts.precision, "device": facts.device,
        "seeds": list(plan.seeds), "temperature": plan.temperature, "max_tokens": plan.max_tokens,
        "prompt_hash": prompt_hash(plan.samples), "data_hash": data_hash(plan.samples), "data_revision": plan.revision,
        "judge": f"{judged.name} ({judged.revision})" if judged else None,
        "judge_prompt": judging.REVISION if judged else None, "judge_temperature": 0.0 if judged else None,
        "judge_seed": judging.SEED if judged else None,
        "scorer": plan.metric.follows() if plan.metric.follows else f"m27/{plan.metric.name}",
        "scorer_revision": scorer_revision(),
        "commit": commit(), "m27": __version__, "torch": torch.__version__,
    }  # fmt: skip


def scorer_revision() -> str:
    """12 hex digits over the files that the rules of scoring stand in."""
    here = Path(__file__).parent
    own = [here / f"{name}.py" for name in ("metrics", "cider", "whisper", "judge", "benchmarks", "figures")]
    return files_hash([*own, *(here / "scorers").glob("*.py")])


def by_sample(records: Sequence[dict[str, Any]]) -> dict[str, tuple[list[float], float]]:
    """id → (the scores of its seeds, its weight), of those that have scores, in order."""
    out: dict[str, tuple[list[float], float]] = {}
    for record in records:
        if record["score"] is not None:
            out.setdefault(record["id"], ([], record["weight"]))[0].append(record["score"])
    return out


def _row(plan: Plan, facts: Facts, judge: Answerer | None, records: list[dict[str, Any]]) -> dict[str, Any]:
    marked = list(by_sample(records).values())
    found = estimate([s for s, _ in marked], [w for _, w in marked]) if marked else Estimate(0.0, 0.0, 0.0, 0)
    infinite = abs(found.low) == float("inf")
    told = _figures(plan, records)
    return {
        **_settings(plan, facts, judge), "n": len(marked), "score": found.mean,
        "low": None if infinite else found.low, "high": None if infinite else found.high,
        "between_seeds": found.between, "lower_is_better": plan.metric.lower, "share": plan.metric.share,
        "refused": sum(bool(record["error"]) for record in records),
        "ungraded": sum(record["score"] is None for record in records),
        "figures": dict(told.values), "notes": list(told.notes),
    }  # fmt: skip


def _figures(plan: Plan, records: Sequence[dict[str, Any]]) -> Figures:
    """The metric's figures of the whole set, over several seeds their mean."""
    if plan.metric.figures is None:
        return Figures({})
    samples = {sample.id: sample for sample in plan.samples}
    answered = [
        [Answered(samples[r["id"]], r["answer"], r["score"]) for r in records if r["seed"] == seed]
        for seed in plan.seeds
    ]
    return averaged([plan.metric.figures(one) for one in answered])


def _speed(journal: Journal, facts: Facts) -> dict[str, Any]:
    """Medians and tails of seconds, and throughput over the time that was spent asking."""
    every = list(journal.lines("timing.jsonl").values())
    lines = [line for line in every if not line["refused"]]  # a refusal takes no time and would flatter the rest

    def known(name: str) -> list[float]:
        return [line[name] for line in lines if line[name] is not None]

    spent = sum(line["since_last"] for line in every)
    made = sum(known("completion_tokens"))
    timed = facts.kind != "stored"
    return {
        "requests": len(lines), "at_once": facts.at_once, "wall_seconds": spent if timed else None,
        "seconds": _spread(known("seconds")) if timed else None, "first": _spread(known("first")),
        "requests_per_second": len(lines) / spent if spent and timed else None,
        "tokens_per_second": made / spent if spent and made and timed else None,
        "prompt_tokens": _mean(known("prompt_tokens")), "completion_tokens": _mean(known("completion_tokens")),
        "memory_bytes": facts.memory_bytes, "facts": asdict(facts),
    }  # fmt: skip


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _spread(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    ordered = sorted(values)
    return {"median": plain_statistics.median(ordered), "p95": ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]}


def line(row: dict[str, Any]) -> str:
    """A row in one line of words, then one for each figure of the whole set:
    "my.jsonl exact 61.0 % (52.0 – 70.0), n 100, refused 0: MODEL"."""
    def figure(value: float | None) -> str:
        return "–" if value is None else f"{100 * value:.1f} %" if row["share"] else f"{value:.3f}"

    judge = f" by {row['judge']}" if row["judge"] else ""
    notes = [f"{name} {row[name]}" for name in ("refused", "ungraded") if row[name]]
    if row.get("judge_asked"):
        notes.append(f"judge's replies read {row['judge_read']} of {row['judge_asked']}, unreadable "
                     f"{row['judge_unparsed']}, failed {row['judge_failed']}")  # fmt: skip
        if row["judge_position_bias"] is not None:
            notes.append(f"with the reference first {figure(row['judge_position_bias'])} more")
    if row["between_seeds"] is not None:
        notes.append(f"± {figure(row['between_seeds'])} from seed to seed")
    head = (
        f"{row['task']} {row['metric']}{judge}: {figure(row['score'])} (95 %: {figure(row['low'])} to "
        f"{figure(row['high'])}), n {row['n']}{''.join(', ' + note for note in notes)}: {row['model']}"
    )
    told = "".join(f"\n  {name} {value:.3f}" for name, value in row.get("figures", {}).items())
    return head + told + "".join(f"\n  {note}" for note in row.get("notes", ()))
