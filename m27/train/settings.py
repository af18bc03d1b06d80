"""The typed settings of a run, and changes to them by dotted name, where an unknown name is an error.

A recipe is a function that returns a `TrainConfig`; nothing here is read from anywhere else.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from m27.train.lora import LoraConfig
from m27.train.optim import OptimConfig
from m27.train.pairs import PreferenceConfig
from m27.train.routing import RouterConfig

_C = TypeVar("_C")
_UNIONS = (typing.Union, types.UnionType)


class SettingError(ValueError):
    """An unknown setting, or a value of the wrong type; the message names the nearest known setting."""


@dataclass(frozen=True)
class DataConfig:
    """What is trained on. `tasks` None takes every task at its size; see Mixture, Packer and Loader.

    A step trains on `step_rows` rows, all ranks together, or on `rows` times `accumulate` where that is 0; a
    rank goes through its share `rows` at a time. `full_share`, `full_tasks` and `kl_tasks` say what a target
    is scored against; see Scoring.
    """

    tasks: Mapping[str, float] | None = None
    drop_prompt: Sequence[str] = ()
    drop_rate: float = 0.1
    row: int = 2048
    rows: int = 1
    accumulate: int = 4
    step_rows: int = 0
    pool: int = 256
    media_weights: Mapping[str, float] = field(default_factory=dict)
    task_weights: Mapping[str, float] = field(default_factory=dict)
    full_share: float = 1.0
    full_tasks: Sequence[str] = ()
    kl_tasks: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ParallelConfig:
    """How a run lies over its ranks (`torchrun` says how many there are).

    `shard` is over how many ranks each weight is cut (0: where every weight is trained as many as
    `replicate` leaves, else 1), `replicate` how many such groups there are, `expert` over how many
    consecutive ranks the experts of a layer are dealt out. shard * replicate is the number of ranks;
    `expert` divides `shard` or is a multiple of it. A rank that is silent for `timeout` minutes ends the run.
    """

    shard: int = 0
    replicate: int = 1
    expert: int = 1
    timeout: float = 30.0


@dataclass(frozen=True)
class TrainConfig:
    """One run: `steps` or `minutes` (whichever is given; the first reached ends it), data and optimiser.

    `path` "fused" is the hand-written pass for a Llama decoder, "merged" the one for adapters on a GPU,
    "plain" autograd through the decoder, "whole" the same with the vocabulary's rows as ordinary weights;
    "auto" is fused on the CPU and merged on a GPU where it can be. `threads` 0 is one a core. `compile` also
    lets products go through C++ where those are faster (`m27.train.products`). Of the decoder's body, `body`
    trains the "adapters", nothing ("frozen": the rows alone learn), or every weight ("full"; fused, plain or
    whole). Of the vocabulary, `rows` trains code maps and control rows ("maps"), every row as in any
    language model ("free"; with body "full"), or none ("frozen"). `recompute` runs blocks again in the
    backward pass, for the memory. `objective` "preference" learns which of two answers is the better one,
    by `preference`, from documents that are pairs. With `base_bits` the frozen body is held in blocks of 8
    or 4 bits (QLoRA; plain only). `z_loss` weighs log(z)² in the loss (see `cross_entropy`). Samples are
    drawn every `sample_minutes` by whoever starts the run (0: never). `log` names what takes the figures
    beside log.jsonl: tensorboard, csv, wandb, none. `router` is how the router of a mixture of experts is
    trained (path "whole").
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
    z_loss: float = 0.0
    sample_minutes: float = 10.0
    save_minutes: float = 5.0
    keep: int = 2
    log: Sequence[str] = ("tensorboard",)
    lora: LoraConfig = field(default_factory=LoraConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    data: DataConfig = field(default_factory=DataConfig)
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    router: RouterConfig = field(default_factory=RouterConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)


def change(config: _C, changes: Mapping[str, Any]) -> _C:
    """A copy of the dataclass `config` with settings by dotted name replaced: {"optim.lr": "3e-4"}.

    Values may be strings, as from a command line; they are read by the setting's type. An entry of a
    mapping is named as one more part ("data.tasks.draw"). What belongs to one part of the settings is
    replaced at once, so that it need fit together only in the end. Raises SettingError.
    """
    items = [(name.split("."), value, name) for name, value in changes.items()]
    out: _C = _changed(config, items, config)
    return out


def named(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every setting below `config`, in their order; mappings are one setting."""
    for field_ in dataclasses.fields(config):
        value = getattr(config, field_.name)
        if dataclasses.is_dataclass(value):
            yield from named(value, f"{prefix}{field_.name}.")
        else:
            yield f"{prefix}{field_.name}", value


def spelled(value: Any) -> str:
    """A setting's value as it is typed on a command line."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return ",".join(f"{key}={entry:.12g}" for key, entry in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ",".join(map(str, value))
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _changed(config: Any, items: Sequence[tuple[list[str], Any, str]], root: Any) -> Any:
    """`config`, a part of `root`, with the (parts of the name, value, full name) of `items` replaced."""
    kinds = typing.get_type_hints(type(config))
    known = {f.name for f in dataclasses.fields(config)}
    new: dict[str, Any] = {}
    deeper: dict[str, list[tuple[list[str], Any, str]]] = {}
    for (head, *rest), value, full in items:
        if head not in known:
            raise SettingError(_unknown(full, head, config, root))
        if rest:
            deeper.setdefault(head, []).append((rest, value, full))
        else:
            new[head] = read(value, kinds[head], full)
    for head, members in deeper.items():
        old = new.get(head, getattr(config, head))
        if dataclasses.is_dataclass(old):
            new[head] = _changed(old, members, root)
            continue
        for rest, value, full in members:
            if not _is_mapping(kinds[head]):
                raise SettingError(f"{full}: nothing can be set below {type(old).__name__}")
            if len(rest) > 1:
                raise SettingError(f"{full}: {rest[0]!r} has no settings of its own")
            old = {**(old or {}), rest[0]: read(value, float, full)}
        new[head] = old
    try:
        return dataclasses.replace(config, **new)
    except ValueError as error:  # what the part itself will not have
        raise error if type(error).__module__.startswith("m27.") else SettingError(str(error)) from None


def _unknown(full: str, head: str, config: Any, root: Any) -> str:
    everything = [name for name, _ in named(root)]
    own = [f.name for f in dataclasses.fields(config)]
    last = full.rsplit(".", 1)[-1]
    near = [name for name in everything if name.rsplit(".", 1)[-1] == last and name != full]
    near = near or difflib.get_close_matches(full, everything, 1)
    near = near or difflib.get_close_matches(head, own, 1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(own)}"
    return f"{full}: no setting {head!r} in {type(config).__name__}; {hint}"


def _is_mapping(kind: Any) -> bool:
    options = typing.get_args(kind) if typing.get_origin(kind) in _UNIONS else (kind,)
    return any(typing.get_origin(option) is Mapping for option in options)


def read(value: Any, kind: Any, full: str) -> Any:
    """`value` of the setting `full` as the type `kind`; strings are parsed. Raises SettingError."""
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin in _UNIONS:
        if value is None or (isinstance(value, str) and value.lower() == "none"):
            return None
        return read(value, next(o for o in options if o is not type(None)), full)
    if origin is Literal:
        value = next((option for option in options if str(option) == str(value)), value)
        if value not in options:
            near = difflib.get_close_matches(str(value), map(str, options), 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise SettingError(f"{full}: {value!r} is none of {', '.join(map(str, options))}{hint}")
        return value
    if dataclasses.is_dataclass(kind) and not isinstance(value, kind):  # type: ignore[arg-type]
        raise SettingError(f"{full}: has settings of its own, such as {full}.{_first(kind)}")
    if origin is not None and isinstance(value, str):
        parts = [part for part in value.split(",") if part]
        if origin is not Mapping:
            return tuple(parts)
        pairs = (part.partition("=") for part in parts)
        return {key: read(entry, float, f"{full}.{key}") for key, _, entry in pairs}
    if origin is not None:
        return value
    try:
        if kind is bool and isinstance(value, str):
            return {"true": True, "1": True, "false": False, "0": False}[value.lower()]
        return kind(value) if isinstance(value, str) or kind is float else value
    except (KeyError, ValueError):
        raise SettingError(f"{full}: {value!r} is not a {kind.__name__}") from None


def _first(kind: Any) -> str:
    return dataclasses.fields(kind)[0].name
