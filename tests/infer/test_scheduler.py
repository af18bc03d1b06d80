"""scheduler.py and the engine's comings and goings: order, fairness, limits, cancelling, soak."""

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from m27.infer.engine import Engine
from m27.infer.request import Event, Refused, Request, RequestError
from m27.infer.respond import EngineError, collect
from m27.infer.runner import Batch, Floats, RunnerError
from tests import tiny
from tests.infer import mixed


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def ask(text: str = "x", **options: Any) -> Request:
    settings = {"modalities": ("text",), "max_tokens": 20, "temperature": 1.0, "seed": 1}
    return Request([{"role": "user", "content": text}], **{**settings, **options})


def order(engine: Engine) -> list[int]:
    """The numbers of the requests in the order in which they end."""
    ended = []
    for _ in range(20_000):
        if not engine.busy():
            return ended
        ended += [n for n, event in engine.step() if event["type"] in ("done", "error")]
    raise AssertionError("requests starve")


def test_the_important_go_first_and_then_those_who_came_first() -> None:
    engine = tiny.engine(sequences=1)
    numbers = [engine.add(ask(priority=p, max_tokens=9)) for p in (0, 0, 2, 1, 2)]
    first, second, top, middle, last = numbers
    assert order(engine) == [top, last, middle, first, second]


def test_what_is_more_important_takes_the_place_of_what_is_less() -> None:
    engine = tiny.engine(sequences=1)
    low = engine.add(ask(max_tokens=60, min_p=0.0))
    engine.step()
    high = engine.add(ask(priority=1, max_tokens=60))
    assert order(engine) == [high, low]
    assert engine.metrics()["preempted"] == 1
    assert engine.blocks.used == 0


def test_what_waits_long_grows_in_importance() -> None:
    engine = tiny.engine(sequences=1, patience=10.0)
    now = [0.0]
    engine.scheduler._clock = lambda: now[0]
    running = engine.add(ask(priority=9))
    engine.step()
    low = engine.add(ask())
    now[0] = 35.0
    high = engine.add(ask(priority=2))
    assert order(engine) == [running, low, high]


def test_tenants_are_served_in_equal_measure() -> None:
    """One who asks for a hundred answers does not keep one who asks for ten waiting."""
    engine = tiny.engine(sequences=4)
    of: dict[int, str] = {}
    for number in range(60):
        of[engine.add(ask("long " * 4, tenant="greedy", seed=number))] = "greedy"
    for number in range(10):
        of[engine.add(ask("long " * 4, tenant="modest", seed=number))] = "modest"
    ended = [of[number] for number in order(engine)]
    assert len(ended) == 70
    assert Counter(ended[:26])["modest"] >= 9
    assert ended[-30:] == ["greedy"] * 30


def test_an_idle_tenant_does_not_save_up() -> None:
    engine = tiny.engine(sequences=1)
    for number in range(8):
        engine.add(ask(tenant="a", seed=number))
    for _ in range(60):
        engine.step()
    late = [engine.add(ask(tenant="b", seed=number)) for number in range(4)]
    ended = order(engine)
    # Not all of b's at once, as if a had been served in vain.
    assert sorted(late) != sorted(ended[:4])


def test_long_prompts_do_not_hold_up_who_is_being_answered() -> None:
    engine = tiny.engine(tokens=32, chunk=16)
    short = engine.add(ask(max_tokens=200, temperature=0.0))
    while not (told := engine.step()):
        pass
    engine.add(ask("a" * 700))
    steps = 0
    for _ in range(40):
        steps += any(n == short for n, _ in engine.step())
    assert told
    assert steps > 30  # some ids spell no whole character


def test_a_step_keeps_to_its_tokens() -> None:
    engine = tiny.engine(tokens=24, chunk=10, sequences=50)
    seen: list[tuple[int, int]] = []
    run = engine.runner.run

    def spy(batch: Batch) -> list[Floats]:
        seen.append((len(batch.ids), int(np.diff(batch.starts).max())))
        return run(batch)

    engine.runner.run = spy  # type: ignore[method-assign]
    engine.answer([ask("abc " * n, seed=n) for n in range(1, 30)])
    assert max(total for total, _ in seen) <= 24
    assert max(most for _, most in seen) <= 10


def test_limits_refuse_in_so_many_words() -> None:
    engine = tiny.engine(blocks=8, sequences=1, waiting=2, prompt_tokens=60, total_tokens=200)
    with pytest.raises(Refused, match="60 is the most") as long:
        engine.add(ask("a" * 80))
    with pytest.raises(Refused, match="200 is the most") as total:
        engine.add(ask(max_tokens=300))
    with pytest.raises(Refused, match="the cache holds 128") as large:
        engine.add(ask(max_tokens=180))
    for _ in range(3):
        engine.add(ask())
    with pytest.raises(Refused, match="answers wait already") as queue:
        engine.add(ask())
    assert [e.value.reason for e in (long, total, large, queue)] == ["limit"] * 2 + [
        "cache",
        "queue",
    ]
    assert queue.value.retry_after >= 1.0
    assert long.value.retry_after is None
    assert engine.metrics()["refused"] == 4
    assert len(order(engine)) == 3
    assert engine.chat(ask()).content  # refused once, served later


@pytest.mark.parametrize("wrong", [{"sequences": 0}, {"tokens": 1}, {"chunk": 0}, {"waiting": -1}])
def test_limits_that_cannot_be(wrong: dict[str, int]) -> None:
    with pytest.raises(RequestError, match=next(iter(wrong))):
        tiny.engine(**wrong)


def test_unknown_adapters_are_refused_and_those_in_use_stay() -> None:
    engine = tiny.engine()
    with pytest.raises(RequestError, match="'mine'"):
        engine.add(ask(adapter="mine"))
    engine.add_adapter("mine", mixed.adapter(tiny.CONFIG, "mine", 1))
    before = engine.chat(ask(adapter="mine", temperature=0.0)).ids
    number = engine.add(ask(adapter="mine"))
    with pytest.raises(RequestError, match="in use"):
        engine.remove_adapter("mine")
    engine.cancel(number)
    engine.add_adapter("mine", mixed.adapter(tiny.CONFIG, "mine", 2))
    assert engine.chat(ask(adapter="mine", temperature=0.0)).ids != before  # and none of its cache
    engine.remove_adapter("mine")
    with pytest.raises(RequestError, match="'mine'"):
        engine.remove_adapter("mine")
    bad = mixed.adapter(tiny.CONFIG, "bad", 1)
    wrong = {name: (a, b[:-1]) for name, (a, b) in bad.matrices.items()}
    with pytest.raises(RunnerError, match="bad"):
        engine.add_adapter("bad", type(bad)("bad", wrong))
    with pytest.raises(RunnerError, match="has no model"):
        engine.add_adapter("bad", type(bad)("bad", {"model.layers.7.x": bad.matrices.popitem()[1]}))


def test_cancelled_requests_are_gone_within_the_step() -> None:
    engine = tiny.engine()
    kept, dropped = engine.add(ask(max_tokens=40)), engine.add(ask(max_tokens=40, n=3))
    for _ in range(4):
        engine.step()
    used = engine.blocks.used
    engine.cancel(dropped)
    engine.cancel(dropped)
    engine.cancel(999)
    assert engine.blocks.used < used
    told = {n for _ in range(200) for n, _ in engine.step()}
    assert told == {kept}
    assert not engine.busy()
    assert engine.blocks.used == 0


def test_a_stream_that_is_closed_cancels_and_others_go_on() -> None:
    engine = tiny.engine()
    other = engine.add(ask(max_tokens=30))
    stream = engine.stream(ask(max_tokens=300, temperature=0.0))
    next(stream)
    stream.close()
    assert order(engine) == [other]
    assert engine.blocks.used == 0
    one, two = engine.stream(ask(seed=1)), engine.stream(ask(seed=2))
    mingled = [list(pair) for pair in zip(one, two, strict=False)]
    assert mingled


def test_a_failing_step_fails_its_requests_and_no_others() -> None:
    engine = tiny.engine()
    run = engine.runner.run

    def broken(batch: Batch) -> list[Floats]:
        raise RunnerError("out of luck")

    lost = engine.add(ask(n=2))
    engine.runner.run = broken  # type: ignore[method-assign]
    assert engine.step() == [(lost, {"type": "error", "message": "out of luck"})]
    engine.runner.run = run  # type: ignore[method-assign]
    assert not engine.busy()
    assert engine.blocks.used == 0
    assert engine.chat(ask()).content
    assert engine.metrics()["failed"] == 1
    engine.runner.run = broken  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="out of luck"):
        engine.chat(ask())


def test_several_answers_share_the_prompt() -> None:
    engine = tiny.engine()
    response = engine.chat(ask("word " * 30, n=4))
    prompt = response.usage.prompt_tokens
    answers = [response, *response.others]
    assert [r.usage.cached_tokens for r in answers] == [0] + [prompt // 16 * 16] * 3
    assert len({tuple(r.ids) for r in answers}) == 4
    assert response.ids == engine.chat(ask("word " * 30)).ids
    again = engine.chat(ask("word " * 30, tenant="other"))
    assert again.usage.cached_tokens == 0
    assert again.ids == response.ids


def test_nothing_asked_is_nothing_answered_and_progress_is_told() -> None:
    engine = tiny.engine(sequences=2, waiting=3)
    assert engine.answer([]) == []
    told: list[int] = []
    made = engine.answer([ask(seed=n) for n in range(15)], told.append)
    assert sum(told) == len(made) == 15
    with pytest.raises(RequestError):
        engine.answer([ask(), ask(adapter="none"), ask()])
    assert not engine.busy()


def test_soak_none_lost_none_mixed_up() -> None:
    """Random kind, length, arrival; a tenth cancelled; every event of a live request in its order."""
    asked = mixed.requests(160, seed=5)
    engine = tiny.engine(blocks=60, sequences=12, waiting=40, chunk=32, tokens=64)
    rng = random.Random(0)
    events: dict[int, list[Event]] = {}
    place: dict[int, int] = {}
    cancelled: set[int] = set()
    waiting = list(enumerate(asked))
    while waiting or engine.busy():
        for _ in range(rng.choice((0, 0, 1, 3))):
            if waiting:
                try:
                    number = engine.add(waiting[0][1])
                except Refused:
                    break
                place[number] = waiting.pop(0)[0]
                events[number] = []
                if rng.random() < 0.1:
                    cancelled.add(number)
        for number in list(cancelled & events.keys()):
            if rng.random() < 0.1:
                engine.cancel(number)
                events.pop(number)
        for number, event in engine.step():
            events[number].append(event)
        if rng.random() < 0.05:
            engine.blocks.check()
    engine.blocks.check()
    assert engine.blocks.used == 0
    assert len(place) == 160
    assert engine.metrics()["failed"] == 0
    oracle = tiny.naive()
    for number, told in events.items():
        if place[number] % 10 == 3:
            expected = oracle.chat(asked[place[number]])
            assert mixed.differences(expected, collect(told)) == []
        else:
            assert collect(told).usage.seed == place[number]
