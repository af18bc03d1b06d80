"""sampler.py against the definitions written out long-hand, and against counting."""

import math

import pytest
import torch

from m27.infer.request import DEFAULTS, Request, RequestError, Sampling
from m27.infer.sampler import Sampler, candidates, penalize, redirect


class Steering:
    """A grammar that is always in one medium."""

    def __init__(self, medium: str = "text", redirects: list[tuple[int, int]] | None = None):
        self.current, self.pairs = medium, redirects or []

    def medium(self) -> str:
        return self.current

    def redirects(self) -> list[tuple[int, int]]:
        return self.pairs


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
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        logits = torch.randn(40, generator=generator) * 2
        logits[torch.randint(40, (15,), generator=generator)] = -torch.inf
        ids, probs = candidates(logits, settings)
        expected = long_hand(logits.tolist(), settings)
        assert set(ids.tolist()) == set(expected)
        for i, p in zip(ids.tolist(), probs.tolist(), strict=True):
            assert p == pytest.approx(expected[i], abs=1e-6)


def test_draws_follow_the_probabilities_and_the_seed() -> None:
    logits = torch.tensor([0.0, math.log(3.0), -math.inf])

    def draw(seed: int) -> list[int]:
        sampler = Sampler({"text": Sampling()}, Steering(), seed)
        return [sampler(logits, []) for _ in range(2000)]

    drawn = draw(7)
    assert drawn == draw(7)
    assert drawn != draw(8)
    assert drawn.count(1) / 2000 == pytest.approx(0.75, abs=0.04)
    assert 2 not in drawn


def test_greedy_takes_the_best_and_each_medium_has_its_own_settings() -> None:
    steering = Steering()
    settings = {"text": Sampling(temperature=0.0), "image": Sampling(temperature=100.0)}
    sampler = Sampler(settings, steering, 0)
    logits = torch.tensor([1.0, 2.0, 0.0])
    assert {sampler(logits, []) for _ in range(20)} == {1}
    steering.current = "image"
    assert {sampler(logits, []) for _ in range(100)} == {0, 1, 2}


def test_penalty_lowers_what_was_produced_but_not_the_prompt() -> None:
    logits = torch.tensor([2.0, -1.0, 1.9])
    assert penalize(logits, [0, 1, 0], 2.0).tolist() == pytest.approx([1.0, -2.0, 1.9])
    assert logits.tolist() == pytest.approx([2.0, -1.0, 1.9])
    settings = {"text": Sampling(temperature=0.0, repetition_penalty=2.0)}
    assert Sampler(settings, Steering(), 0, start=1)(logits, [0]) == 0
    assert Sampler(settings, Steering(), 0, start=0)(logits, [0]) == 2


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_allowed_is_an_error(temperature: float) -> None:
    sampler = Sampler({"text": Sampling(temperature=temperature)}, Steering(), 0)
    with pytest.raises(ValueError, match="no id is allowed"):
        sampler(torch.full((4,), -torch.inf), [])


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
    logits = torch.tensor([1.0, 0.0, 0.5, -math.inf])
    moved = redirect(logits, 0, 1).softmax(0)
    before = logits.softmax(0)
    assert moved.tolist() == pytest.approx([0.0, float(before[0] + before[1]), float(before[2]), 0])
    sampler = Sampler({"text": Sampling()}, Steering("text", [(0, 1)]), 0)
    assert {sampler(logits, []) for _ in range(100)} == {1, 2}
