"""`m27 eval TASKS --harness lm-eval`: tasks of lm-evaluation-harness, its own or YAML files, as rows of ours.

The harness asks and scores; a row has its figure, with an interval over its documents, and a line an answer is kept as
of every other evaluation. What our own models computed before the run was ended is not computed again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval
import torch
from lm_eval.tasks import TaskManager

from m27 import __version__
from m27.eval.answerers.base import AnswererError, Settings
from m27.eval.ask import line
from m27.eval.journal import Journal, clear, write_json
from m27.eval.plugins.lm_model import M27
from m27.eval.report import commit, weights_revision
from m27.eval.samples import digest
from m27.eval.statistics import estimate

SCORER = "EleutherAI/lm-evaluation-harness"
_PERPLEXITY = ("word_perplexity", "byte_perplexity", "bits_per_byte")
_SHARES = ("acc", "acc_norm", "acc_bytes", "exact_match", "acc_mutual_info")


class HarnessError(ValueError):
    """A run that cannot be made; the message is one line that says why."""


@dataclass(frozen=True)
class Tasks:
    """`names` of tasks, groups or YAML files; `include`: a folder of further YAML files; `limit`: documents a task;
    `fewshot`: examples before each, None for the task's own; `chat`: whether prompts are put as conversations."""

    names: Sequence[str]
    include: Path | None = None
    limit: int | None = None
    fewshot: int | None = None
    chat: bool = False
    seed: int = 0


def run(
    tasks: Tasks, model: str, settings: Settings, out: Path, *, fresh: bool = False, say: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """Ask, and write `answers.jsonl`, `rows.jsonl` and `speed.json` into `out`. `model`: a folder of weights, or
    hf:NAME for the harness's own way with transformers. Raises HarnessError for a task or model that it has not."""
    known = model.startswith(("hf:", "openai:", "stored:"))
    kind, _, name = model.partition(":") if known else ("checkpoint", "", model)
    if kind in ("openai", "stored"):
        raise HarnessError(f"{model}: the harness needs probabilities; give a folder of weights or hf:NAME")
    folder = Path(name)
    where = {
        "model": model, "kind": kind, "revision": weights_revision(folder) if folder.is_dir() else "unknown",
        "precision": settings.precision, "seeds": [tasks.seed], "fewshot": tasks.fewshot, "chat": tasks.chat,
        "scorer": SCORER, "scorer_revision": lm_eval.__version__, "commit": commit(), "m27": __version__,
        "torch": torch.__version__,
    }  # fmt: skip
    if fresh:
        clear(out)
    journal = Journal(out, {**where, "tasks": list(tasks.names), "limit": tasks.limit})
    manager = TaskManager(include_path=str(tasks.include) if tasks.include else None)
    unknown = [n for n in tasks.names if not n.endswith((".yaml", ".yml")) and not manager.match_tasks([n])]
    if unknown:
        raise HarnessError(f"{unknown[0]}: lm-evaluation-harness {lm_eval.__version__} has no task of that name")
    asked = _model(kind, name, settings, journal)
    began = time.perf_counter()
    try:
        found = lm_eval.simple_evaluate(
            model=asked, tasks=list(tasks.names), task_manager=manager, limit=tasks.limit, num_fewshot=tasks.fewshot,
            apply_chat_template=tasks.chat, bootstrap_iters=0, log_samples=True, random_seed=tasks.seed,
            numpy_random_seed=tasks.seed, torch_random_seed=tasks.seed, fewshot_random_seed=tasks.seed,
        )  # fmt: skip
        if isinstance(asked, M27):
            runner = asked.model.engine.runner.facts()
            where |= {"precision": str(runner.get("precision")), "device": str(runner.get("device", "cpu"))}
        else:
            where["device"] = str(asked.device)
    finally:
        if isinstance(asked, M27):
            asked.model.close()
    rows = _rows(found, where)
    journal.settle("answers.jsonl", _records(found, tasks.seed))
    journal.settle("rows.jsonl", rows)
    write_json(out / "speed.json", {"wall_seconds": time.perf_counter() - began})
    for row in rows:
        say(line(row))
    return rows


def _model(kind: str, name: str, settings: Settings, journal: Journal) -> Any:
    if kind == "hf":
        from lm_eval.api.registry import get_model

        dtype = "float32" if settings.precision == "auto" and not torch.cuda.is_available() else settings.precision
        try:
            return get_model("hf")(pretrained=name, dtype=dtype, batch_size=settings.at_once, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise AnswererError(f"hf:{name}: {' '.join(str(error).split())[:300]}") from error
    return M27(name, settings.precision, settings.threads, settings.at_once, settings.device, journal=journal)


def _rows(found: dict[str, Any], where: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each task's metric and filter, in the harness's order."""
    rows = []
    for task, samples in found["samples"].items():
        options = found["configs"][task].get("generation_kwargs") or {}
        for name, score in found["results"][task].items():
            metric, comma, filtered = name.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(score, int | float):
                continue
            marked = [s for s in samples if s["filter"] == filtered and metric in s]
            low, high = _interval(metric, float(score), [s[metric] for s in marked])
            rows.append({
                **where, "task": task, "metric": metric if filtered == "none" else name,
                "temperature": float(options.get("temperature", 0.0)), "max_tokens": options.get("max_gen_toks"),
                "prompt_hash": digest(s["prompt_hash"] for s in marked),
                "data_hash": digest([s["doc_hash"], s["target_hash"]] for s in marked),
                "data_revision": f"version {found['versions'].get(task)}",
                "judge": None, "judge_prompt": None, "n": len(marked), "score": float(score), "low": low, "high": high,
                "between_seeds": None, "lower_is_better": not found["higher_is_better"][task].get(metric, True),
                "share": metric in _SHARES, "refused": 0, "ungraded": 0,
            })  # fmt: skip
    return rows


def _interval(metric: str, score: float, values: Sequence[Any]) -> tuple[float | None, float | None]:
    """95 % over documents, drawn anew; (None, None) for a metric that is not made of its documents one by one."""
    if len(values) < 2:
        return None, None
    if metric in _PERPLEXITY:
        sums = [-float(logprob) / max(1, weight) for logprob, weight in values]
        made = estimate([[s] for s in sums], [float(weight) for _, weight in values])

        def told(value: float) -> float:
            return value / math.log(2) if metric == "bits_per_byte" else math.exp(value)

        return (told(made.low), told(made.high)) if math.isclose(told(made.mean), score, rel_tol=1e-6) else (None, None)
    if not all(isinstance(value, bool | int | float) for value in values):
        return None, None
    made = estimate([[float(value)] for value in values])
    return (made.low, made.high) if math.isclose(made.mean, score, abs_tol=1e-9) else (None, None)


def _records(found: dict[str, Any], seed: int) -> list[dict[str, Any]]:
    """A line for each document and filter: what was asked, what came, and its score by metric."""
    out = []
    for task, samples in found["samples"].items():
        for s in samples:
            first = next(iter(s["arguments"]))
            asked = first[0] if isinstance(first, list | tuple) else str(first)
            scores = {name: s[name] for name in s["metrics"] if isinstance(s[name], int | float | list | tuple)}
            out.append({
                "key": f"{task}/{s['doc_id']}/{s['filter']}", "id": f"{task}/{s['doc_id']}", "seed": seed,
                "prompt": [{"role": "user", "content": str(asked)}], "references": [str(s["target"])],
                "answer": s["filtered_resps"], "error": "", "extracted": "", "score": scores, "weight": 1.0,
            })  # fmt: skip
    return out
