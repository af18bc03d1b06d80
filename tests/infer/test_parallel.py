"""Several codes of a picture a step: the answers are those of one code a step, in fewer steps."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from m27.infer.draft import PromptLookup, next_codes
from m27.infer.engine import Engine
from m27.infer.request import Request, RequestError, Response
from m27.infer.scheduler import Limits
from tests import tiny
from tests.infer import mixed

WINDOWS = (2, 3, 4, 8, 16)


def asked() -> list[Request]:
    """Pictures of several sizes, guided or not, drawn or greedy, with sounds and texts among them."""
    made = []
    kinds: list[dict[str, Any]] = [
        {"plan": ("image",), "image_grid": (5, 5), "guidance": 1.0, "temperature": 0.0},
        {"plan": ("image",), "image_grid": (6, 3), "guidance": 3.0, "temperature": 0.0},
        {"plan": ("image", "image"), "image_grid": (3, 5), "guidance": 2.5},
        {"plan": ("text", "image", "audio", "image"), "image_grid": (4, 4), "guidance": 1.0},
        {"modalities": ("text",), "speculate": True, "temperature": 0.0},
        {"modalities": ("image",), "image_grid": None, "max_images": 2, "n": 2},
        {"plan": ("image", "text"), "image_grid": (1, 1), "logprobs": 2},
        {"plan": ("image",), "image_grid": (8, 8), "top_p": 0.7, "repetition_penalty": 1.3},
        {"plan": ("image",), "image_grid": (1, 9), "top_k": 3, "logprobs": 1},
        {"plan": ("image",), "image_grid": (9, 1), "temperature": 0.1},
    ]
    for number, kind in enumerate(kinds):
        messages = [{"role": "user", "content": f"picture {number % 3} " * (1 + number)}]
        options: dict[str, Any] = {"max_tokens": 100, "max_text": 9, "max_audio_codes": 5, **kind}
        made.append(Request(messages, seed=number, **options))
    return made


@pytest.fixture(scope="module")
def expected() -> list[Response]:
    torch.set_num_threads(1)
    return tiny.engine().answer(asked())


def ahead(window: int) -> list[Request]:
    return [replace(request, picture_window=window) for request in asked()]


def speculating(blocks: int, **limits: Any) -> Engine:
    runner = tiny.engine(blocks).runner
    return Engine(runner, tiny.processor(), Limits(**limits), draft=PromptLookup())


def alike(expected: list[Response], got: list[Response]) -> bool:
    return all(mixed.differences(*pair) == [] for pair in zip(expected, got, strict=True))


@pytest.mark.parametrize("window", WINDOWS)
def test_any_window_gives_the_same_answers(window: int, expected: list[Response]) -> None:
    engine = speculating(2000)
    assert alike(expected, mixed.arriving(engine, ahead(window), seed=window))
    metrics = engine.metrics()
    assert metrics["drafted"] > metrics["accepted"] > 0
    assert engine.blocks.used == 0
    engine.blocks.check()


@pytest.mark.parametrize(
    ("blocks", "limits"),
    [
        (20, {"reuse": False}),
        (20, {"chunk": 3, "tokens": 5}),
        (20, {"sequences": 4, "chunk": 16, "drafts": 0}),
        (2000, {"chunk": 5, "tokens": 9, "reuse": False}),
        (2000, {"tokens": 2}),
    ],
    ids=str,
)
def test_the_same_with_little_room(
    blocks: int, limits: dict[str, Any], expected: list[Response]
) -> None:
    engine = speculating(blocks, **limits)
    assert alike(expected, mixed.arriving(engine, ahead(8), seed=blocks))
    metrics = engine.metrics()
    assert (metrics["preempted"] > 0) == (blocks < 100)
    assert (metrics["drafted"] > 0) == (limits.get("tokens") != 2)
    assert engine.blocks.used == 0
    engine.blocks.check()


def test_the_oracle_agrees(expected: list[Response]) -> None:
    naive = tiny.naive()
    assert alike([naive.chat(request) for request in ahead(8)], expected)


def test_a_picture_takes_fewer_steps() -> None:
    """Codes that all but follow from the one before settle several at a time."""
    request = replace(asked()[1], image_grid=(8, 8), seed=3)
    steps = {}
    for window in (0, 8):
        engine = speculating(2000)
        engine.chat(replace(request, picture_window=window))
        metrics = engine.metrics()
        steps[window] = metrics["steps"]
        assert (metrics["drafted"] > 0) == (window > 0)
        assert metrics["tokens"] < 2 * (64 + 60) * max(window, 1)
    assert steps[8] < steps[0]


def test_next_codes_are_guesses_then_the_code_above_then_the_one_before() -> None:
    assert next_codes([], 3, [], 4, 9) == [9, 9, 9, 9]
    assert next_codes([], 2, [5, 6], 4, 9) == [5, 6, 5, 6]
    assert next_codes([1, 2], 4, [7], 4, 9) == [7, 7, 1, 2]
    assert next_codes([1, 2, 3, 4], 2, [7, 8, 5, 6], 3, 9) == [7, 8, 5]


def test_a_window_out_of_range_is_refused() -> None:
    for window in (-1, 65):
        with pytest.raises(RequestError, match="picture_window"):
            Request([], picture_window=window)
