"""`m27 calibrate`: what each input of a model's matrices counts, for rounding it to 4 bits."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m27.cli.console import InputError, ModelOption, busy, check_model

if TYPE_CHECKING:
    from m27.data.sources.base import Document
    from m27.language.processor import Processor

LONGEST = 1024  # tokens of a document; the rest of it is left out
FEW = 2048  # tokens


def calibrate(
    model: ModelOption,
    names: Annotated[list[str], typer.Argument(help="Names of the catalogue, or files and folders of your own.")],
    tokens: Annotated[int, typer.Option(min=1, help="To read, the same share of each.")] = 16384,
    seed: Annotated[int, typer.Option(help="Seed of phrasings and made scenes.")] = 0,
) -> None:
    """Measure which inputs count, and keep it beside the weights: `--precision int4` then loses a third of what it
    does without. Read what the model will be used for, or what it was trained on; a minute on two cores."""
    from m27.cli.data import documents
    from m27.model.files import CheckpointError
    from m27.model.quantized import held_precision

    check_model(model)
    sources = [documents(name, "train", seed) for name in names]  # first: a wrong name is told at once
    held = held_precision(model)
    if held:
        raise CheckpointError(f"{model}: holds weights in {held} already; calibrate the whole ones")
    with busy("calibrating"):
        from m27.language.processor import Processor
        from m27.model import checkpoint, importance

        decoder, processor = checkpoint.load(model), Processor.load(model)
        try:
            squares, count = importance.measure(decoder, _rows(sources, processor, tokens))
        except ValueError as error:
            raise InputError(f"{', '.join(names)}: {error}") from None
        path = importance.write(model, squares, f"{count} tokens of {', '.join(Path(name).name for name in names)}")
    if count < FEW:
        print(f"m27: {count:,} tokens tell little; {FEW:,} or more are better", file=sys.stderr)
    print(f"{path}: {count:,} tokens")


def _rows(
    sources: "list[Iterator[Document]]", processor: "Processor", tokens: int
) -> Iterator[list[int]]:
    """Ids of documents, each source's until its share of `tokens` is reached."""
    for source in sources:
        left = max(1, tokens // len(sources))
        for document in source:
            ids = list(processor.encode(document["messages"]).ids)[: min(left, LONGEST)]
            yield ids
            left -= len(ids)
            if left <= 0:
                break
