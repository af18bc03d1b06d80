"""The command line, `m27`. It may use every room; no room uses it.

Each command imports what it needs when it runs, so that the help and a wrong argument answer at
once. A fault of the caller's is one line on standard error and exit status 2.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout

import typer

from m27.cli import (
    bench,
    calibrate,
    chat,
    codes,
    compare,
    console,
    data,
    evaluate,
    export,
    finetune,
    merge,
    plan,
    serve,
    tour,
    train,
)

app = typer.Typer(
    name="m27",
    help="One decoder whose vocabulary also spells pictures and sounds.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command("chat")(chat.chat)
app.command("encode")(codes.encode)
app.command("decode")(codes.decode)
app.command("calibrate")(calibrate.calibrate)
app.command("export")(export.export)
app.command("finetune")(finetune.finetune)
app.command("merge")(merge.merge)
app.command("sizes")(export.sizes)
app.command("serve")(serve.serve)
app.command("tour")(tour.tour)
app.command("bench")(bench.bench)
app.command("eval")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.command("train", context_settings=train.CONTEXT)(train.train)
app.command("plan")(plan.plan)
app.add_typer(data.app, name="data")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command (of `arguments`, else of the process) and leave with its exit status.

    Under `torchrun` every process trains; any other command is run by the first one, and the others are
    there for the model that it loads.
    """
    rank, world = console.processes()
    if world == 1:
        _run(arguments)
        return
    if "train" in (arguments if arguments is not None else sys.argv[1:])[:1]:
        _train(arguments, rank)
        return
    from m27.infer import tensor_parallel

    if rank:
        sys.exit(tensor_parallel.follow())
    try:
        _run(arguments)
    finally:
        tensor_parallel.release()


def _train(arguments: Sequence[str] | None, rank: int) -> None:
    """One of several ranks that train. What is wrong before they have met is wrong for all: one says it."""
    from m27.train import parallel

    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere if rank else sys.stdout):
            _run(arguments, speaks=lambda: rank == 0 or parallel.met())
    finally:
        parallel.leave()


def _run(arguments: Sequence[str] | None, speaks: Callable[[], bool] = lambda: True) -> None:
    try:
        app(args=list(arguments) if arguments is not None else None, prog_name="m27")
    except BrokenPipeError:
        # Whoever read our output has left; nothing may be flushed to it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        line = console.describe(error)
        if line is None:
            raise
        if not speaks():
            time.sleep(60)  # torchrun ends us when the first process has said it; not before
        elif not getattr(error, "told", False):  # by another process of the same command
            print(f"m27: {line}", file=sys.stderr)
        sys.exit(2)
