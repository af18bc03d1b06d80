"""Answers given together equal those given one by one, id by id, whatever is in the batch."""

import random

import numpy as np
import pytest
import torch

from m27.infer.engine import Engine
from m27.infer.many import answer_batch
from m27.infer.request import Request
from tests import tiny
from tests.infer.test_engine import MEDIA, random_messages


@pytest.fixture(scope="module")
def engine() -> Engine:
    torch.set_num_threads(1)
    return Engine(tiny.decoder(), tiny.processor())


def requests(count: int) -> list[Request]:
    """Requests of every kind: media in and out, plans, grids, guidance, samplers, budgets."""
    rng = random.Random(1)
    made = []
    for number in range(count):
        plan = tuple(rng.choice(MEDIA) for _ in range(3)) if number % 3 == 0 else None
        made.append(
            Request(
                random_messages(rng),
                modalities=rng.choice([MEDIA, MEDIA, ("text",), ("image", "audio")]) if not plan
                else MEDIA,
                plan=plan,
                max_tokens=rng.randint(60, 90),
                max_text=rng.choice((5, None)),
                max_audio_codes=rng.choice((3, 12)),
                image_grid=rng.choice(((2, 3), (4, 4), None)) if not plan else (2, 2),
                guidance=rng.choice((1.0, 1.0, 2.5, 4.0)),
                temperature=rng.choice((None, 0.0, 1.0)),
                top_p=rng.choice((None, 0.7)),
                seed=number,
            )
        )  # fmt: skip
    return made


@pytest.mark.parametrize("batch", [1, 7, 40])
def test_equals_the_engine_row_by_row(engine: Engine, batch: int) -> None:
    asked = requests(40)
    told: list[int] = []
    got = answer_batch(engine, asked, batch, told.append)
    kinds = set()
    for one, many in zip(map(engine.chat, asked), got, strict=True):
        assert many.usage == one.usage
        assert [p["type"] for p in many.content] == [p["type"] for p in one.content]
        for a, b in zip(one.content, many.content, strict=True):
            kinds.add(a["type"])
            assert a.keys() == b.keys()
            for key in a:
                assert np.array_equal(a[key], b[key])
    assert kinds == set(MEDIA)
    assert sum(told) == len(asked)
    assert len({r.usage.completion_tokens for r in got}) > 5


def test_each_row_may_be_drawn_anew(engine: Engine) -> None:
    asked = [
        Request([{"role": "user", "content": "x"}], plan=("image",), image_grid=(2, 2), seed=seed)
        for seed in (1, 1, 2)
    ]
    codes = [r.content[0]["codes"].tolist() for r in answer_batch(engine, asked)]
    assert codes[0] == codes[1] != codes[2]


def test_nothing_asked_is_nothing_answered(engine: Engine) -> None:
    assert answer_batch(engine, []) == []
    with pytest.raises(ValueError, match="batch"):
        answer_batch(engine, [], 0)
