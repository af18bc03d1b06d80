"""Codec training: it learns, and a run that is stopped and resumed equals one that is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from m27.train.image_codec import ImageCodecOptions, ImageCodecTrainer
from m27.train.image_data import Pictures, draw_batch
from m27.train.image_report import probe, psnr, ssim, use

OPTIONS = ImageCodecOptions(steps=4, batch=4, size=32, warmup=1)


@pytest.fixture(scope="module")
def groups() -> list[Pictures]:
    rng = np.random.default_rng(0)
    flat = np.repeat(rng.integers(0, 255, (8, 1, 1, 3), dtype=np.uint8), 32, 1).repeat(32, 2)
    noise = rng.integers(0, 255, (4, 16, 16, 3), dtype=np.uint8)
    return [
        Pictures("flat", flat, [f"colour {i}" for i in range(8)], 1.0),
        Pictures("noise", noise, ["noise"] * 4, 0.5),
    ]


def test_a_batch_depends_on_the_step_alone(groups: list[Pictures]) -> None:
    a, captions = draw_batch(groups, 4, 32, 0, 3)
    b, again = draw_batch(groups, 4, 32, 0, 3)
    assert torch.equal(a, b)
    assert captions == again
    assert a.shape == (4, 3, 32, 32)
    assert not torch.equal(a, draw_batch(groups, 4, 32, 0, 4)[0])


def test_resumed_equals_uninterrupted(groups: list[Pictures], tmp_path: Path) -> None:
    whole = ImageCodecTrainer(None, OPTIONS, tmp_path / "whole")
    whole.run(groups, log_every=1)
    first = ImageCodecTrainer(None, OPTIONS, tmp_path / "parts")
    for _ in range(2):
        first.train_step(groups)
    first.save()
    second = ImageCodecTrainer(None, OPTIONS, tmp_path / "parts")
    assert second.resume()
    assert second.step == 2
    second.run(groups, log_every=1)
    for (name, a), (_, b) in zip(
        whole.codec.state_dict().items(), second.codec.state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), name
    assert (tmp_path / "whole" / "log.jsonl").read_text().count("\n") == 4


def test_scores() -> None:
    a = torch.rand(2, 3, 32, 32)
    assert torch.allclose(ssim(a, a), torch.ones(2), atol=1e-5)
    assert float(psnr(a, (a + 0.1)).mean()) == pytest.approx(20.0, abs=1e-3)
    assert float(ssim(a, torch.rand(2, 3, 32, 32)).max()) < 0.5
    even = use(torch.arange(16), 16)
    assert even["perplexity"] == pytest.approx(16)
    assert even["used"] == 1
    assert use(torch.zeros(9, dtype=torch.long), 16)["perplexity"] == pytest.approx(1)


def test_probe_finds_what_is_there_and_not_what_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 10, (400,), generator=generator)
    x = torch.nn.functional.one_hot(y, 10).float() + 0.1 * torch.randn(400, 10, generator=generator)
    assert probe((x[:300], y[:300]), (x[300:], y[300:]), (0.1, 10)) > 0.98
    shuffled = y[torch.randperm(400, generator=generator)]
    assert probe((x[:300], shuffled[:300]), (x[300:], shuffled[300:]), (0.1, 10)) < 0.3
