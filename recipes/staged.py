"""The stages of m27-nano for `m27 train`: a stage's recipe as one flat configuration, and back.

The settings of the run stand at the top, as in every recipe; beside them, where things are. `recipes.nano` has
a command line of its own, which also builds the shards and ships the weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from m27.language.vocabulary import CONTROL_SLOTS
from m27.train import plan_run
from m27.train.job import shape_of
from m27.train.loop import Result
from m27.train.plan_shape import Vocabulary
from m27.train.settings import TrainConfig
from recipes import base
from recipes.stages import NanoRecipe

_PLACES = ("sources", "out", "codecs", "shards", "runs", "warm_start", "begin", "shipped")


@dataclass(frozen=True)
class StageConfig(TrainConfig):
    """A `NanoRecipe` whose run's settings are its own; the others as there."""

    sources: Mapping[str, float] = field(default_factory=dict)
    out: Path = Path()
    codecs: Path = Path()
    shards: Path = Path()
    runs: Path = Path()
    warm_start: bool = True
    begin: Sequence[str] = ()
    shipped: bool = True

    @classmethod
    def of(cls, recipe: NanoRecipe) -> StageConfig:
        """The flat form of a stage."""
        run = {f.name: getattr(recipe.train, f.name) for f in dataclasses.fields(TrainConfig)}
        return cls(**run, **{name: getattr(recipe, name) for name in _PLACES})

    def recipe(self) -> NanoRecipe:
        """The stage again."""
        run = TrainConfig(**{f.name: getattr(self, f.name) for f in dataclasses.fields(TrainConfig)})
        places = {name: getattr(self, name) for name in _PLACES}
        places["sources"] = {name: int(count) for name, count in self.sources.items()}
        return NanoRecipe(run, **places)


def go(
    config: StageConfig, run: Path, out: Path | None = None, until: int | None = None,
    minutes: float | None = None,
) -> Result:  # fmt: skip
    """Train a stage in the folder `run`, or go on with it, as `recipes.nano` does."""
    from recipes import nano

    recipe = config.recipe()
    recipe = replace(recipe, out=out or recipe.out, runs=run.parent)
    return nano.train(replace(recipe, train=replace(recipe.train, name=run.name)), until, minutes)


def expected(config: StageConfig) -> list[str]:
    """Memory and time that a stage is expected to take here, as lines; it asks for the base in its folder."""
    rows = Vocabulary(CONTROL_SLOTS, (base.IMAGE_LEVELS, base.AUDIO_LEVELS))
    return plan_run.expected(config.recipe().train, shape_of(config.out), vocabulary=rows).lines()
