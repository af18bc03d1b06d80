"""The typed settings of a run, and changes to them by dotted name, where an unknown name is an error.

A recipe is a function that returns a `TrainConfig`; nothing here is read from anywhere else.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from m27.train.lora import LoraConfig
from m27.train.optim import OptimConfig
from m27.train.pairs import PreferenceConfig

_C = TypeVar("_C")


class SettingError(ValueError):
    """An unknown setting, or a value of the wrong type; the message names the nearest known setting."""


@dataclass(frozen=True)
class DataConfig:
    """What is trained on. `tasks` None takes every task at its size; see Mixture, Packer and Loader.

    `full_share`, `full_tasks` and `kl_tasks` say what a target is scored against; see Scoring.
    """

    tasks: Mapping[str, float] | None = None
    drop_prompt: Sequence[str] = ()
    drop_rate: float = 0.1
    row: int = 2048
    rows: int = 1
    accumulate: int = 4
    pool: int = 256
    media_weights: Mapping[str, float] = field(default_factory=dict)
    task_weights: Mapping[str, float] = field(default_factory=dict)
    full_share: float = 1.0
    full_tasks: Sequence[str] = ()
    kl_tasks: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainConfig:
    """One run: `steps` or `minutes` (whichever is given; the first reached ends it), data and optimiser.

    `path` "fused" is the hand-written pass for a frozen Llama decoder, "merged" the one for a GPU, "plain"
    autograd through the decoder, "whole" the same with the vocabulary's rows as ordinary weights; "auto" is
    fused on the CPU and merged on a GPU where it can be. `threads` 0 is one a core. Of the decoder's body,
    `body` trains the "adapters", nothing ("frozen": the rows alone learn), or every weight ("full"; plain
    or whole). Of the vocabulary, `rows` trains code maps and control rows ("maps"), every row as in any
    language model ("free"; with body "full"), or none ("frozen"). `recompute` runs blocks again in the
    backward pass, for the memory. `objective` "preference" learns which of two answers is the better one,
    by `preference`, from documents that are pairs. With `base_bits` the frozen body is held in blocks of 8
    or 4 bits (QLoRA; plain only). Samples are drawn every `sample_minutes` by whoever starts the run (0:
    never).
    """

    name: str
    steps: int | None = None
    minutes: float | None = None
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    threads: int = 0
    compile: bool = True
    path: Literal["auto", "fused", "merged", "plain", "whole"] = "auto"
    body: Literal["adapters", "frozen", "full"] = "adapters"
    rows: Literal["maps", "free", "frozen"] = "maps"
    objective: Literal["likelihood", "preference"] = "likelihood"
    base_bits: Literal[8, 4] | None = None
    recompute: bool = False
    sample_minutes: float = 10.0
    save_minutes: float = 5.0
    keep: int = 2
    lora: LoraConfig = field(default_factory=LoraConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    data: DataConfig = field(default_factory=DataConfig)
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)


def change(config: _C, changes: Mapping[str, Any]) -> _C:
    """A copy of the dataclass `config` with settings by dotted name replaced: {"optim.lr": "3e-4"}.

    Values may be strings, as from a command line; they are read by the setting's type. An entry of a
    mapping is named as one more part ("data.tasks.draw"). Raises SettingError.
    """
    for name, value in changes.items():
        config = _changed(config, name.split("."), value, name)
    return config


def _changed(config: Any, parts: list[str], value: Any, full: str) -> Any:
    head, rest = parts[0], parts[1:]
    if isinstance(config, Mapping) or config is None:
        if rest:
            raise SettingError(f"{full}: {head!r} has no settings of its own")
        return {**(config or {}), head: float(value)}
    if not dataclasses.is_dataclass(config):
        raise SettingError(f"{full}: nothing can be set below {type(config).__name__}")
    known = {f.name: f for f in dataclasses.fields(config)}
    if head not in known:
        near = difflib.get_close_matches(head, known, 1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        raise SettingError(f"{full}: no setting {head!r} in {type(config).__name__}; {hint}")
    old = getattr(config, head)
    if rest:
        new = _changed(old, rest, value, full)
    else:
        new = _read(value, typing.get_type_hints(type(config))[head], full)
    return dataclasses.replace(config, **{head: new})  # type: ignore[type-var]


def _read(value: Any, kind: Any, full: str) -> Any:
    """`value` as the type `kind`; strings are parsed."""
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None or (isinstance(value, str) and value.lower() == "none"):
            return None
        return _read(value, next(o for o in options if o is not type(None)), full)
    if origin is Literal:
        value = next((option for option in options if str(option) == str(value)), value)
        if value not in options:
            near = difflib.get_close_matches(str(value), map(str, options), 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise SettingError(f"{full}: {value!r} is none of {', '.join(map(str, options))}{hint}")
        return value
    if origin is not None:
        return tuple(value.split(",")) if isinstance(value, str) else value
    try:
        if kind is bool and isinstance(value, str):
            return {"true": True, "1": True, "false": False, "0": False}[value.lower()]
        return kind(value) if isinstance(value, str) or kind is float else value
    except (KeyError, ValueError):
        raise SettingError(f"{full}: {value!r} is not a {kind.__name__}") from None
