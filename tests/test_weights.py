"""The shipped weights: they open, still speak, see and draw, and keep to the size they may have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from m27.infer.engine import Engine
from m27.infer.request import Request

WEIGHTS = Path(__file__).parents[1] / "weights" / "m27-nano"
SAMPLES = Path(__file__).parents[1] / "examples" / "samples"


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load(WEIGHTS)


def test_weights_keep_to_their_size() -> None:
    sizes = {path.name: path.stat().st_size for path in WEIGHTS.iterdir()}
    assert sum(sizes.values()) <= 160_000_000
    # A later release replaces all but the base and the vocabulary.
    stays = ("base.safetensors", "tokenizer.json")
    assert sum(size for name, size in sizes.items() if name not in stays) <= 60_000_000


def test_the_language_model_is_intact(engine: Engine) -> None:
    question = [{"role": "user", "content": "What is the capital of France?"}]
    answer = engine.chat(
        Request(messages=question, modalities=("text",), max_tokens=24, temperature=0.0)
    )
    assert "Paris" in answer.text


def test_a_picture_and_a_sound_go_in_and_come_out(engine: Engine) -> None:
    content = [
        {"type": "image", "path": str(SAMPLES / "caption.png")},
        {"type": "audio", "path": str(SAMPLES / "note.wav")},
        {"type": "text", "text": "Draw and play something like it."},
    ]
    answer = engine.chat(
        Request(
            messages=[{"role": "user", "content": content}],
            plan=("image", "audio"),
            max_audio_codes=12,
            max_tokens=120,
            guidance=1.0,
            seed=1,
        )
    )
    image, audio = (
        next(p for p in answer.content if p["type"] == kind) for kind in ("image", "audio")
    )
    assert image["image"].shape == (128, 128, 3)
    assert np.isfinite(audio["audio"]).all()
    assert 1 <= len(audio["codes"]) <= 12


def test_codecs_carry_what_they_are_given(engine: Engine) -> None:
    """A flat red picture comes back red: the shipped encoder and decoder belong together."""
    red = np.zeros((128, 128, 3), np.uint8)
    red[..., 0] = 220
    message = {"role": "user", "content": [{"type": "image", "image": red}]}
    ids = engine.processor.encode([message]).ids
    begin = ids.index(engine.processor.vocabulary.image_begin)
    (part,) = engine.processor.decode(ids[begin : begin + 68])
    mean = np.asarray(part["image"], np.float32).mean((0, 1))
    assert mean[0] > 120
    assert mean[0] > 2 * mean[1]
    assert mean[0] > 2 * mean[2]
