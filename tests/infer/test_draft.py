"""draft.py: the incremental index finds what a search finds, at a cost that does not grow."""

import random
import time

import torch

from m27.infer.draft import SIZES, PromptLookup
from m27.infer.engine import Engine
from m27.infer.request import Request
from m27.infer.scheduler import Limits
from tests import tiny


def searched(ids: list[int], most: int) -> list[int]:
    """The same by looking at every place."""
    for size in SIZES:
        for at in range(len(ids) - 1, size - 1, -1):
            if ids[at - size : at] == ids[len(ids) - size :]:
                return ids[at : at + most]
    return []


def test_equal_to_a_search() -> None:
    rng = random.Random(0)
    lookup, found = PromptLookup(), 0
    for _ in range(200):
        ids = [rng.randrange(4) for _ in range(rng.randint(0, 12))]
        for _ in range(20):
            most = rng.randint(0, 6)
            assert lookup(ids, most) == searched(ids, most)
            found += bool(lookup(ids, most))
            ids += [rng.randrange(4) for _ in range(rng.randint(1, 3))]
    assert found > 2000


def test_cost_is_that_of_what_is_new() -> None:
    rng = random.Random(0)
    lookup, ids = PromptLookup(), [rng.randrange(50_000) for _ in range(100_000)]
    lookup(ids, 4)
    started = time.perf_counter()
    for _ in range(1000):
        ids.append(rng.randrange(50_000))
        lookup(ids, 4)
    assert time.perf_counter() - started < 1.0  # a search would take some 10 s


def test_only_so_many_sequences_are_kept() -> None:
    lookup = PromptLookup()
    for _ in range(1000):
        lookup([1, 2, 3, 1, 2], 2)
    assert len(lookup._kept) == 256


def test_answers_are_the_same_with_and_without() -> None:
    processor = tiny.processor()
    requests = [
        Request(
            [{"role": "user", "content": "abcabcabc" * 3}], modalities=("text",), max_tokens=60,
            temperature=temperature, repetition_penalty=1.0, seed=seed, speculate=True,
        )
        for seed, temperature in enumerate((0.0, 0.02, 0.02, 1.0))
    ]  # fmt: skip
    torch.set_num_threads(1)
    plain = tiny.engine(200)
    engine = Engine(tiny.engine(200).runner, processor, Limits(drafts=4), draft=PromptLookup())
    got, expected = engine.answer(requests), plain.answer(requests)
    assert [r.ids for r in got] == [r.ids for r in expected]
    assert engine.metrics()["accepted"] > 0
    alone, also = tiny.engine(200), engine.metrics()["steps"]
    assert alone.chat(requests[0]).ids == engine.chat(requests[0]).ids
    assert engine.metrics()["steps"] - also < alone.metrics()["steps"]
