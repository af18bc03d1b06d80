"""`m27 train RECIPE`: every way of training, from a typed configuration whose settings are changed by name."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m27.cli.console import InputError

if TYPE_CHECKING:
    from m27.train.settings import TrainConfig
    from recipes.registry import Recipe

# Settings follow as --NAME VALUE; which there are hangs on the recipe, so the command takes them as they come.
CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True}


def train(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="Its name; `m27 train --list` tells them.")] = "",
    list_only: Annotated[bool, typer.Option("--list", help="Say what recipes there are.")] = False,
    show: Annotated[bool, typer.Option(help="Print every setting, and train nothing.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print memory and time expected, and train nothing.")
    ] = False,
    run: Annotated[
        Path | None, typer.Option(help="Folder of the run: runs/NAME where none is given.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for what is trained: RUN/model where none is given.")
    ] = None,
    until: Annotated[int | None, typer.Option(min=1, help="Stop and save after this step.")] = None,
    max_minutes_this_call: Annotated[
        float | None, typer.Option(min=0, help="Stop and save then; the same command goes on.")
    ] = None,
) -> None:
    """Train by a recipe: m27 train RECIPE [--SETTING VALUE …], such as --optim.lr 3e-4 or --steps=100.

    A run that was stopped, by whatever, goes on with the same command.
    """
    from recipes import registry

    if list_only:
        width = max(map(len, registry.RECIPES))
        for each in registry.RECIPES.values():
            print(f"{each.name:{width}}  {each.line}")
        return
    if not recipe:
        raise InputError("which recipe? `m27 train --list` tells them")
    if recipe.startswith("-"):
        raise InputError(f"{recipe}: the recipe comes first, then its settings")
    chosen = registry.recipe(recipe)
    config = configured(chosen, context.args)
    if show:
        print("\n".join(shown(chosen, config)))
        return
    folder = run or Path("runs") / config.name
    if dry_run:
        print("\n".join(chosen.expected(config)))
        return
    chosen.go(config, folder, out, until, max_minutes_this_call)


def configured(recipe: "Recipe", arguments: Sequence[str]) -> "TrainConfig":
    """The recipe's configuration with what the command line says. Raises SettingError and InputError."""
    return recipe.configured(settings(arguments, recipe.switches()))


def settings(arguments: Sequence[str], switches: Sequence[str] = ()) -> Mapping[str, str]:
    """--NAME VALUE, --NAME=VALUE, and for the names of `switches` --NAME alone, as names and values."""
    given: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or word == "--":
            raise InputError(f"{word!r}: a setting is given as --NAME VALUE")
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        if not equals:
            if rest and not rest[0].startswith("--"):
                value = rest.pop(0)
            elif name in switches:
                value = "true"
            else:
                raise InputError(f"--{name}: a value is missing")
        if name in given:
            raise InputError(f"--{name}: given twice")
        given[name] = value
    return given


def shown(recipe: "Recipe", config: "TrainConfig") -> list[str]:
    """Every setting with its value, a line each, as it can be typed; the recipe's own parameters first."""
    from m27.train.settings import named, spelled

    lines = [f"# {recipe.name}: {recipe.line}"]
    if recipe.parameters:
        own = ", ".join(f"--{n} {spelled(v) or repr(v)}" for n, v in recipe.parameters.items())
        lines.append(f"# what its settings follow from: {own}")
    return lines + [f"--{name} {spelled(value) or repr('')}" for name, value in named(config)]
