"""`m27 finetune`: a user's records → an adapter, measured before and after."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from m27.cli.console import InputError, ThreadsOption, default_model


def finetune(
    data: Annotated[
        list[Path], typer.Argument(help="Files or folders of records; see docs/data.md.")
    ],
    base: Annotated[
        Path, typer.Option(help="Folder of the model to begin with.", default_factory=default_model)
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; default: out/finetune/ and the data's name.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Train every weight, not adapters.")] = False,
    qlora: Annotated[
        bool, typer.Option("--qlora", help="Adapters over a base held in 4 bits: least memory.")
    ] = False,
    rank: Annotated[int, typer.Option(help="Rank of the adapters.")] = 16,
    alpha: Annotated[
        float | None, typer.Option(help="Adapters count alpha / rank. Default: twice the rank.")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate. Default: 5e-4, with --full 3e-5.")
    ] = None,
    epochs: Annotated[float, typer.Option(help="Times through the data.")] = 3.0,
    steps: Annotated[int | None, typer.Option(help="Length in steps, instead of epochs.")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Length by the clock, instead of epochs.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="The longest record; longer ones are bad. Default: 2048.")
    ] = None,
    val: Annotated[
        str, typer.Option(help="Share of the records to hold out, or a file of its own.")
    ] = "0.1",
    seed: Annotated[int, typer.Option(help="Of the split, the order and the first weights.")] = 0,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave bad records out instead of stopping.")
    ] = False,
    kind: Annotated[
        str, typer.Option(help="messages, llava, images or sounds; default: found by looking.")
    ] = "auto",
    direction: Annotated[
        str, typer.Option(help="Of a folder: both, draw, caption, speak or transcribe.")
    ] = "both",
    prompt: Annotated[
        str, typer.Option(help="How a folder's direction is asked; {text} is the caption.")
    ] = "",
    answers: Annotated[int, typer.Option(help="Held-out questions answered before and after.")] = 100,
    samples: Annotated[int, typer.Option(help="Held-out media made before and after.")] = 4,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: ThreadsOption = 0,
    compile: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Compile the pass: some 20 seconds, then faster.")
    ] = True,
) -> None:
    """Fine-tune on your own records; the same command goes on where it was stopped."""
    if full and qlora:
        raise InputError("--full and --qlora exclude each other")
    if steps is not None and minutes is not None:
        raise InputError("--steps and --minutes exclude each other")
    numbers: list[tuple[str, float | None]] = [
        ("rank", rank), ("alpha", alpha), ("lr", lr), ("epochs", epochs), ("steps", steps),
        ("minutes", minutes), ("max-tokens", max_tokens),
    ]  # fmt: skip
    for name, value in numbers:
        if value is not None and not value > 0:
            raise InputError(f"--{name} {value:g}: must be above 0")
    for path in data:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
    # Before torch is imported, whose threads read it once: an idle thread that spins takes time from the working one.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from recipes.finetune import FinetuneConfig, run

    where = out or Path("out/finetune") / data[0].resolve().stem
    config = FinetuneConfig(
        tuple(map(str, data)), str(base), str(where),
        method="full" if full else "qlora" if qlora else "lora", rank=rank,
        alpha=2.0 * rank if alpha is None else alpha, lr=lr, epochs=epochs, steps=steps,
        minutes=minutes, max_tokens=max_tokens, val=val, seed=seed, skip_bad=skip_bad,
        kind=kind, direction=direction,
        prompt=prompt, answers=answers, samples=samples, device=device, threads=threads,
        compile=compile,
    )  # fmt: skip
    results = run(config, lambda text: print(text, file=sys.stderr))
    if results is None:
        raise typer.Exit(1)  # stopped and saved, as the run has said
    report(results, where)


def report(results: dict[str, Any], out: Path) -> None:
    """Print what changed, and what to do next."""
    for title, rows in (("held out", results["held_out"]), ("regression", results["regression"])):
        for name, row in rows.items():
            low, high = row["interval"]
            print(
                f"{title}, {name}: loss {row['loss_before']:.3f} → {row['loss_after']:.3f} "
                f"(change {low:+.3f} to {high:+.3f})"
            )
    for name, after in results["answers"].get("after", {}).items():
        before = results["answers"]["before"][name]
        print(f"answers, {name}: {before['share']:.1%} → {after['share']:.1%} of {after['n']}")
    cost = results["cost"]
    print(
        f"this call took {cost['minutes']} minutes ({cost['processor_minutes']} of a processor) and "
        f"{cost['peak_mb']:,} MB"
    )
    for warning in results["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    if results["method"] == "full":
        print(f"wrote {out / 'model'}: m27 chat --model {out / 'model'}")
    else:
        print(f"wrote {out}: m27 chat --adapter {out}")
