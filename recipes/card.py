"""The model card of a folder of weights, from machine-readable results alone.

    python -m recipes.card --gather out
    python -m recipes.card

`--gather` first copies what the reports left below `out` into the folder's `results`, from which the card is
written; so it can be written again, the same, from what is shipped. Sections whose results are optional are
left out by name (`--without ablations`), and the card then says that they were not measured.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m27.codec.media import write_atomic
from m27.eval.report import holds_for, origin
from m27.model.packed import read_json as header
from recipes import card_sections as sections
from recipes import card_text as say
from recipes.card_sections import CardError

NOT_MEASURED = "Not measured for this release.\n"


# name -> (where its recipe leaves it below --gather, the command that makes it)
RESULTS: dict[str, tuple[str, str]] = {
    "rows.jsonl": ("eval/rows.jsonl", "m27 eval nano"),
    "image-codec.json": ("image-codec.json", "python -m recipes.image_report"),
    "audio-codec.json": (
        "audio-codec.json", "python -m recipes.audio_report --out out/audio-codec.json"
    ),
    "image-ablation.json": ("image-ablation.json", "python -m recipes.image_ablation"),
    "audio-ablation.json": ("audio-ablation.json", "python -m recipes.audio_ablation"),
    "census.json": ("census.json", "python -m recipes.census"),
    "spent.jsonl": ("spent.jsonl", "python -m recipes.release"),
    "samples.json": ("samples/samples.json", "python -m recipes.samples"),
}  # fmt: skip
OPTIONAL = {
    "codecs": ("image-codec.json", "audio-codec.json"),
    "ablations": ("image-ablation.json", "audio-ablation.json"),
    "samples": ("samples.json",),
    "census": ("census.json",),
    "spent": ("spent.jsonl",),
}


@dataclass(frozen=True)
class CardRecipe:
    """The folder of the model, the parts of the card to leave out (of OPTIONAL), and its languages."""

    model: Path = Path("weights/m27-nano")
    without: tuple[str, ...] = ()
    languages: tuple[str, ...] = ("en",)
    other_weights: bool = False  # whether rows that were measured on other weights are taken

    @property
    def results(self) -> Path:
        """Where the results lie that the card is written from."""
        return self.model / "results"


def gather(recipe: CardRecipe, out: Path) -> list[Path]:
    """Copy results below `out` into the model's folder; what is not there stays as it was. The copies."""
    recipe.results.mkdir(parents=True, exist_ok=True)
    copied = []
    for name, (where, _) in RESULTS.items():
        if (out / where).is_file():
            partial = recipe.results / f".{name}.partial"
            shutil.copyfile(out / where, partial)
            copied.append(partial.replace(recipe.results / name))
    return copied


def load(recipe: CardRecipe, name: str) -> Any:
    """A result by file name: a JSON value, or a list of them for `.jsonl`. Raises CardError."""
    path = recipe.results / name
    left_out = {file for part in recipe.without for file in OPTIONAL[part]}
    if name in left_out:
        return None
    if not path.is_file():
        raise CardError(f"{path}: missing; it is made by `{RESULTS[name][1]}`, then --gather out")
    return sections.read_json(path)


def card(recipe: CardRecipe) -> str:
    """The whole card of the folder. Raises CardError for a result that is missing or cannot be read."""
    rows = load(recipe, "rows.jsonl")
    if not rows:
        raise CardError(f"{recipe.results / 'rows.jsonl'}: no row")
    check_weights(recipe, rows)
    about = header(recipe.model / "m27.json")
    vocabulary = about["vocabulary"]
    said = [line for row in rows if (line := say.sentence(row))]
    limits = "".join(f"- {line}\n" for line in said) + say.ALWAYS
    codecs = part(load(recipe, "image-codec.json"), sections.image_codec)
    codecs += "\n" + part(load(recipe, "audio-codec.json"), sections.audio_codec)
    ablations = "".join(
        f"{title}:\n\n{part(made, sections.ablation)}\n"
        for title, name in (("Pictures", "image-ablation.json"), ("Sounds", "audio-ablation.json"))
        if (made := load(recipe, name)) is not None
    )
    introduction = say.INTRODUCTION.format(
        image_codes=vocabulary["image_size"], audio_codes=vocabulary["audio_size"],
        verdict=say.verdict(rows),
    )  # fmt: skip
    chapters = (
        ("## Intended use", say.INTENDED),
        ("## Limits", limits + sections.bars(rows)),
        ("## Results", f"{say.READING}\n{sections.evaluation(rows)}"),
        ("### Codecs, on held-out media", codecs),
        ("### What the teachers do for the codes", ablations or NOT_MEASURED),
        ("## Samples", part(load(recipe, "samples.json"), sections.shown_samples)),
        (
            "## Training data",
            f"{part(load(recipe, 'census.json'), sections.mixture)}\n{say.HOLDOUT}",
        ),
        ("## Training", sections.training(recipe.model)),
        ("## What was spent", part(load(recipe, "spent.jsonl"), sections.spending)),
        ("## Use", f"{say.USE}\n{sections.files(recipe.model)}"),
    )
    body = "\n".join(f"{title}\n\n{text.strip()}\n" for title, text in chapters)
    name = recipe.model.resolve().name
    return f"{say.head(name, rows, recipe.languages)}\n# {name}\n\n{introduction}\n{body}"


def check_weights(recipe: CardRecipe, rows: Sequence[sections.Record]) -> None:
    """Raise CardError where a row is not about what the folder holds: figures of other weights say nothing.

    A row that no decoder of a codec has a part in may be of a folder with others of these.
    """
    held = origin(recipe.model, 0)
    for row in rows:
        if not recipe.other_weights and not holds_for(row, held):
            raise CardError(
                f"{recipe.results / 'rows.jsonl'}: {row['task']} was measured on weights {row['weights']}, "
                f"the folder holds {held.weights}; `m27 eval nano` again, or --other-weights"
            )


def part(made: Any, section: Callable[[Any], str]) -> str:
    """A section of a result, or the words for one that was left out. Raises CardError for an unlike shape."""
    if made is None:
        return NOT_MEASURED
    try:
        return section(made)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        name = section.__name__.replace("_", " ")
        raise CardError(f"the result of the {name} is not as expected: {error!r}") from None


def write(recipe: CardRecipe) -> Path:
    """Write the card into the folder; its path. Raises CardError."""
    path = recipe.model / "README.md"
    write_atomic(path, card(recipe).encode())
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit status comes back: 2 with one line where a result is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    defaults = CardRecipe()
    parser.add_argument("--model", type=Path, default=defaults.model)
    parser.add_argument("--gather", type=Path, help="folder of fresh results, copied first")
    parser.add_argument("--without", action="append", default=[], choices=sorted(OPTIONAL))
    parser.add_argument("--language", action="append", default=[], help="codes for the head")
    parser.add_argument(
        "--other-weights", action="store_true", help="take rows measured on other weights"
    )
    given = parser.parse_args(arguments)
    languages = tuple(given.language) or defaults.languages
    recipe = CardRecipe(given.model, tuple(given.without), languages, given.other_weights)
    try:
        if given.gather is not None:
            for path in gather(recipe, given.gather):
                print(f"took {path.name}", file=sys.stderr)
        print(f"wrote {write(recipe)}", file=sys.stderr)
    except (CardError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
