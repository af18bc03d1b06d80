"""m27-nano from the registries to `weights/m27-nano`: base, token shards, training, shipped files.

    python -m recipes.nano --stage all
    python -m recipes.nano --stage joint --minutes 30 --set optim.lr=3e-4 --set data.tasks.draw=0.2
    python -m recipes.nano --stage joint --device cuda --max-minutes-this-call 9

Every stage takes up what an earlier call left: shards that are current stay, training goes on from its newest
snapshot. Stages: base (needs both codecs trained), build, projections, joint, sft, write, and `whole`, all of the
training in one stage for a GPU (see `recipes.stages`; its shards: --stage build --of whole).
A run can be watched on `runs/NAME/watch.html`.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from m27.codec.media import write_atomic
from m27.data import build as shards
from m27.data import catalogue
from m27.data.catalogue import Documents
from m27.data.mixture import Corpus
from m27.language.processor import Processor
from m27.language.vocabulary import CONTROL_SLOTS
from m27.model.config import Config
from m27.model.decoder import Decoder
from m27.model.packed import CheckpointError, read_json, save_packed
from m27.train import checkpoint
from m27.train.loop import Result, Trainer, prepare_machine
from m27.train.rows import Rows, fit_code_map
from m27.train.settings import SettingError, TrainConfig, change
from recipes import base, replay, template_shards, watching
from recipes.stages import CHAIN, STAGES, NanoRecipe, bounded, on_gpu

CODECS = ("image_codec.safetensors", "audio_codec.safetensors")
# Captions that begin the code maps near words (see `fit_code_map`), by medium.
SEEN = ("name_picture", "caption_picture", "scene_caption")
HEARD = ("name_sound", "name_instrument", "name_word")
LOG_LINES = 400  # at most, of a shipped log


def prepare(recipe: NanoRecipe) -> None:
    """Write the base into the output folder, and put the two codecs beside it."""
    base.build_base(recipe.out)
    for name in CODECS:
        if (recipe.codecs / name).is_file():
            partial = recipe.out / f".{name}.partial"
            shutil.copyfile(recipe.codecs / name, partial)
            partial.replace(recipe.out / name)
        elif not (recipe.out / name).is_file():
            raise FileNotFoundError(f"{recipe.codecs / name}: train the codec first (recipes/)")


def maker(name: str) -> Documents:
    """What makes the documents of a source: the replay, or one of the catalogue. Raises SettingError."""
    if name == "replay":
        return replay.documents
    try:
        return catalogue.documents(name)
    except KeyError as error:
        raise SettingError(f"sources: {error.args[0]}") from None


def build_source(recipe: NanoRecipe, name: str) -> str:
    """Build the shard of one source unless it is current; a line that says what it holds."""
    torch.set_num_threads(1)
    processor = Processor.load(recipe.out)
    if recipe.templates:
        return template_shards.build(recipe, name, processor)
    codec: Any = processor.image_codec
    if codec is not None:  # a quarter faster on CPUs, the same codes but for near-ties
        codec.to(memory_format=torch.channels_last)
    folder = recipe.shards / name
    if shards.is_current(folder, processor):
        return f"{name}: current"
    try:
        meta = shards.build(
            maker(name)("train", recipe.seed), processor, folder,
            max_tokens=recipe.train.data.row, limit=recipe.sources[name],
        )  # fmt: skip
    except Exception as error:  # one source must not cost the others their hour
        return f"{name}: FAILED: {type(error).__name__}: {error}"
    return told(name, meta)


def told(name: str, meta: dict[str, Any]) -> str:
    """A line that says what a shard holds, and why something was left out."""
    faults = ", ".join(f"{meta[key]} {key}" for key in ("broken", "long", "empty") if meta[key])
    return (
        f"{name}: {meta['documents']:,} documents, {meta['tokens']:,} tokens"
        + (f" (left out: {faults})" if faults else "")
        + "".join(f"\n    {reason}" for reason in meta["reasons"][:2])
    )


def build(recipe: NanoRecipe, only: Sequence[str] = (), jobs: int = 2) -> bool:
    """Build the shards of all sources (or of `only` these), `jobs` at a time; whether all succeeded."""
    names = list(only) or list(recipe.sources)
    for name in names:
        if name not in recipe.sources:
            raise SettingError(f"sources: no {name!r}; known are {', '.join(recipe.sources)}")
    recipe.shards.mkdir(parents=True, exist_ok=True)
    good = True
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        for line in pool.map(build_source, [recipe] * len(names), names):
            good = good and "FAILED" not in line
            print(line, file=sys.stderr, flush=True)
    return good


def open_corpus(recipe: NanoRecipe) -> Corpus:
    """All shards of the recipe's sources that have been built, in parts (NAME-1 and on) too."""
    found = [recipe.shards / n for n in recipe.sources if (recipe.shards / n).is_dir()]
    parts = [p for n in recipe.sources for p in sorted(recipe.shards.glob(f"{n}-[0-9]*"))]
    return Corpus([*found, *parts])


def fitting(config: TrainConfig, corpus: Corpus) -> TrainConfig:
    """The run with the shares of tasks that no shard has left out, which is said on standard error."""
    held = corpus.tokens_by_task()
    wanted = config.data.tasks or held
    for name in sorted(set(wanted) - set(held)):
        print(f"no shard has task {name!r}; its share goes to the others", file=sys.stderr)
    for name in sorted(set(held) - set(wanted)):
        print(f"task {name!r} is in the shards and not in the mixture", file=sys.stderr)
    kept = {name: share for name, share in wanted.items() if name in held}
    return replace(config, data=replace(config.data, tasks=kept))


def captioned(corpus: Corpus, tasks: Sequence[str], medium: str, limit: int) -> Iterator[
    tuple[Tensor, Tensor]
]:  # fmt: skip
    """(codes, ids of the answer's words) of documents with one medium in the question."""
    begin, end = corpus.meta["vocabulary"][medium]
    text = corpus.meta["vocabulary"]["text"]
    wanted = [i for i, name in enumerate(corpus.tasks) if name in tasks]
    numbers = np.flatnonzero(np.isin(corpus.task_of, wanted))
    for number in np.random.default_rng(0).permutation(numbers)[:limit]:
        ids, loss = corpus.document(int(number))
        codes = ids[(ids >= begin) & (ids < end)] - begin
        words = ids[loss & (ids < text) & (ids > 16)]  # the base's first ids are control tokens
        if len(codes) and len(words):
            yield torch.from_numpy(codes), torch.from_numpy(words)


def warm(rows: Rows, corpus: Corpus, limit: int = 20_000) -> None:
    """Begin both code maps near the words that their codes go with."""
    table = rows.table_VD[: rows.first].float()
    for medium, tasks in (("image", SEEN), ("audio", HEARD)):
        pairs = list(captioned(corpus, tasks, medium, limit))
        if len(pairs) < 100:
            continue
        codes = [c for c, _ in pairs]
        captions = torch.stack([table[words].mean(0) for _, words in pairs])
        code_map = rows.image_map if medium == "image" else rows.audio_map
        share = fit_code_map(code_map, codes, captions, float(table.std()))
        print(f"{medium} map begins at its captions: {share:.1%} of variance", file=sys.stderr)


def begins_with(recipe: NanoRecipe) -> Path | None:
    """The folder whose trained part a new run begins with, or None: see `NanoRecipe`."""
    for name in recipe.begin:
        if checkpoint.steps(recipe.runs / name):
            return recipe.runs / name
        if (Path(name) / "trained.safetensors").is_file():
            return Path(name)
    path = recipe.out / "trained.safetensors"
    if not recipe.shipped or not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:  # a new base's holds rows alone, never trained
        return recipe.out if any(".lora_" in name for name in file.keys()) else None  # noqa: SIM118


def open_trainer(recipe: NanoRecipe, decoder: Decoder | None = None) -> Trainer:
    """The trainer of a stage: gone on where it was, or begun with what it is to begin with.

    `decoder` is the base where it is at hand; else it is read from its package.
    """
    config = recipe.train
    device, dtype = prepare_machine(config)
    corpus = open_corpus(recipe)
    config = fitting(config, corpus)
    config = bounded(config, corpus.tokens_by_task(), recipe.tokens, recipe.epochs)
    decoder = (decoder or base.text_decoder(base.open_gguf())).to(device)
    rows = Rows(
        decoder.model.embed_tokens.weight, CONTROL_SLOTS, base.IMAGE_LEVELS, base.AUDIO_LEVELS,
        dtype, config.seed,
    )  # fmt: skip
    folder = recipe.runs / config.name
    new = not checkpoint.steps(folder)
    begin = begins_with(recipe) if new else None
    if new and begin is None and recipe.warm_start:
        warm(rows, corpus)
    trainer = Trainer(config, decoder, rows, corpus, folder)
    if begin is not None:
        print(f"{config.name} begins with {begin}", file=sys.stderr)
        trainer.begin_from(begin)
    return trainer


def sampling(recipe: NanoRecipe) -> watching.Sampling | None:
    """What draws a run's samples; None where the run wants none or the model's folder is incomplete."""
    if recipe.train.sample_minutes <= 0 or recipe.train.body == "full":
        return None
    try:
        folder = recipe.runs / recipe.train.name / "now"
        return watching.Sampling(recipe.out, folder, layout(recipe, recipe.train))
    except (OSError, ValueError) as error:
        print(f"no samples will be drawn: {error}", file=sys.stderr)
        return None


def train(
    recipe: NanoRecipe, until: int | None = None, call_minutes: float | None = None
) -> Result:
    """Train a stage, or go on with it, and write the shipped part if it came to its end."""
    trainer = open_trainer(recipe)
    result = trainer.run(until, call_minutes, sampling(recipe))
    if result.finished:
        write(recipe)
    return result


def layout(recipe: NanoRecipe, run: TrainConfig | dict[str, Any]) -> dict[str, Any]:
    """What `save_packed` wants beside the trained tensors."""
    lora = run.lora.__dict__ if isinstance(run, TrainConfig) else run["lora"]
    header = recipe.out / "config.json"
    if header.is_file():
        config = Config.from_hf(read_json(header))
    else:
        config = base.nano_config(base.open_gguf(), Processor.load(recipe.out).vocabulary)
    return {
        "config": config,
        "alpha": lora["alpha"], "rank": lora["rank"],
        "image_levels": base.IMAGE_LEVELS, "audio_levels": base.AUDIO_LEVELS,
    }  # fmt: skip


def write(recipe: NanoRecipe) -> None:
    """Write the run's newest snapshot as `trained.safetensors`, and its log. Raises ResumeError for none."""
    name = recipe.train.name
    folder = recipe.runs / name
    found = checkpoint.latest(folder)
    if found is None:
        raise checkpoint.ResumeError(f"{folder}: no snapshot to write")
    settings = found.state["config"]  # of the run, which need not be today's recipe
    about = {key: found.state[key] for key in ("tokens", "seconds")} | {
        "steps": found.step, "run": name,
    }  # fmt: skip
    save_packed(
        recipe.out, trained=found.trained, extra={"training": about}, **layout(recipe, settings)
    )
    for run in [*recipe.begin, name]:
        ship_log(recipe.runs / run / "log.jsonl", recipe.out / f"training-{run}.jsonl")
    print(f"wrote {recipe.out} from step {found.step} of {name}", file=sys.stderr)


def ship_log(log: Path, out: Path) -> None:
    """A run's log beside the weights, every few steps of it; nothing where there is none."""
    if log.is_file():
        lines = log.read_text(encoding="utf-8").splitlines()
        kept = lines[:: -(-len(lines) // LOG_LINES)]
        kept += [] if kept[-1:] == lines[-1:] else lines[-1:]
        for line in kept:
            json.loads(line)  # a torn line must not be shipped
        write_atomic(out, ("\n".join(kept) + "\n").encode())


def newest(recipe: NanoRecipe) -> NanoRecipe:
    """The last of the stages that has a snapshot, or `recipe`."""
    for name in reversed(list(STAGES)):
        stage = STAGES[name]()
        if checkpoint.steps(recipe.runs / stage.train.name):
            return replace(recipe, train=stage.train, begin=stage.begin)
    return recipe


def adjusted(recipe: NanoRecipe, given: argparse.Namespace) -> NanoRecipe:
    """A stage's recipe with what the command line says. Raises SettingError."""
    if given.device and given.device.startswith("cuda"):
        recipe = on_gpu(recipe)
    run = change(recipe.train, dict(part.partition("=")[::2] for part in given.set))
    if given.device:
        run = replace(run, device=given.device)
    if given.name:
        run = replace(run, name=given.name)
    if given.steps is not None:
        run = replace(run, steps=given.steps, minutes=given.minutes)
    elif given.minutes is not None:
        run = replace(run, minutes=given.minutes)
    recipe = replace(
        recipe, train=run, out=given.out or recipe.out, shards=given.shards or recipe.shards,
        runs=given.runs or recipe.runs, codecs=given.codecs or recipe.codecs,
        warm_start=not given.no_warm_start, templates=given.templates,
    )  # fmt: skip
    if not 0.0 < given.share <= 1.0:
        raise SettingError(f"--share must lie in (0, 1], not {given.share:g}")
    taken = {name: math.ceil(count * given.share) for name, count in recipe.sources.items()}
    recipe = replace(recipe, sources=taken)
    if given.begin == "none":
        return replace(recipe, begin=(), shipped=False)
    return recipe if given.begin is None else replace(recipe, begin=(given.begin,))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit status comes back."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    stages = ("all", "base", "build", *STAGES, "write")
    parser.add_argument("--stage", choices=stages, default="all")
    parser.add_argument("--minutes", type=float, help="length of the run, by the clock")
    parser.add_argument("--steps", type=int, help="length of the run in steps, instead")
    parser.add_argument(
        "--max-minutes-this-call", type=float, help="stop and save then; the same command goes on"
    )
    parser.add_argument("--name", help="of the run, below runs/")
    parser.add_argument("--begin", help="run or model folder to begin with, or `none`")
    parser.add_argument("--device", help="cpu or cuda; cuda also sets the batches for it")
    parser.add_argument("--out", type=Path, help="folder of the shipped model")
    parser.add_argument("--shards", type=Path, help="folder of the token shards")
    parser.add_argument("--runs", type=Path, help="folder of the runs")
    parser.add_argument("--codecs", type=Path, help="folder of newly trained codecs")
    parser.add_argument(
        "--of", choices=tuple(STAGES), default="joint", help="whose sources `build` takes"
    )
    parser.add_argument("--only", nargs="*", default=[], help="sources to build")
    parser.add_argument("--jobs", type=int, default=2, help="sources built at a time")
    parser.add_argument(
        "--share", type=float, default=1.0, help="of each source's documents, for a short run"
    )
    parser.add_argument("--no-warm-start", action="store_true")
    parser.add_argument(
        "--templates",
        action="store_true",
        help="`build`: codes come later, from codecs still to be trained",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="of TrainConfig"
    )
    given = parser.parse_args(arguments)
    try:
        recipe = adjusted(STAGES[given.of](), given)
        good = True
        if given.stage in ("all", "base"):
            prepare(recipe)
        if given.stage in ("all", "build"):
            good = build(recipe, given.only, given.jobs)
        for name, stage in STAGES.items():
            if given.stage == name:
                good = train(adjusted(stage(), given), None, given.max_minutes_this_call).finished
            elif given.stage == "all" and name in CHAIN:
                # The length that was given is the joint run's; the others keep theirs.
                own = argparse.Namespace(**vars(given))
                if name != "joint":
                    own.minutes = own.steps = own.name = None
                good = train(adjusted(stage(), own)).finished and good
        if given.stage == "write":
            write(newest(recipe) if given.name is None else recipe)
    except (
        SettingError, FileNotFoundError, checkpoint.ResumeError, shards.ShardError, CheckpointError,
    ) as error:  # fmt: skip
        print(error, file=sys.stderr)
        return 2
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
