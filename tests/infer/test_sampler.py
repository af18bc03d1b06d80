"""sampler.py against the definitions written out long-hand, and against counting."""

import math

import numpy as np
import pytest

from m27.infer.request import DEFAULTS, GUIDANCE, Request, RequestError, Sampling
from m27.infer.sampler import (
    Floats,
    Sampler,
    Spans,
    candidates,
    log_probabilities,
    penalize,
    place_of,
    race,
    redirect,
    where,
)


def spans(count: int) -> Spans:
    return ((0, count),)


def floats(*values: float) -> Floats:
    return np.array(values, dtype=np.float32)


def long_hand(logits: list[float], s: Sampling) -> dict[int, float]:
    """Temperature, top-k, top-p, min-p by the book, one id at a time."""
    ids = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    ids = [i for i in ids if logits[i] > -math.inf][: s.top_k or None]
    weights = {i: math.exp(logits[i] / s.temperature) for i in ids}
    total = sum(weights.values())
    probs = {i: w / total for i, w in weights.items()}
    kept: dict[int, float] = {}
    for i in ids:
        nucleus = s.top_p == 1.0 or sum(kept.values()) < s.top_p
        if nucleus and probs[i] >= s.min_p * probs[ids[0]]:
            kept[i] = probs[i]
    return {i: p / sum(kept.values()) for i, p in kept.items()}


@pytest.mark.parametrize(
    "settings",
    [
        Sampling(),
        Sampling(temperature=0.3),
        Sampling(top_k=5),
        Sampling(top_p=0.6),
        Sampling(min_p=0.2),
        Sampling(temperature=2.0, top_k=9, top_p=0.8, min_p=0.1),
        Sampling(top_p=1e-6),
    ],
)
def test_candidates_are_those_of_the_definition(settings: Sampling) -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        logits = (rng.standard_normal(40) * 2).astype(np.float32)
        logits[rng.integers(40, size=15)] = -np.inf
        places_C, weights_C = candidates(logits, settings)
        expected = long_hand(logits.tolist(), settings)
        assert set(places_C.tolist()) == set(expected)
        assert places_C.tolist() == sorted(places_C)
        probs = weights_C / weights_C.sum()
        for place, p in zip(places_C.tolist(), probs.tolist(), strict=True):
            assert p == pytest.approx(expected[place], abs=1e-6)


@pytest.mark.parametrize("settings", [Sampling(top_k=3), Sampling(top_p=0.49), Sampling(min_p=0.9)])
def test_of_equal_ids_at_the_edge_the_first_are_kept(settings: Sampling) -> None:
    places_C, _ = candidates(floats(0, 0, 0, 0, 0, 0, -9), settings)
    assert places_C.tolist() == list(range(6 if settings.min_p else 3))


def test_draws_follow_the_probabilities_and_the_seed() -> None:
    def draw(seed: int, index: int = 0) -> list[int]:
        sampler, drawn = Sampler({"text": Sampling()}, seed, index), []
        for _ in range(4000):
            logits = floats(0.0, math.log(3.0), -math.inf, math.log(4.0))
            drawn.append(sampler.choose(logits, spans(4), "text"))
            sampler.take(drawn[-1])
        return drawn

    drawn = draw(7)
    assert drawn == draw(7)
    assert drawn != draw(8)
    assert drawn != draw(7, 1)
    assert drawn.count(1) / 4000 == pytest.approx(3 / 8, abs=0.03)
    assert drawn.count(3) / 4000 == pytest.approx(1 / 2, abs=0.03)
    assert 2 not in drawn


def test_draws_of_many_ids_follow_the_probabilities() -> None:
    """Against counting, over a distribution as wide as a picture's: chi-square."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal(500).astype(np.float32) * 2
    probs = np.exp(logits) / np.exp(logits).sum()
    sampler, counts, n = Sampler({"image": Sampling()}, 3), np.zeros(500), 30_000
    for _ in range(n):
        id = sampler.choose(logits.copy(), ((1000, 1500),), "image")
        sampler.take(id)
        counts[id - 1000] += 1
    often = probs * n > 5
    chi = ((counts - probs * n) ** 2 / (probs * n))[often].sum()
    assert chi < often.sum() + 4 * math.sqrt(2 * often.sum())


def test_a_draw_depends_on_the_id_and_not_on_what_else_is_asked_for() -> None:
    ids = np.arange(100, 140)
    assert np.array_equal(race(ids, 5)[7:9], race(ids[7:9], 5))
    assert (race(np.arange(1 << 16), 9) > 0).all()


def test_greedy_takes_the_best_and_each_medium_has_its_own_settings() -> None:
    settings = {"text": Sampling(temperature=0.0), "image": Sampling(temperature=100.0)}
    sampler = Sampler(settings, 0)

    def drawn(medium: str) -> set[int]:
        found = set()
        for _ in range(100):
            found.add(sampler.choose(floats(1.0, 2.0, 0.0), spans(3), medium))
            sampler.take(0)
        return found

    assert drawn("text") == {1}
    assert drawn("image") == {0, 1, 2}


def test_penalty_lowers_what_was_produced_but_not_the_prompt() -> None:
    logits = floats(2.0, -1.0, 1.9)
    penalize(logits, np.array([0, 1]), Sampling(repetition_penalty=2.0))
    assert logits.tolist() == pytest.approx([1.0, -2.0, 1.9])
    settings = {"text": Sampling(temperature=0.0, repetition_penalty=2.0)}
    sampler = Sampler(settings, 0)
    assert sampler.choose(floats(2.0, -1.0, 1.9), spans(3), "text") == 0
    sampler.take(0)
    sampler.take(0)
    assert sampler.choose(floats(2.0, -1.0, 1.9), spans(3), "text") == 2
    for id in range(3, 300):  # the record of what was produced grows
        sampler.take(id)
    assert sampler.choose(floats(2.0, 1.0, 1.9), ((0, 1), (7, 9)), "text") == 0


def test_ids_and_their_places_among_spans() -> None:
    some: Spans = ((2, 3), (5, 9))
    assert [place_of(some, id) for id in (2, 3, 5, 8, 9)] == [0, -1, 1, 4, -1]
    settings = {"text": Sampling(temperature=0.0, repetition_penalty=4.0)}
    sampler = Sampler(settings, 0)
    for id in (8, 2, 4, 5):
        sampler.take(id)
    assert sampler.choose(floats(4, 4, 2, 1, 4), some, "text") == 6
    assert sampler.choose(floats(4, 3, 3), ((4, 5), (9, 11)), "text") == 9
    sampler.take(9)
    assert sampler.choose(floats(4, 3, 3), ((4, 5), (9, 11)), "text") == 10


@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("length", [0, 5, 4096, 5003, 49_152])
def test_places_of_what_is_true(length: int, share: float) -> None:
    mask = np.random.default_rng(0).random(length) < share
    assert np.array_equal(where(mask), np.flatnonzero(mask))


def test_a_long_row_gives_what_a_short_one_does() -> None:
    rng = np.random.default_rng(0)
    logits = (rng.standard_normal(30_000) * 4).astype(np.float32)
    for settings in (
        Sampling(),
        Sampling(temperature=0.2, top_p=0.9),
        Sampling(top_k=7, min_p=0.1),
    ):
        places_C, weights_C = candidates(logits, settings)
        expected = long_hand(logits.tolist(), settings)
        found = dict(zip(places_C.tolist(), (weights_C / weights_C.sum()).tolist(), strict=True))
        assert set(found) <= set(expected)
        assert all(found[i] == pytest.approx(p, abs=1e-5) for i, p in expected.items() if p > 1e-4)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_allowed_is_an_error(temperature: float) -> None:
    sampler = Sampler({"text": Sampling(temperature=temperature)}, 0)
    with pytest.raises(ValueError, match="no id is allowed"):
        sampler.choose(np.full(4, -np.inf, np.float32), spans(4), "text")
    with pytest.raises(ValueError, match="no id is allowed"):
        sampler.choose(np.zeros(4, np.float32), spans(4), "text", mask_K=np.zeros(4, bool))


def test_masked_ids_are_never_taken() -> None:
    sampler = Sampler({"text": Sampling()}, 0)
    for _ in range(50):
        mask = np.array([True, False, True])
        assert sampler.choose(floats(0, 9, 0), spans(3), "text", mask_K=mask) != 1
        sampler.take(0)


def test_log_probabilities_are_those_of_the_softmax() -> None:
    found = log_probabilities(floats(1.0, 3.0, 2.0), ((4, 5), (7, 9)), 8, 2)
    total = math.log(sum(math.exp(x) for x in (1, 2, 3)))
    assert found["id"] == 8
    assert found["logprob"] == pytest.approx(2 - total)
    assert [id for id, _ in found["top"]] == [7, 8]
    assert log_probabilities(floats(1.0, 3.0), ((4, 6),), 4, 0)["top"] == []


def test_guidance_is_each_medium_s_own_unless_it_is_given() -> None:
    assert Request([]).guided == GUIDANCE and GUIDANCE["text"] == 1.0
    assert Request([], guidance=3.0).guided == {"text": 1.0, "image": 3.0, "audio": 3.0}


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"top_p": 0.0},
        {"min_p": 2.0},
        {"repetition_penalty": 0.0},
        {"max_tokens": 0},
        {"modalities": ()},
        {"modalities": ("video",)},
        {"modalities": ("text",), "plan": ("image",)},
        {"guidance": math.inf},
        {"seed": -1},
        {"n": 0},
        {"logprobs": -1},
        {"stop": "end"},
        {"stop": [""]},
        {"schema": "yaml", "modalities": ("text",)},
        {"schema": "json"},
    ],
)
def test_requests_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(RequestError) as caught:
        Request([], **wrong)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_given_settings_hold_for_every_medium_and_the_rest_stay_default() -> None:
    request = Request([], temperature=0.5)
    assert {s.temperature for s in request.sampling.values()} == {0.5}
    assert request.sampling["image"].top_p == DEFAULTS["image"].top_p


def test_redirected_probability_arrives_at_its_target() -> None:
    logits = floats(1.0, 0.0, 0.5, -math.inf)
    before = np.exp(logits) / np.exp(logits).sum()
    redirect(logits, 0, 1)
    moved = np.exp(logits) / np.exp(logits).sum()
    assert moved.tolist() == pytest.approx([0.0, float(before[0] + before[1]), float(before[2]), 0])
    redirect(logits, -1, 2)
    assert logits[2] == 0.5
    sampler = Sampler({"text": Sampling()}, 0)
    drawn = set()
    for _ in range(100):
        given = floats(1.0, 0.0, 0.5, -math.inf)
        drawn.add(sampler.choose(given, spans(4), "text", redirects=[(0, 1)]))
        sampler.take(0)
    assert drawn == {1, 2}
