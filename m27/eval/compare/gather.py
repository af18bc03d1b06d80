"""Results of several models on the same questions → one plain JSON report: what `page` shows and a program can read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from m27.eval.ask import Result, by_sample
from m27.eval.compare.prices import Api, Device, Prices, break_even
from m27.eval.statistics import difference, holm

SHOWN = 60  # samples side by side


@dataclass(frozen=True)
class Wish:
    """How costs are reckoned: the price table, the device that local models are priced on, and the API of the table
    that they are held against where no API is among the models."""

    prices: Prices
    device: Device
    against: Api


def report(results: Mapping[str, Sequence[Result]], wish: Wish) -> dict[str, Any]:
    """`results[label]` are a model's results, task by task, the same tasks for each. Plain JSON values.

    All differences of the report are corrected together (Holm), so "better" is said of none by the number of tries.
    """
    labels = list(results)
    tasks = [_task(labels, [results[label][k] for label in labels]) for k in range(len(results[labels[0]]))]
    pairs = [pair for task in tasks for pair in task["pairs"]]
    for pair, p in zip(pairs, holm([pair["p"] for pair in pairs]), strict=True):
        pair["p_corrected"] = p
        pair["noise"] = not p < 0.05
        pair["says"] = _says(pair)
    models = [_model(label, results[label], wish) for label in labels]
    return {
        "tasks": tasks, "models": models, "currency": wish.prices.currency,
        "break_even": _break_even(models, wish), "samples": _samples(labels, results),
        "origin": {k: results[labels[0]][0].row[k] for k in ("commit", "m27", "torch", "scorer_revision")},
    }  # fmt: skip


def _task(labels: Sequence[str], results: Sequence[Result]) -> dict[str, Any]:
    row = results[0].row
    kept = (
        "score", "low", "high", "n", "refused", "ungraded", "between_seeds", "precision", "device", "revision",
        "commit",
    )  # fmt: skip
    marked = [by_sample(result.records) for result in results]
    pairs = []
    for (i, a), (j, b) in combinations(enumerate(labels), 2):
        both = [key for key in marked[i] if key in marked[j]]
        if not both:
            continue
        scores = [[sum(marked[m][key][0]) / len(marked[m][key][0]) for key in both] for m in (i, j)]
        weights = [marked[i][key][1] for key in both]
        found = difference(scores[0], scores[1], None if set(weights) == {1.0} else weights)
        pairs.append({"a": a, "b": b, "lower": row["lower_is_better"], **_finite(asdict(found))})
    named = (
        "task", "metric", "judge", "lower_is_better", "share", "seeds", "temperature", "max_tokens", "prompt_hash",
        "data_hash", "data_revision", "scorer", "scorer_revision",
    )  # fmt: skip
    scores_of = {
        label: {**{k: r.row[k] for k in kept}, "figures": r.row.get("figures") or {}}
        for label, r in zip(labels, results, strict=True)
    }
    return {**{k: row[k] for k in named}, "scores": scores_of, "pairs": pairs}


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and abs(v) == float("inf") else v for k, v in values.items()}


def _says(pair: Mapping[str, Any]) -> str:
    """Which of the two is better, or that they do not differ beyond noise."""
    p = f"p = {pair['p_corrected']:.2g}"
    if pair["noise"]:
        return f"within noise ({p})"
    b_better = (pair["mean"] < 0) == pair["lower"]
    better, other = (pair["b"], pair["a"]) if b_better else (pair["a"], pair["b"])
    return f"{better} is better than {other} ({p})"


def _model(label: str, results: Sequence[Result], wish: Wish) -> dict[str, Any]:
    """Speed over all tasks together; a cost where tokens and a price are known."""
    facts, speeds = results[-1].facts, [result.speed for result in results]
    requests = sum(speed["requests"] for speed in speeds)
    wall = [speed["wall_seconds"] for speed in speeds]
    seconds = sum(wall) if all(wall) else None
    mean = {name: _weighted(speeds, name) for name in ("prompt_tokens", "completion_tokens")}
    rate = requests / seconds if seconds else None
    out: dict[str, Any] = {
        "label": label, **asdict(facts), "requests": requests, "requests_per_second": rate,
        "tokens_per_second": mean["completion_tokens"] * rate if rate and mean["completion_tokens"] else None,
        "seconds": _slowest(speeds, "seconds"), "first": _slowest(speeds, "first"), **mean,
        "cost_per_1000": None, "price": None,
    }  # fmt: skip
    remote = facts.kind == "openai" and not facts.data_goes.startswith("nowhere")
    if remote:
        api = wish.prices.api(facts.revision)
        if api is not None:
            out["licence"] = api.licence
            out["price"] = asdict(api)
            if mean["prompt_tokens"] is not None and mean["completion_tokens"] is not None:
                out["cost_per_1000"] = 1000 * api.request(mean["prompt_tokens"], mean["completion_tokens"])
    elif rate:
        out["price"] = asdict(wish.device)
        out["cost_per_1000"] = 1000 * wish.device.per_hour / 3600 / rate
    return out


def _weighted(speeds: Sequence[Mapping[str, Any]], name: str) -> float | None:
    known = [(s[name], s["requests"]) for s in speeds if s[name] is not None]
    total = sum(count for _, count in known)
    return sum(value * count for value, count in known) / total if total else None


def _slowest(speeds: Sequence[Mapping[str, Any]], name: str) -> dict[str, float] | None:
    """Of several tasks the slowest one's median and tail: what a user may have to wait for."""
    known = [speed[name] for speed in speeds if speed[name] is not None]
    return max(known, key=lambda spread: spread["median"]) if known else None


def _break_even(models: Sequence[Mapping[str, Any]], wish: Wish) -> dict[str, Any]:
    """Each API's price of a request against each local model's device."""
    apis = [
        {"label": m["label"], "request": m["cost_per_1000"] / 1000, "price": m["price"], "assumed": False}
        for m in models if m["price"] and "input_per_million" in m["price"] and m["cost_per_1000"]
    ]  # fmt: skip
    local = [m for m in models if m["price"] and "per_hour" in m["price"] and m["cost_per_1000"]]
    if not apis and local:
        counted = [m for m in local if m["prompt_tokens"] is not None and m["completion_tokens"] is not None]
        if counted:
            request = wish.against.request(counted[0]["prompt_tokens"], counted[0]["completion_tokens"])
            apis = [{"label": wish.against.name, "request": request, "price": asdict(wish.against), "assumed": True}]
    lines = []
    for m in local:
        device = Device(**m["price"])
        for api in apis:
            at = break_even(api["request"], device, m["requests_per_second"])
            lines.append({"open": m["label"], "closed": api["label"], "requests_a_month": at})
    kept = ("label", "price", "requests_per_second")
    devices = [{name: m[name] for name in kept} for m in local]
    return {"apis": apis, "devices": devices, "from": lines}


def _samples(labels: Sequence[str], results: Mapping[str, Sequence[Result]]) -> list[dict[str, Any]]:
    """Samples side by side, those first on which the models differ most, of equals those that all got wrong."""
    out = []
    for k, first in enumerate(results[labels[0]]):
        by_key = {label: {r["key"]: r for r in results[label][k].records} for label in labels}
        lower, share = first.row["lower_is_better"], first.row["share"]
        for record in first.records:
            rows = {label: by_key[label][record["key"]] for label in labels if record["key"] in by_key[label]}
            scores = [r["score"] for r in rows.values() if r["score"] is not None]
            apart = max(scores) - min(scores) if scores else 0.0
            mean = sum(scores) / len(scores) if scores else 0.0
            order = (-apart / (1 if share else 10), -mean if lower else mean)
            answers = {label: {n: r[n] for n in ("answer", "score", "extracted", "error")} for label, r in rows.items()}
            out.append((order, {
                "task": first.row["task"], "id": record["id"], "key": record["key"], "prompt": record["prompt"],
                "references": record["references"], "answers": answers, "apart": apart, "lower": lower,
            }))  # fmt: skip
    out.sort(key=lambda pair: pair[0])
    return [sample for _, sample in out[:SHOWN]]
