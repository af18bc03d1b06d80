"""`m27 compare`: several models on the same questions, as one page and as JSON."""

import gc
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m27.cli import own_set
from m27.cli.console import InputError, PrecisionOption, ThreadsOption

if TYPE_CHECKING:
    from m27.eval.ask import Result
    from m27.eval.compare.gather import Wish


def compare(
    models: Annotated[list[str], typer.Argument(help="Two or more: 'nano', a folder, hf:, openai: or stored:.")],
    data: Annotated[list[str], typer.Option(help="A set of questions; may be repeated.")],
    metric: Annotated[
        list[str] | None,
        typer.Option(help="exact (the default), contains, cider, wer or judge: one for all sets, or one for each."),
    ] = None,
    form: Annotated[str, typer.Option(help="How the sets are read, by the name of a task.")] = "records",
    judge: Annotated[str | None, typer.Option(help="The model that grades, for --metric judge.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the page, the JSON and every answer.")] = Path("out/compare"),
    prices: Annotated[Path | None, typer.Option(help="A price table in the place of the shipped one.")] = None,
    device_price: Annotated[str, typer.Option(help="The device of the table that local models are priced on.")] = "",
    against: Annotated[str, typer.Option(help="The API of the table to hold them against, where none is asked.")] = "",
    samples: Annotated[int | None, typer.Option(help="Questions of each set; by default all.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens an answer.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 for the likeliest answer.")] = 0.0,
    seed: Annotated[int, typer.Option(help="What is drawn.")] = 0,
    seeds: Annotated[int, typer.Option(help="Ask with so many seeds, from --seed on.")] = 1,
    at_once: Annotated[int, typer.Option(help="Questions under way at once.")] = 16,
    precision: PrecisionOption = "auto",
    threads: ThreadsOption = 0,
    key: Annotated[str, typer.Option(help="The variable that holds a server's key.")] = "OPENAI_API_KEY",
    title: Annotated[str, typer.Option(help="Of the page.")] = "Comparison",
) -> None:
    """Compare models in quality, speed, memory and cost, tested sample by sample; writes report.html and report.json.

    A run that was ended goes on where it stopped, as long as the arguments are the same.
    """
    if len(models) < 2 or len(set(models)) < len(models):
        raise InputError("name two or more models, each once")
    metrics: list[str | None] = [*metric] if metric else [None]
    if len(metrics) not in (1, len(data)):
        raise InputError(f"--metric: give one, or one for each of the {len(data)} sets, not {len(metrics)}")
    metrics = metrics * len(data) if len(metrics) == 1 else metrics
    wishes = [
        own_set.Wishes(
            metric=name, judge=judge if name == "judge" else None, max_tokens=max_tokens, temperature=temperature,
            seed=seed, seeds=seeds, samples=samples, at_once=at_once, precision=precision, threads=threads, key=key,
            form=form,
        )
        for name in metrics
    ]  # fmt: skip
    for one in wishes:
        own_set.check(one)
    wish = _wish(prices, device_price, against)
    prepared = [own_set.prepared(Path(path), one) for path, one in zip(data, wishes, strict=True)]
    plans = [plan for plan, _ in prepared]
    if len({(plan.task, plan.metric.name) for plan in plans}) < len(plans):
        raise InputError("--data: two sets have one name and one metric")
    settings = prepared[0][1]
    from m27 import runtime
    from m27.eval.answerers import open_model
    from m27.eval.ask import ask
    from m27.eval.compare.write import write
    from m27.eval.judge import strict

    names = dict(zip(_labels(models), models, strict=True))
    grader = open_model(own_set.named(judge), strict(settings)) if judge else None
    results: dict[str, list[Result]] = {}
    for label, name in names.items():
        model = open_model(own_set.named(name), settings)
        try:
            results[label] = [
                ask(plan, model, out / own_set.slug(name) / f"{own_set.slug(plan.task)}-{plan.metric.name}",
                    judge=grader if plan.metric.name == "judge" else None)
                for plan in plans
            ]  # fmt: skip
        finally:
            model.close()
            del model
            gc.collect()  # what the next one takes is measured from here
            runtime.trim_freed_memory()
    report = write(out, results, plans, wish, title)
    for task in report["tasks"]:
        for pair in task["pairs"]:
            print(f"{task['task']} {task['metric']}: {pair['b']} against {pair['a']}: {pair['says']}")
    print(f"the page: {out / 'report.html'}")


def _wish(path: Path | None, device: str, against: str) -> "Wish":
    from m27.eval.compare import prices
    from m27.eval.compare.gather import Wish

    table = prices.read(path or prices.SHIPPED)
    where = path or prices.SHIPPED.name
    if not table.devices or not table.apis:
        raise InputError(f"{where}: needs one device and one API at least")
    if not device:
        import torch

        gpu = next((name for name in table.devices if name.startswith("gpu")), None)
        device = gpu if torch.cuda.is_available() and gpu else next(iter(table.devices))
    against = against or next(iter(table.apis))
    for name, known, option in ((device, table.devices, "--device-price"), (against, table.apis, "--against")):
        if name not in known:
            raise InputError(f"{option} {name}: {where} has {', '.join(known)}")
    return Wish(table, table.devices[device], table.apis[against])


def _labels(models: list[str]) -> list[str]:
    """Short names that tell the models apart."""
    out: list[str] = []
    for name in models:
        kind, colon, rest = name.partition(":")
        short = rest.rpartition("@http")[0] if kind == "openai" else rest if colon else name
        short = short if kind == "openai" else Path(short.rstrip("/")).name
        out.append(short or name)
    kinds = [name.partition(":")[0] if ":" in name else "" for name in models]
    out = [f"{k}:{label}" if k and out.count(label) > 1 else label for k, label in zip(kinds, out, strict=True)]
    return [label if out.count(label) == 1 else f"{label} ({n + 1})" for n, label in enumerate(out)]
