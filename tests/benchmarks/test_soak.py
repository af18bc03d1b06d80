"""The soak and the scaling benchmark on a tiny model, and what they find fault with."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from benchmarks import scaling, soak, texts
from m27.infer.engine import Engine
from tests import tiny


@pytest.fixture
def engine() -> Iterator[Engine]:
    torch.set_num_threads(1)
    made = tiny.engine(blocks=400, sequences=6, waiting=10)
    yield made
    getattr(made, "close", lambda: None)()


def test_no_request_is_lost(engine: Engine) -> None:
    found = soak.measure(engine, 40, 10, seed=1)
    assert found["done"] + found["cancelled"] == found["requests"] == 40
    assert found["cancelled"] > 0
    assert (found["lost"], found["failed"], found["blocks_held"]) == (0, 0, 0)
    assert found["same"] == found["compared"] == 10
    assert not found["wrong"]


def sound() -> dict[str, Any]:
    return {
        "lost": 0, "failed": 0, "blocks_held": 0, "wrong": [], "same": 5, "compared": 5,
        "memory_growth_mb": 1.0, "memory_mb": 500, "beside_runner": 0.05,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("lost", 1, "lost: 1"),
        ("blocks_held", 3, "blocks_held: 3"),
        ("wrong", ["request 3: text after its end"], "request 3: text after its end"),
        ("same", 4, "1 answers are not those given alone"),
        ("memory_growth_mb", 20.0, "memory grew by 20 MB over the second half"),
        ("beside_runner", 0.2, "20.0% of the step are spent beside the runner"),
    ],
)
def test_faults_are_told(name: str, value: Any, line: str) -> None:
    assert soak.judge(sound()) == []
    assert soak.judge({**sound(), name: value}) == [line]


def test_memory_is_judged_by_its_second_half() -> None:
    assert soak.growth([10] * 10 + [100] * 30) == 0
    assert soak.growth([100] * 20 + list(range(100, 120))) > 10


def test_two_answers_that_are_mixed_up_do_not_pass(engine: Engine) -> None:
    tally, requests = soak.soak(engine, 6, seed=2, share=0.0)
    a, b = sorted(tally.done, key=lambda place: len(tally.done[place]))[-2:]
    tally.done[a], tally.done[b] = tally.done[b], tally.done[a]
    assert soak.compare(engine, tally, requests, 6, 0)["same"] < 6


def test_curves_of_a_tiny_model(engine: Engine) -> None:
    vocabulary = engine.runner.config.vocab_size
    rows = scaling.Rows(engine.runner, scaling.BEHIND + 1, vocabulary)
    assert rows.count * rows.blocks_each <= engine.runner.blocks
    points = scaling.against_batch(rows, [1, 2, 4], 1)
    assert [x for x, _ in points] == [1, 2, 4] and all(y > 0 for _, y in points)
    deep = scaling.Rows(engine.runner, 768, vocabulary)
    one, piece = scaling.against_context(deep, [128, 256, 768], 1)
    assert [x for x, _ in one] == [x for x, _ in piece] == [128, 256, 512]


def test_a_line_has_no_bend_and_a_parabola_has() -> None:
    line = scaling.fit([(x, 3 + 2 * x) for x in (1, 2, 4, 8)])
    assert line["start"] == pytest.approx(3) and line["slope"] == pytest.approx(2)
    assert line["bend"] == pytest.approx(0, abs=1e-9)
    assert scaling.fit([(x, x * x) for x in (1, 2, 4, 8)])["bend"] == pytest.approx(1)
    assert scaling.doublings(128, 1000) == [128, 256, 512]


def test_prompts_are_different_and_of_one_length() -> None:
    processor = tiny.processor()
    rows = texts.prompts(processor, 3, 120)
    assert {len(row) for row in rows} == {120}
    assert len({texts.digest([row]) for row in rows}) == 3
    assert texts.prompts(processor, 1, 120, skip=2) == rows[2:]
    with pytest.raises(ValueError, match="prompts of 120000 tokens wanted, 0 there"):
        texts.prompts(processor, 1, 120_000)


def test_text_is_what_a_text_may_hold() -> None:
    processor = tiny.processor()
    stops, vocabulary = texts.not_text(processor), processor.vocabulary
    assert {vocabulary.turn_end, vocabulary.image_begin, vocabulary.audio[0]} <= stops
    assert not stops & set(processor.encode_text("plain words"))
