"""Requests of every kind, and what it means that two engines answer them alike."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from m27.infer.engine import Engine
from m27.infer.request import Event, Request, Response
from m27.infer.respond import collect
from m27.infer.runner import Adapter
from m27.model.config import Config
from tests import tiny

MEDIA = ("text", "image", "audio")


def adapter(config: Config, name: str, seed: int, rank: int = 3, size: float = 0.3) -> Adapter:
    """A random adapter of the first layer's queries, values and last matrix."""
    rng = np.random.default_rng(seed)
    inner = config.n_heads * config.head_dim
    kv = config.n_kv_heads * config.head_dim
    shapes = {
        "self_attn.q_proj": (config.dim, inner), "self_attn.v_proj": (config.dim, kv),
        "self_attn.o_proj": (inner, config.dim), "mlp.down_proj": (config.ffn_dim, config.dim),
    }  # fmt: skip
    return Adapter(
        name,
        {
            f"model.layers.0.{part}": (
                (size * rng.standard_normal((rank, wide))).astype(np.float32),
                (size * rng.standard_normal((high, rank))).astype(np.float32),
            )
            for part, (wide, high) in shapes.items()
        },
    )


def requests(count: int, seed: int = 1, adapters: Sequence[str | None] = (None,)) -> list[Request]:
    """Media in and out, plans, grids, guidance, samplers, budgets, stop strings, several answers."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        plan = tuple(rng.choice(MEDIA) for _ in range(3)) if number % 3 == 0 else None
        some = rng.choice([MEDIA, MEDIA, ("text",), ("image", "audio")])
        made.append(
            Request(
                tiny.random_messages(rng),
                modalities=MEDIA if plan else some,
                plan=plan,
                max_tokens=rng.randint(60, 90),
                max_text=rng.choice((5, None)),
                max_audio_codes=rng.choice((3, 12)),
                image_grid=(2, 2) if plan else rng.choice(((2, 3), (4, 4), None)),
                guidance=rng.choice((1.0, None, 4.0)),
                temperature=rng.choice((None, 0.0, 1.0)),
                top_p=rng.choice((None, 0.7)),
                top_k=rng.choice((None, None, 9)),
                seed=number,
                n=rng.choice((1, 1, 1, 3)),
                stop=rng.choice(((), (), ("a", "bc"))),
                logprobs=rng.choice((None, None, 2)),
                adapter=rng.choice(adapters),
                tenant=rng.choice("ab"),
                priority=rng.choice((0, 0, 0, 1)),
                speculate=rng.random() < 0.5,
            )
        )
    return made


def differences(one: Response, other: Response) -> list[str]:
    """What two answers differ in; log probabilities may by rounding."""
    found = []
    if list(one.ids) != list(other.ids):
        found.append("ids")
    if one.usage != other.usage:
        found.append("usage")
    if [p["type"] for p in one.content] != [p["type"] for p in other.content]:
        return [*found, "parts"]
    for a, b in zip(one.content, other.content, strict=True):
        if a.keys() != b.keys() or not all(np.array_equal(a[key], b[key]) for key in a):
            found.append(a["type"])
    pairs = zip(one.logprobs, other.logprobs, strict=True)
    if any(a["id"] != b["id"] or abs(a["logprob"] - b["logprob"]) > 1e-3 for a, b in pairs):
        found.append("logprobs")
    for a, b in zip(one.others, other.others, strict=True):
        found += differences(a, b)
    return found


def arriving(engine: Engine, asked: Sequence[Request], seed: int) -> list[Response]:
    """The answers to requests that arrive at random steps."""
    rng = random.Random(seed)
    events: dict[int, list[Event]] = {}
    numbers = []
    waiting = list(asked)
    while waiting or engine.busy():
        while waiting and rng.random() < 0.4:
            numbers.append(engine.add(waiting.pop(0)))
            events[numbers[-1]] = []
        for number, event in engine.step():
            events[number].append(event)
    return [collect(events[number]) for number in numbers]


def greedy(asked: Sequence[Request]) -> list[Request]:
    """The same requests without chance."""
    return [replace(request, temperature=0.0) for request in asked]


def repeats(ids: Sequence[int], most: int) -> list[int]:
    """What followed the last id where it stood before; a stand-in for prompt lookup."""
    for at in range(len(ids) - 2, max(-1, len(ids) - 300), -1):
        if ids[at] == ids[-1]:
            return list(ids[at + 1 : at + 1 + most])
    return []


def limits(**given: Any) -> dict[str, Any]:
    """Limits of a test by name, for its title."""
    return given
