"""`m27 plan SIZE`: what fits on which GPUs, how long it takes, and what to type. Computed, not tried."""

import difflib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from m27.cli.console import InputError

if TYPE_CHECKING:
    from m27.model.config import Config
    from m27.train.plan import Ask, Kind, Row


def plan(
    size: Annotated[str, typer.Argument(help="A size of `m27 sizes`, or the folder of a checkpoint.")],
    gpus: Annotated[int, typer.Option(help="How many GPUs in all.")] = 1,
    memory: Annotated[float, typer.Option(help="GB of each.")] = 80.0,
    nodes: Annotated[int, typer.Option(help="Machines; 0: eight GPUs on each.")] = 0,
    kind: Annotated[str, typer.Option(help="full, lora or qlora.")] = "full",
    optimiser: Annotated[str, typer.Option("--optim", help="adamw or muon.")] = "adamw",
    rank: Annotated[int, typer.Option(help="Of adapters.")] = 16,
    preference: Annotated[bool, typer.Option(help="Pairs of answers (DPO), two rows a pair.")] = False,
    length: Annotated[int, typer.Option(help="Tokens of a row.")] = 4096,
    document: Annotated[int, typer.Option(help="Tokens of a document; 0: a row is one.")] = 0,
    step_tokens: Annotated[
        int, typer.Option(help="Tokens of a step, all GPUs together; 0: one micro-batch each.")
    ] = 524_288,
    rows: Annotated[int, typer.Option(help="Rows of a micro-batch; 0: as many as fit.")] = 0,
    peak: Annotated[float, typer.Option(help="TFLOP/s of a GPU, dense bfloat16.")] = 989.0,
    efficiency: Annotated[float, typer.Option(help="Share of the peak reached while computing.")] = 0.5,
    link: Annotated[float, typer.Option(help="GB/s a GPU within a node, each way.")] = 450.0,
    network: Annotated[
        str, typer.Option(help="GB/s a GPU between nodes, or infiniband (50) or ethernet (1.56).")
    ] = "infiniband",
    bandwidth: Annotated[float, typer.Option(help="TB/s of a GPU's memory.")] = 3.35,
    reserve: Annotated[float, typer.Option(help="Share of the memory left alone.")] = 0.1,
    as_json: Annotated[bool, typer.Option("--json", help="Every number, as one JSON object.")] = False,
) -> None:
    """What fits: every way to lay training out over GPUs, with memory, time and traffic, and the command to type."""
    from m27.train.plan import Ask, PlanError, command, recommended
    from m27.train.plan import plan as ways
    from m27.train.plan_cost import NETWORKS, Machine

    for name, value, known in (("--kind", kind, ("full", "lora", "qlora")), ("--optim", optimiser, ("adamw", "muon"))):
        if value not in known:
            raise InputError(f"{name} {value}: must be one of {', '.join(known)}")
    try:
        pace = NETWORKS.get(network) or float(network)
    except ValueError:
        raise InputError(f"--network {network}: a number of GB/s, {' or '.join(NETWORKS)}") from None
    model = shape(size)
    machine = Machine(
        gpus, nodes or max(-(-gpus // 8), 1), memory * 1e9, reserve, peak * 1e12, link * 1e9, pace * 1e9,
        bandwidth * 1e12, efficiency,
    )  # fmt: skip
    ask = Ask(
        model, machine, cast("Kind", kind), optimiser == "muon", rank, preference, length, document,
        step_tokens, rows,
    )  # fmt: skip
    found = ways(ask)
    best = recommended(found)
    typed = command(ask, best, size) if best else None
    if as_json:
        print(json.dumps({
            "model": size, "machine": asdict(machine), "ways": [as_dict(row) for row in found],
            "recommended": found.index(best) if best else None, "command": typed,
        }))  # fmt: skip
        return
    show(ask, found, best, size)
    if best is None:
        least = min(found, key=lambda row: row.memory.total)
        raise PlanError(
            f"nothing fits: the least is {least.memory.total / 1e9:.1f} GB a GPU ({least.name}, recompute), "
            f"of {machine.usable / 1e9:.1f} usable"
        )
    print(f"recommended: {described(best)}\n{typed}")


def shape(size: str) -> "Config":
    """The shape of a size by name or of a checkpoint's folder. Raises InputError with the nearest name."""
    from m27.model.config import SIZES, Config
    from m27.model.files import read_json

    if size in SIZES:
        return SIZES[size]
    if (Path(size) / "config.json").is_file():
        return Config.from_hf(read_json(Path(size) / "config.json"))
    near = difflib.get_close_matches(size, SIZES, 1)
    hint = f"did you mean {near[0]}?" if near else f"sizes are {', '.join(SIZES)}"
    raise InputError(f"{size}: no size, and no folder with a config.json; {hint}")


def as_dict(row: "Row") -> dict[str, Any]:
    """A way as JSON values: bytes and seconds."""
    held = asdict(row)
    held["memory"]["total"] = row.memory.total
    held["traffic"]["bytes"] = row.traffic.bytes(row.accumulate)
    return held


def described(row: "Row") -> str:
    """A way in a line."""
    again = "blocks recomputed" if row.recompute else "nothing recomputed"
    return (
        f"{row.name}, {again}, micro-batches of {row.rows}, {row.accumulate} a step: "
        f"{row.memory.total / 1e9:.1f} GB a GPU, {row.time.tokens_per_second:,.0f} tokens/s"
    )


COLUMNS: tuple[tuple[str, Literal["left", "right"]], ...] = (
    ("way", "left"), ("again", "left"), ("rows", "right"), ("x", "right"), ("weights", "right"),
    ("grads", "right"), ("optim", "right"), ("kept", "right"), ("head", "right"), ("work", "right"),
    ("comm", "right"), ("total", "right"), ("fits", "left"), ("tokens/s", "right"), ("MFU", "right"),
    ("sent", "right"), ("in", "right"),
)  # fmt: skip


def show(ask: "Ask", found: "list[Row]", best: "Row | None", size: str) -> None:
    """Print the table and what its columns are."""
    from rich.console import Console
    from rich.table import Table

    m, width = ask.machine, 1e9
    machines = f"{m.gpus} x {m.memory / width:g} GB on {m.nodes} node{'s' * (m.nodes > 1)}"
    what = f"{ask.kind}{', muon' if ask.muon else ''}{', pairs' if ask.preference else ''}"
    table = Table(title=f"{size} on {machines}: {what}, rows of {ask.length:,} tokens (GB a GPU)")
    for name, justify in COLUMNS:
        table.add_column(name, justify=justify)
    for row in found:
        held = row.memory
        parts = (
            held.weights, held.gradients, held.optimiser, held.activations, held.head, held.work,
            held.communication, held.total,
        )  # fmt: skip
        table.add_row(
            row.name, "yes" if row.recompute else "no", str(row.rows), str(row.accumulate),
            *(f"{part / width:.1f}" for part in parts), "yes" if row.fits else "no",
            f"{row.time.tokens_per_second:,.0f}", f"{row.time.mfu:.0%}",
            f"{row.traffic.bytes(row.accumulate) / width:.1f} GB", f"{row.time.communication:.2f} s",
            style="bold" if row is best else None,
        )  # fmt: skip
    console = Console()
    console.width = max(console.width, 168)  # a log or a narrow pipe gets whole rows too
    console.print(table)
    print(
        f"again: blocks are recomputed; rows x: micro-batches of so many rows, so many a step; kept: for the "
        f"backward pass;\nhead and work are not there at once. Usable are {m.usable / width:.1f} GB ({m.reserve:.0%} "
        f"are left to CUDA, NCCL and gaps). Assumed:\n{m.efficiency:.0%} of {m.peak / 1e12:g} TFLOP/s while "
        f"computing, {m.link_efficiency:.0%} of {m.link / 1e9:g} GB/s within a node and of "
        f"{m.network / 1e9:.3g} GB/s beyond."
    )
