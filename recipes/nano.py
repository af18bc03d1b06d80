"""m27-nano from the registries to `weights/m27-nano`: base, token shards, training, shipped files.

    python -m recipes.nano --stage all
    python -m recipes.nano --stage train --minutes 30 --set optim.lr=3e-4 --set data.tasks.draw=0.2

Without options it is the run that made the shipped weights: 65 minutes on two CPU cores, then 6 more. Every
stage takes up what an earlier call left: shards that are current stay, training goes on from its newest
snapshot. Stages: base (needs both codecs trained), build, train, settle (plain text beside the rest), write.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from m27.data import build as shards
from m27.data import catalogue
from m27.data.catalogue import Documents
from m27.data.mixture import Corpus
from m27.language.processor import Processor
from m27.language.vocabulary import CONTROL_SLOTS
from m27.model.checkpoint import save_packed
from m27.train import checkpoint
from m27.train.loop import Result, Trainer, prepare_machine
from m27.train.lora import LoraConfig
from m27.train.optim import OptimConfig
from m27.train.rows import Rows, fit_code_map
from m27.train.settings import DataConfig, SettingError, TrainConfig, change
from recipes import base, replay

CODECS = ("image_codec.safetensors", "audio_codec.safetensors")
# Captions that begin the code maps near words (see `fit_code_map`), by medium.
SEEN = ("name_picture", "caption_picture", "scene_caption")
HEARD = ("name_sound", "name_instrument", "name_word")


@dataclass(frozen=True)
class NanoRecipe:
    """Where things are, how many documents of each source are taken, and the run itself."""

    train: TrainConfig
    sources: Mapping[str, int] = field(default_factory=dict)
    out: Path = base.WEIGHTS
    codecs: Path = Path(".cache/codecs")
    shards: Path = Path(".cache/shards/nano")
    runs: Path = Path("runs")
    seed: int = 27
    warm_start: bool = True
    begin: str | None = None  # an earlier run whose trained part this one begins with


def nano() -> NanoRecipe:
    """The shipped recipe: a frozen base with adapters, two to five million tokens on two CPU cores."""
    tasks = {
        # picture to words
        "name_picture": 0.14, "caption_picture": 0.14, "vqa": 0.08, "scene_caption": 0.03,
        "scene_count": 0.02, "scene_color": 0.02, "scene_where": 0.02, "scene_box": 0.01,
        # words to picture
        "draw": 0.14, "story": 0.07, "story_page": 0.03, "story_next": 0.02, "story_text": 0.01,
        # sound to words
        "name_sound": 0.03, "soundscape": 0.01, "name_instrument": 0.06, "name_word": 0.05, "transcribe": 0.04,
        # words to sound
        "speak": 0.05, "sound_for_text": 0.03, "sound_for_picture": 0.02, "picture_for_sound": 0.01,
        "text": 0.03,
    }  # fmt: skip
    data = DataConfig(
        tasks=tasks,
        drop_prompt=(
            "draw", "story_page", "speak", "sound_for_text", "sound_for_picture",
            "picture_for_sound",
        ),
        drop_rate=0.1, row=2048, rows=1, accumulate=1,
        media_weights={"text": 1.0, "control": 1.0, "image": 0.5, "audio": 0.5},
    )  # fmt: skip
    sources = {
        "easy_vqa": 3_500, "cifar10": 6_000, "emoji": 7_000, "openclipart": 4_500, "scenes": 4_000,
        "books": 3_000, "tiny_imagenet": 4_000, "stamps": 1_500, "grocery": 1_200, "nlvr": 500,
        "triples": 600, "instruments": 2_200, "spoken_words": 1_200, "spoken_digits": 800,
        "speech": 2_800, "environment": 800, "soundscapes": 500, "replay": 400,
        "texts": 1_500,
    }  # fmt: skip
    train = TrainConfig(
        "m27-nano", minutes=65, seed=27,
        lora=LoraConfig(rank=32, alpha=32), data=data,
        optim=OptimConfig(lr=5e-4, map_lr=6e-4, control_lr=6e-4, warmup=0.03, decay=0.3),
    )  # fmt: skip
    return NanoRecipe(train, sources)


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
    """All shards of the recipe's sources that have been built."""
    folders = [recipe.shards / n for n in recipe.sources if (recipe.shards / n).is_dir()]
    return Corpus(folders)


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


def settle(recipe: NanoRecipe, minutes: float = 6.0) -> NanoRecipe:
    """The run that follows: half of it plain text, at a low rate, from the end of the first.

    After the first run perplexity stood at 1.17 of the base's, a third of it lost to code rows that
    plain text had never told to keep away (docs/LOG.md).
    """
    first = recipe.train
    tasks = {**(first.data.tasks or {}), "text": 1.0}
    run = replace(
        first, name=f"{first.name}-settled", minutes=minutes,
        data=replace(first.data, tasks=tasks),
        optim=replace(
            first.optim, lr=2e-4, map_lr=2e-4, control_lr=2e-4, warmup=0.05, decay=0.6
        ),
    )  # fmt: skip
    return replace(recipe, train=run, begin=first.name)


def train(recipe: NanoRecipe, until: int | None = None) -> Result:
    """Train, or go on training, and write the shipped part if it came to its end."""
    config = recipe.train
    device, dtype = prepare_machine(config)
    corpus = open_corpus(recipe)
    config = fitting(config, corpus)
    gguf = base.open_gguf()
    decoder = base.text_decoder(gguf).to(device)
    rows = Rows(
        decoder.model.embed_tokens.weight, CONTROL_SLOTS, base.IMAGE_LEVELS, base.AUDIO_LEVELS,
        dtype, config.seed,
    )  # fmt: skip
    folder = recipe.runs / config.name
    if recipe.warm_start and recipe.begin is None and not checkpoint.steps(folder):
        warm(rows, corpus)
    trainer = Trainer(config, decoder, rows, corpus, folder)
    if recipe.begin is not None and trainer.step == 0:
        trainer.begin_from(recipe.runs / recipe.begin)
    result = trainer.run(until)
    if result.finished:
        write(recipe)
    return result


def write(recipe: NanoRecipe) -> None:
    """Write the newest snapshot as `trained.safetensors`. Raises ResumeError where there is none."""
    folder = recipe.runs / recipe.train.name
    found = checkpoint.latest(folder)
    if found is None:
        raise checkpoint.ResumeError(f"{folder}: no snapshot to write")
    gguf = base.open_gguf()
    processor = Processor.load(recipe.out)
    lora = found.state["config"]["lora"]  # of the run, which need not be today's recipe
    about = {key: found.state[key] for key in ("tokens", "seconds")} | {"steps": found.step}
    save_packed(
        recipe.out, config=base.nano_config(gguf, processor.vocabulary), trained=found.trained,
        alpha=lora["alpha"], rank=lora["rank"], image_levels=base.IMAGE_LEVELS,
        audio_levels=base.AUDIO_LEVELS, extra={"training": about},
    )  # fmt: skip
    print(f"wrote {recipe.out} from step {found.step}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit status comes back."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    stages = ("all", "base", "build", "train", "settle", "write")
    parser.add_argument("--stage", choices=stages, default="all")
    parser.add_argument("--minutes", type=float, help="length of the run, by the clock")
    parser.add_argument("--steps", type=int, help="length of the run in steps, instead")
    parser.add_argument("--name", help="of the run, below runs/")
    parser.add_argument("--out", type=Path, help="folder of the shipped model")
    parser.add_argument("--only", nargs="*", default=[], help="sources to build")
    parser.add_argument("--jobs", type=int, default=2, help="sources built at a time")
    parser.add_argument("--no-warm-start", action="store_true")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="of TrainConfig"
    )
    given = parser.parse_args(arguments)
    recipe = nano()
    try:
        settings = dict(part.partition("=")[::2] for part in given.set)
        run = change(recipe.train, settings)
        if given.name:
            run = replace(run, name=given.name)
        if given.steps is not None:
            run = replace(run, steps=given.steps, minutes=given.minutes)
        elif given.minutes is not None:
            run = replace(run, minutes=given.minutes)
        recipe = replace(
            recipe, train=run, out=given.out or recipe.out, warm_start=not given.no_warm_start
        )
        good = True
        if given.stage in ("all", "base"):
            prepare(recipe)
        if given.stage in ("all", "build"):
            good = build(recipe, given.only, given.jobs)
        if given.stage in ("all", "train"):
            good = train(recipe).finished and good
        if given.stage in ("all", "settle"):
            minutes = 6.0 if given.stage == "all" else given.minutes or 6.0
            good = train(settle(recipe, minutes)).finished and good
        if given.stage == "write":
            write(recipe)
    except (SettingError, FileNotFoundError, checkpoint.ResumeError, shards.ShardError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
