"""`m27 eval`: the table of the model card, or any model on one's own questions."""

from pathlib import Path
from typing import Annotated

import typer

from m27.cli.console import (
    CHECKOUT,
    AdapterOption,
    InputError,
    PrecisionOption,
    ThreadsOption,
    check_model,
    default_model,
    processes,
)

# Options that mean something for one of the two alone: the card's table, and one's own set.
TABLE = ("task", "validity", "batch", "jobs", "resume")
OWN = (
    "model", "metric", "form", "judge", "rival", "coherence", "media", "max_tokens", "temperature", "seeds", "at_once",
    "key", "fresh", "fewshot", "chat", "detector", "colours",
)  # fmt: skip


def evaluate(
    context: typer.Context,
    what: Annotated[
        str, typer.Argument(help="'nano' or the folder of a model: the card's table; else a file of questions.")
    ] = "nano",
    task: Annotated[list[str] | None, typer.Option(help="Only this task; may be repeated.")] = None,
    samples: Annotated[
        int | None, typer.Option(help="Samples a task; by default 500, of one's own set all.")
    ] = None,
    validity: Annotated[int, typer.Option(help="Random prompts of the structure task.")] = 500,
    seed: Annotated[int, typer.Option(help="Which samples, and what is drawn.")] = 0,
    batch: Annotated[int, typer.Option(help="Questions answered together.")] = 32,
    jobs: Annotated[int, typer.Option(help="Tasks measured at once, a thread each.")] = 1,
    adapter: AdapterOption = None,
    precision: PrecisionOption = "auto",
    threads: ThreadsOption = 0,
    resume: Annotated[bool, typer.Option(help="Keep the rows that the folder has.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the rows and answers; by default below out/eval.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="Who is asked one's own set: a folder, hf:NAME, openai:NAME@BASE_URL, stored:FILE.")
    ] = "nano",
    metric: Annotated[
        str | None, typer.Option(help="Own set: exact (the default), contains, cider, wer, judge; two sets: fid, fad.")
    ] = None,
    form: Annotated[str, typer.Option(help="Own set: how it is read, by the name of a task.")] = "records",
    judge: Annotated[str | None, typer.Option(help="Own set: the model that grades, named as --model.")] = None,
    rival: Annotated[
        str | None, typer.Option(help="Interleaved: whose answers are compared; by default the set's own.")
    ] = None,
    coherence: Annotated[
        str | None, typer.Option(help="Interleaved: nano or hf:CLIP, which says whether pictures fit the words.")
    ] = None,
    media: Annotated[str, typer.Option(help="Interleaved: what answers may hold.")] = "text,image",
    max_tokens: Annotated[int, typer.Option(help="Own set: tokens an answer.")] = 256,
    temperature: Annotated[float, typer.Option(help="Own set: 0 for the likeliest answer.")] = 0.0,
    seeds: Annotated[int, typer.Option(help="Own set: ask with so many seeds, from --seed on.")] = 1,
    at_once: Annotated[int, typer.Option(help="Own set: questions under way at once.")] = 16,
    key: Annotated[str, typer.Option(help="Own set: the variable that holds a server's key.")] = "OPENAI_API_KEY",
    fresh: Annotated[bool, typer.Option(help="Own set: forget what the folder has.")] = False,
    harness: Annotated[
        str | None, typer.Option(help="'lm-eval': the first argument names tasks of that program, or a YAML file.")
    ] = None,
    fewshot: Annotated[int | None, typer.Option(help="Harness: examples before each question.", min=0)] = None,
    chat: Annotated[bool, typer.Option(help="Harness: put prompts as conversations.")] = False,
    against: Annotated[
        Path | None, typer.Option(help="Real pictures or sounds (or features of them), for fid and fad of a folder.")
    ] = None,
    encoder: Annotated[str | None, typer.Option(help="Two sets: a TorchScript file that looks or listens.")] = None,
    resize: Annotated[int | None, typer.Option(help="Two sets: pictures to so many pixels, before.")] = None,
    detector: Annotated[
        str | None, typer.Option(help="--form geneval: the model of transformers that finds objects.")
    ] = None,
    colours: Annotated[str | None, typer.Option(help="--form geneval: a CLIP that says their colours.")] = None,
) -> None:
    """Score a model on inputs it has not seen, with intervals and baselines; or any model on one's own questions.

    Of one's own set (any form that `m27 data check` takes) the assistant's last turn is the right answer.
    """
    if against is not None:
        from m27.cli import two_sets

        two_sets.evaluate(Path(what), against, metric, encoder, resize, samples, out)
        return
    if encoder or resize:
        raise InputError("--encoder and --resize go with --against")
    if (detector or colours) and form != "geneval":
        raise InputError("--detector and --colours go with --form geneval")
    if harness is not None or not is_model(what):
        _refuse(context, TABLE, "the table of a model")
        if harness is None and not Path(what).exists():
            raise InputError(f"{what}: no such model, file or folder")
        from m27.cli import drawn, interleaved_set, own_set
        from m27.cli.harness import evaluate as through

        wishes = own_set.Wishes(
            model, metric, judge, max_tokens, temperature, seed, seeds, samples, at_once, precision, threads, key,
            fresh, form, adapter,
        )  # fmt: skip
        if harness is not None:
            through(what, harness, wishes, out, fewshot, chat)
            return
        if form in interleaved_set.NAMES:
            interleaved_set.evaluate(Path(what), wishes, out, rival, coherence, media)
            return
        if rival or coherence:
            raise InputError(f"--rival and --coherence are for --form {', '.join(interleaved_set.NAMES)}")
        if form == "geneval":
            drawn.evaluate(Path(what), detector, colours, wishes, out)
        else:
            own_set.evaluate(Path(what), wishes, out)
        return
    _refuse(context, OWN, f"one's own set, and {what!r} is a model")
    samples = 500 if samples is None else samples
    out, model = out or Path("out/eval"), what
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
        adapter=adapter,
    )  # fmt: skip
    if failed := [row for row in rows if row.note.startswith(FAILED)]:
        raise InputError(f"{failed[0].task} {failed[0].note} ({len(failed)} of {len(rows)} tasks)")


def _refuse(context: typer.Context, names: tuple[str, ...], meant: str) -> None:
    """Raise InputError for an option that was given and has no part in what is asked, rather than pass it over."""
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise InputError(f"--{name.replace('_', '-')} is for {meant}")


def is_model(what: str) -> bool:
    """Whether the argument means a model rather than a set of questions."""
    shipped = CHECKOUT / "weights" / f"m27-{what}"
    return what == "nano" or shipped.is_dir() or (Path(what) / "config.json").is_file()
