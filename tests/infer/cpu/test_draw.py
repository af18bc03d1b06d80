"""Ids drawn in C++ are the very ones of the sampler, at every level of machine and with every cut."""

import ctypes

import numpy as np
import pytest

from m27.infer.cpu import CpuRunner, binding, build, drawing
from m27.infer.engine import Engine
from m27.infer.request import Request, Sampling
from m27.infer.runner import RunnerError, Wanted
from m27.infer.sampler import Sampler, guide, ids_of
from m27.infer.scheduler import Limits
from tests import tiny
from tests.infer import mixed
from tests.infer.cpu.steps import CONFIGS, ids, model, step

LEVELS = ("portable", "avx2", "avx512", "avx512bf16")


@pytest.fixture(params=LEVELS)
def level(library, request, monkeypatch):
    monkeypatch.delenv("M27_CPU_ISA", raising=False)
    if request.param not in build.levels():
        pytest.skip(f"this processor has no {request.param}")
    return binding.Library(request.param, build.library(request.param))


def settings(rng) -> Sampling:
    def some(*values):
        return values[rng.integers(len(values))]

    return Sampling(
        temperature=some(0.0, 1e-4, 0.2, 0.2, 0.7, 1.0, 1.0, 1.3, 5.0, 100.0),
        top_k=int(some(0, 0, 0, 1, 2, 9, 40, 1000, 100_000)),
        top_p=some(1.0, 1.0, 0.9, 0.95, 0.5, 0.999, 0.99999, 0.01),
        min_p=some(0.0, 0.0, 0.0, 0.05, 0.1, 0.7, 1.0),
        repetition_penalty=some(1.0, 1.0, 1.1, 1.1, 0.8, 3.0),
    )


def spans(rng, most):
    edges = np.sort(rng.choice(most + 8, size=2 * rng.integers(1, 4), replace=False))
    return tuple((int(a), int(b)) for a, b in edges.reshape(-1, 2))


def logits(rng, width):
    """A row as models give it, or one of the awkward kinds: ties, near-ties, masks, flat or steep."""
    row = rng.standard_normal(width) * rng.choice([0.0, 1e-6, 0.3, 1.0, 3.0, 3.0, 10.0, 1000.0])
    kind = rng.integers(6)
    if kind == 1:
        row = np.round(row)
    elif kind == 2:
        row = np.round(row * 2) + rng.integers(-2, 3, width) * 2e-7
    row = row.astype(np.float32) + np.float32(rng.choice([0, 0, 20, -30]))
    if kind == 3:
        row = np.nextafter(row, np.float32(np.inf) * rng.choice([-1, 1], width).astype(np.float32))
    row[
        rng.random(width)
        < rng.choice([0, 0, 0.1, 0.5, 0.99, 1.0], p=[0.3, 0.2, 0.2, 0.2, 0.09, 0.01])
    ] = -np.inf
    if rng.random() < 0.01:
        row[rng.integers(width)] = rng.choice([np.nan, np.inf])
    return row


def agree(level, rng, rounds, most, rows=8):
    """Rounds of so many rows of one question each, id by id; a third of them guided."""
    drawn = 0
    for _ in range(rounds):
        asked = spans(rng, most)
        every = ids_of(asked)
        table = np.stack([logits(rng, len(every)) for _ in range(rows)])
        draws, want, row = [], [], 0
        while row < rows:
            sampler = Sampler(
                {"text": settings(rng)}, int(rng.integers(1 << 62)), int(rng.integers(3))
            )
            for id in rng.integers(0, most + 8, rng.choice([0, 3, 200])):
                sampler.take(int(id))
            redirects = []
            if rng.random() < 0.3:
                redirects = [
                    (int(a), int(b)) for a, b in rng.integers(0, most + 8, (2, 2)) if a != b
                ]
            guided = row + 1 < rows and rng.random() < 0.3
            guidance = float(rng.choice([2.5, 0.5, 1.7]))
            draws.append(
                sampler.draw(asked, "text", redirects, row, row + 1 if guided else -1, guidance)
            )
            with np.errstate(all="ignore"):
                own = guide(table[row], table[row + 1], guidance) if guided else table[row].copy()
                try:
                    want.append(sampler.choose(own, asked, "text", redirects))
                except ValueError:
                    want.append(-1)
            row += 1 + guided
        got, _ = drawing.draw(level.raw, table, asked, draws, threads=int(rng.integers(1, 3)))
        assert got.tolist() == want
        drawn += sum(id >= 0 for id in want)
    return drawn


def test_short_rows_are_drawn_as_the_sampler_does(level):
    rng = np.random.default_rng(1)
    assert agree(level, rng, 400, 12) > 1500
    assert agree(level, rng, 400, 300) > 1500
    assert agree(level, rng, 100, 5000) > 400


def test_whole_vocabularies_are_drawn_as_the_sampler_does(level):
    rng = np.random.default_rng(2)
    assert agree(level, rng, 60, 60_000) > 200
    assert agree(level, rng, 10, 300_000) > 30


def test_long_flat_rows_are_sorted_and_cut_alike(level):
    """Thousands of candidates, among them many that are equal, with the edge among those."""
    rng = np.random.default_rng(3)
    for width in (999, 1000, 4097, 30_000):
        table = np.round(rng.standard_normal((9, width)) * 8).astype(np.float32) / 16
        cuts = [{"top_p": p} for p in (0.3, 0.9, 0.9999)] + [{"top_k": k} for k in (7, 500, 990)]
        cuts += [{"top_k": 950, "top_p": 0.7}, {"min_p": 0.3}, {"min_p": 0.2, "top_p": 0.8}]
        samplers = [Sampler({"text": Sampling(**cut)}, seed) for seed, cut in enumerate(cuts)]
        asked = ((100, 100 + width),)
        draws = [sampler.draw(asked, "text", row=row) for row, sampler in enumerate(samplers)]
        want = [s.choose(row.copy(), asked, "text") for s, row in zip(samplers, table, strict=True)]
        assert drawing.draw(level.raw, table, asked, draws, 2)[0].tolist() == want


def test_a_runner_draws_what_its_logits_say(library):
    runner, config = (
        CpuRunner.load(model("qwen3"), precision="float32", blocks=40, threads=2),
        CONFIGS["qwen3"],
    )
    assert runner.draws
    rows = [ids(config, n, n) for n in (5, 40, 1, 33)]
    tables, text, codes = [[30], [0, 1, 2], [20], [17, 12, 14]], ((3, 4), (9, 150)), ((150, 197),)
    ends = np.cumsum([5, 40, 1, 33]) - 1
    asked = [(text, [0, 1]), (codes, [2, 3])]
    logits = [Wanted(spans, ends[rows]) for spans, rows in asked]
    hot = {"text": Sampling(), "image": Sampling(top_p=0.9)}
    samplers = [Sampler(hot, seed) for seed in range(3)]
    drawn = [
        Wanted(
            text,
            ends[:2],
            draws=[samplers[1].draw(text, "text", row=1), samplers[0].draw(text, "text")],
        ),
        Wanted(codes, [ends[3], ends[2]], draws=[samplers[2].draw(codes, "image", (), 1, 0, 2.5)]),
    ]
    for _ in range(20):
        a, b = runner.run(step(rows, [0] * 4, tables, 197, wanted=logits))
        want = [samplers[1].choose(a[1], text, "text"), samplers[0].choose(a[0], text, "text")]
        guided = guide(b[0], b[1], 2.5)
        want.append(samplers[2].choose(guided, codes, "image"))
        mixed = runner.run(step(rows, [0] * 4, tables, 197, wanted=[drawn[0], logits[0], drawn[1]]))
        assert [*mixed[0].tolist(), *mixed[2].tolist()] == want
        assert mixed[1].shape == (2, 142)


def test_draws_out_of_order_are_refused(library):
    runner = CpuRunner.load(model("llama"), precision="float32", blocks=4, threads=1)
    row, asked = ids(CONFIGS["llama"], 2), ((0, 50),)
    good = Sampler({"text": Sampling(repetition_penalty=2.0)}, 0).draw(asked, "text")
    wrong = [
        {"row": 1},
        {"row": -1},
        {"other": 1},
        {"other": -2},
        {"seen": np.array([50])},
        {"seen": np.array([-1])},
    ]
    for changes in wrong:
        with pytest.raises(RunnerError, match=r"draws\[0\]"):
            runner.run(
                step(
                    [row],
                    [0],
                    [[0]],
                    200,
                    wanted=[Wanted(asked, [1], draws=[good._replace(**changes)])],
                )
            )
    with pytest.raises(RunnerError, match="best"):
        runner.run(step([row], [0], [[0]], 200, wanted=[Wanted(asked, [1], best=True)]))
    assert (
        runner.run(step([row], [0], [[0]], 200, wanted=[Wanted(asked, [1], draws=[good])]))[0] >= 0
    )


def test_where_numpy_has_no_such_loops_draws_stay_in_python(library, monkeypatch):
    monkeypatch.setattr(drawing, "loops", lambda: None)
    assert not drawing.agrees(library.raw)
    monkeypatch.undo()
    assert drawing.agrees(library.raw)
    swapped = drawing.Loops.from_buffer_copy(drawing.loops())
    swapped.exp, swapped.log = swapped.log, swapped.exp
    monkeypatch.setattr(drawing, "loops", lambda: swapped)
    assert not drawing.agrees(library.raw)


def test_a_ufunc_that_is_not_as_documented_is_not_called(monkeypatch):
    monkeypatch.setattr(drawing._Ufunc, "from_address", lambda address: drawing._Ufunc())
    assert drawing._loop(np.exp) is None
    assert ctypes.sizeof(drawing.Draws) == 5 * ctypes.sizeof(ctypes.c_void_p)
    assert drawing.DRAW.itemsize == 56


def test_an_engine_answers_alike_whoever_draws(library, monkeypatch):
    """Text, pictures and sounds, guided, penalised, speculating, with logprobs, several samples."""
    asked, counts = mixed.requests(40), {}

    def answers(draws, **limits):
        runner = CpuRunner.load(tiny.decoder(), precision="float32", blocks=2000, threads=2)
        runner.draws, run = draws, runner.run

        def counting(batch):
            for wanted in batch.wanted:
                kind = "drawn" if wanted.draws else "logits"
                counts[draws, kind] = counts.get((draws, kind), 0) + len(wanted.draws or wanted.tokens)
            return run(batch)

        monkeypatch.setattr(runner, "run", counting)
        engine = Engine(runner, tiny.processor(), Limits(**limits), draft=mixed.repeats)
        return mixed.arriving(engine, asked, seed=3)

    expected = answers(False)
    for limits in ({}, {"chunk": 3, "tokens": 40}):
        got = answers(True, **limits)
        assert [mixed.differences(*pair) for pair in zip(expected, got, strict=True)] == [[]] * 40
    assert (False, "drawn") not in counts
    assert counts[True, "drawn"] > 500 and counts[True, "logits"] > 100


def test_an_answer_that_cannot_be_drawn_fails_alone(library, monkeypatch):
    runner = CpuRunner.load(tiny.decoder(), precision="float32", blocks=100, threads=1)
    engine, run = Engine(runner, tiny.processor()), runner.run
    messages = [{"role": "user", "content": "a"}]
    bad, good = (engine.add(Request(messages, modalities=("text",), max_tokens=5, seed=n)) for n in range(2))

    def spoilt(batch):
        out = run(batch)
        for wanted, found in zip(batch.wanted, out, strict=True):
            if wanted.draws:
                found[0] = -1
        return out

    monkeypatch.setattr(runner, "run", spoilt)
    told = engine.step()
    monkeypatch.setattr(runner, "run", run)
    while engine.busy():
        told += engine.step()
    errors = [(number, event["message"]) for number, event in told if event["type"] == "error"]
    assert errors == [(bad, "ValueError: no id is allowed here")]
    assert [number for number, event in told if event["type"] == "done"] == [good]
