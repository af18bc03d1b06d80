"""`m27 eval`: the table of the model card."""

from pathlib import Path
from typing import Annotated

import typer

from m27.cli.console import (
    CHECKOUT,
    InputError,
    PrecisionOption,
    ThreadsOption,
    check_model,
    default_model,
    processes,
)


def evaluate(
    model: Annotated[str, typer.Argument(help="'nano', or the folder of a model.")] = "nano",
    task: Annotated[list[str] | None, typer.Option(help="Only this task; may be repeated.")] = None,
    samples: Annotated[int, typer.Option(help="Samples a task.")] = 500,
    validity: Annotated[int, typer.Option(help="Random prompts of the structure task.")] = 500,
    seed: Annotated[int, typer.Option(help="Which samples, and what is drawn.")] = 0,
    batch: Annotated[int, typer.Option(help="Questions answered together.")] = 32,
    jobs: Annotated[int, typer.Option(help="Tasks measured at once, a thread each.")] = 1,
    precision: PrecisionOption = "auto",
    threads: ThreadsOption = 0,
    resume: Annotated[bool, typer.Option(help="Keep the rows that the folder has.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the rows and answers.")] = Path("out/eval"),
) -> None:
    """Score a model on inputs it has not seen, with intervals and baselines."""
    shipped = CHECKOUT / "weights" / f"m27-{model}"
    folder = default_model() if model == "nano" else Path(model)
    if not folder.is_dir() and shipped.is_dir():
        folder = shipped
    check_model(folder, "give 'nano' or the folder of a model")
    numbers = (("--samples", samples), ("--validity", validity), ("--batch", batch))
    for name, value in (*numbers, ("--jobs", jobs)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, not {value}")
    if jobs > 1 and threads > 1:
        raise InputError(f"--threads {threads}: with --jobs each task has one")
    if jobs > 1 and processes()[1] > 1:
        raise InputError(f"--jobs {jobs}: not under torchrun, whose processes share one engine")
    from m27.eval.run import FAILED
    from m27.eval.run import evaluate as run

    rows = run(
        folder, only=task or (), samples=samples, validity=validity, seed=seed, batch=batch,
        jobs=jobs, resume=resume, out=out, precision=precision, threads=threads,
    )  # fmt: skip
    if failed := [row for row in rows if row.note.startswith(FAILED)]:
        raise InputError(f"{failed[0].task} {failed[0].note} ({len(failed)} of {len(rows)} tasks)")
