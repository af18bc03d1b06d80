"""What `m27 train` knows: every recipe by name, with how to run it.

A recipe is a function that returns one typed configuration, a `TrainConfig` or more. `general` ones train any model;
`nano-…` are the stages that m27-nano was made by. An entry makes the configuration, changes it by dotted name,
and runs it.
"""

from __future__ import annotations

import difflib
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m27.train.loop import Result
from m27.train.settings import SettingError, TrainConfig, change, named, read
from recipes import general, staged, stages

Go = Callable[[Any, Path, Path | None, int | None, float | None], Result]


@dataclass(frozen=True)
class Recipe:
    """A recipe's name, the function that returns its configuration, what trains it, and what it takes."""

    name: str
    make: Callable[..., TrainConfig]
    go: Go
    expected: Callable[[Any], list[str]]  # memory and time of a run, as lines

    @property
    def line(self) -> str:
        """The first line of its docstring."""
        return (inspect.getdoc(self.make) or "").partition("\n")[0]

    @property
    def parameters(self) -> dict[str, Any]:
        """Its own parameters and their defaults."""
        return {n: p.default for n, p in inspect.signature(self.make).parameters.items()}

    def configured(self, given: Mapping[str, Any]) -> TrainConfig:
        """Its configuration, with parameters and settings as `given` by name. Raises SettingError."""
        kinds, own = typing.get_type_hints(self.make), self.parameters
        arguments = {name: read(value, kinds[name], name) for name, value in given.items() if name in own}
        return change(self.make(**arguments), {k: v for k, v in given.items() if k not in own})

    def switches(self) -> list[str]:
        """Names of the settings that are yes or no, and so need no value."""
        return [name for name, value in named(self.make()) if isinstance(value, bool)]


def _stage(name: str, make: Callable[[], stages.NanoRecipe]) -> Recipe:
    def configuration() -> staged.StageConfig:
        return staged.StageConfig.of(make())

    configuration.__doc__ = make.__doc__
    return Recipe(f"nano-{name}", configuration, staged.go, staged.expected)


RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("pretrain", general.pretrain, general.go, general.expected),
        Recipe("sft", general.sft, general.go, general.expected),
        Recipe("lora", general.lora, general.go, general.expected),
        Recipe("qlora", general.qlora, general.go, general.expected),
        Recipe("dpo", general.dpo, general.go, general.expected),
        *(_stage(name, make) for name, make in stages.STAGES.items()),
    )
}


def recipe(name: str) -> Recipe:
    """The recipe of that name. Raises SettingError that names the nearest."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(RECIPES)}"
        raise SettingError(f"no recipe {name!r}; {hint}")
    return RECIPES[name]
