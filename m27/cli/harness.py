"""`m27 eval TASKS --harness lm-eval`: tasks of lm-evaluation-harness on any checkpoint."""

from __future__ import annotations

from pathlib import Path

from m27.cli.console import InputError
from m27.cli.own_set import Wishes, check, named, slug

HARNESSES = ("lm-eval",)


def evaluate(what: str, harness: str, wishes: Wishes, out: Path | None, fewshot: int | None, chat: bool) -> None:
    """Run it, and print the rows and where the answers are. `what`: names with commas between them, a YAML file, or a
    folder of those."""
    if harness not in HARNESSES:
        raise InputError(f"--harness is {' or '.join(HARNESSES)}, not {harness!r}")
    check(wishes)
    if wishes.metric or wishes.form != "records" or wishes.seeds > 1 or wishes.temperature:
        raise InputError("--harness: its tasks say themselves how they are asked and scored")
    from m27.eval.answerers import Settings
    from m27.eval.plugins.harness import Tasks, run

    path, include = Path(what), None
    names = [name for name in what.split(",") if name]
    if path.is_dir():
        include, names = path, [str(file) for file in sorted(path.glob("*.yaml"))]
    elif path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        include, names = path.parent, [str(path)]
    if not names:
        raise InputError(f"{what}: names no task")
    tasks = Tasks(names, include, wishes.samples, fewshot, chat, wishes.seed)
    settings = Settings(at_once=wishes.at_once, precision=wishes.precision, threads=wishes.threads)
    folder = out or Path("out/eval") / f"{slug(path.stem)}-{harness}-{slug(wishes.model)}"
    run(tasks, named(wishes.model), settings, folder, fresh=wishes.fresh)
    print(f"every answer: {folder / 'answers.jsonl'}")
