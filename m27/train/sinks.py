"""Where a run's figures go beside its own log: TensorBoard, a table, Weights & Biases.

Each takes a step's record as flat names and numbers. What lies behind the step that a run resumes from is
void, and is taken back where that can be done. They know no model.
"""

from __future__ import annotations

import csv
import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from m27.train.events import EventWriter
from m27.train.settings import SettingError

NAMES = ("tensorboard", "csv", "wandb", "none")


class Sink(Protocol):
    """What takes the figures of each step."""

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """The values of a step, by name."""

    def close(self) -> None:
        """No more will come."""


class Table:
    """`log.csv`: a line a step and name, with the value."""

    def __init__(self, folder: Path, resumed_step: int) -> None:
        self.path = folder / "log.csv"
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        kept = [line for line in lines[1:] if line.count(",") == 2 and int(line.split(",")[0]) <= resumed_step]
        self.path.write_text("\n".join(["step,name,value", *kept]) + "\n", encoding="utf-8")

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Append the values of a step."""
        with open(self.path, "a", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([step, name, value] for name, value in values.items())

    def close(self) -> None:
        """Nothing is held open."""


class Wandb:
    """A run of Weights & Biases in the project "m27", gone on with by the name of its folder."""

    def __init__(self, folder: Path, name: str) -> None:
        try:
            package: Any = importlib.import_module("wandb")
        except ModuleNotFoundError:
            raise SettingError("log: wandb needs the package wandb: pip install wandb") from None
        where = folder.resolve()
        run_id = f"{where.parent.name}-{where.name}"
        self._run = package.init(project="m27", name=name, id=run_id, resume="allow", dir=str(folder))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Send the values of a step."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Tell that the run has ended."""
        self._run.finish()


def open_sinks(names: Sequence[str], folder: Path, run: str, resumed_step: int) -> list[Sink]:
    """The sinks called `names` for the run in `folder`. Raises SettingError for one that is not known or there."""
    out: list[Sink] = []
    for name in names:
        if name == "tensorboard":
            out.append(EventWriter(folder / "tensorboard", resumed_step + 1))
        elif name == "csv":
            out.append(Table(folder, resumed_step))
        elif name == "wandb":
            out.append(Wandb(folder, run))
        elif name != "none":
            raise SettingError(f"log: {name!r} is none of {', '.join(NAMES)}")
    return out


def flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """(name, number) of all in a record but its step; what is nested is named "media/text"."""
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name != "step":
            yield f"{prefix}{name}", float(value)
