"""`m27 eval my.jsonl`: any model on a user's own questions."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from m27.cli.console import CHECKOUT, InputError, default_model

if TYPE_CHECKING:
    from m27.eval.answerers import Settings
    from m27.eval.ask import Plan


@dataclass(frozen=True)
class Wishes:
    """The options of the command that concern one's own set."""

    model: str = "nano"
    metric: str | None = None
    judge: str | None = None
    max_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0
    seeds: int = 1
    samples: int | None = None
    at_once: int = 16
    precision: str = "auto"
    threads: int = 0
    key: str = "OPENAI_API_KEY"
    fresh: bool = False
    form: str = "records"
    adapter: Path | None = None


def named(model: str) -> str:
    """A model as `open_model` wants it: 'nano' is the shipped one."""
    if model == "nano":
        return str(default_model())
    shipped = CHECKOUT / "weights" / f"m27-{model}"
    return str(shipped) if shipped.is_dir() and not Path(model).is_dir() else model


def slug(name: str) -> str:
    """A name as part of a folder's."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")[-80:] or "model"


def evaluate(data: Path, wishes: Wishes, out: Path | None) -> None:
    """Run it, and print the row and where the answers are."""
    from m27.eval.answerers import open_model
    from m27.eval.ask import ask
    from m27.eval.judge import strict

    check(wishes)
    plan, settings = prepared(data, wishes)
    asker = strict(replace(settings, adapter=None))
    judge = open_model(named(wishes.judge), asker) if wishes.judge else None
    model = open_model(named(wishes.model), settings)
    folder = out or Path("out/eval") / f"{slug(data.stem)}-{plan.metric.name}-{slug(wishes.model)}"
    if out is None and wishes.adapter is not None:
        folder = folder.with_name(f"{folder.name}-{slug(wishes.adapter.resolve().name)}")
    try:
        ask(plan, model, folder, judge=judge, fresh=wishes.fresh)
    finally:
        model.close()
    print(f"every answer: {folder / 'answers.jsonl'}")


def check(wishes: Wishes) -> None:
    """Raise InputError for what cannot be meant."""
    for name, value in (
        ("--max-tokens", wishes.max_tokens), ("--seeds", wishes.seeds), ("--at-once", wishes.at_once),
        ("--samples", wishes.samples if wishes.samples is not None else 1),
    ):  # fmt: skip
        if value < 1:
            raise InputError(f"{name} must be at least 1, not {value}")
    if wishes.adapter is not None and wishes.model.startswith(("hf:", "openai:", "stored:")):
        raise InputError(f"--adapter: goes with a folder of weights, not with {wishes.model}")
    if wishes.temperature < 0:
        raise InputError(f"--temperature must be at least 0, not {wishes.temperature:g}")
    if wishes.seeds > 1 and wishes.temperature == 0:
        raise InputError("--seeds: at temperature 0 every seed gives the same answer; say --temperature")
    if (wishes.metric == "judge") != bool(wishes.judge):
        raise InputError("--metric judge and --judge openai:NAME@BASE_URL go together")


def prepared(data: Path, wishes: Wishes) -> tuple[Plan, Settings]:
    """The plan of a set, and the settings that models are asked with."""
    from m27.eval.answerers import Settings
    from m27.eval.ask import Plan
    from m27.eval.metrics import METRICS
    from m27.eval.report import files_hash
    from m27.eval.sets import SETS

    if wishes.form not in SETS:
        raise InputError(f"--form is one of {', '.join(SETS)}, not {wishes.form!r}")
    form = SETS[wishes.form]
    if wishes.metric is not None and wishes.metric not in METRICS:
        raise InputError(f"--metric is one of {', '.join(METRICS)}, not {wishes.metric!r}")
    metric = METRICS[wishes.metric] if wishes.metric else form.metric or METRICS["exact"]
    if not data.exists():
        raise InputError(f"{data}: no such file or folder")
    samples = list(form.samples(data))[: wishes.samples]
    revision = files_hash([data] if data.is_file() else [p for p in data.rglob("*") if p.is_file()])
    seeds = range(wishes.seed, wishes.seed + wishes.seeds)
    plan = Plan(
        data.name, samples, metric, revision, tuple(seeds), wishes.max_tokens, wishes.temperature
    )
    settings = Settings(
        wishes.max_tokens, wishes.temperature, wishes.at_once, wishes.precision, wishes.threads, key=wishes.key,
        adapter=None if wishes.adapter is None else str(wishes.adapter),
    )  # fmt: skip
    return plan, settings
