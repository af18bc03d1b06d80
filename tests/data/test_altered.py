"""Altered media: the same size, repeatable, and other than what was given by as much as is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from m27.data import altered, build, templates
from m27.language.processor import Processor
from tests import tiny
from tests.data.test_templates import LEVELS, documents


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_pictures_keep_their_size_and_their_ground() -> None:
    pixels = torch.ones(8, 3, 48, 64)
    pixels[:, :, 10:30, 8:24] = torch.tensor([0.8, 0.2, 0.1])[:, None, None]
    made = altered.pictures(pixels, seeded())
    assert made.shape == pixels.shape and made.min() >= 0 and made.max() <= 1
    assert torch.equal(made, altered.pictures(pixels, seeded()))
    assert not torch.equal(made, altered.pictures(pixels, seeded(1)))
    assert made[:, :, 0].min() > 0.9  # what comes into sight is ground
    middle = made.mean((0, 1, 2))
    assert middle[:32].mean() < middle[32:].mean()  # not mirrored unless asked for
    both = altered.pictures(pixels, seeded(), mirrored=True).mean((1, 2))
    left = both[:, :32].mean(1) < both[:, 32:].mean(1)
    assert left.any() and not left.all()


def test_flat_gains_leave_a_sound_as_it_was() -> None:
    wave = torch.randn(2, 5_001, generator=seeded())
    flat = altered.curve(torch.zeros(2, altered.POINTS))
    out = altered.through(wave, flat, torch.zeros(2, dtype=torch.bool))
    assert out.shape == wave.shape and torch.allclose(out, wave, atol=1e-5)


@pytest.mark.parametrize(("hertz", "kept"), [(100, False), (1_000, True), (6_000, False)])
def test_a_telephone_carries_its_band_alone(hertz: int, kept: bool) -> None:
    wave = torch.sin(torch.arange(16_000) * 2 * torch.pi * hertz / altered.SAMPLE_RATE)[None]
    flat = altered.curve(torch.zeros(1, altered.POINTS))
    out = altered.through(wave, flat, torch.ones(1, dtype=torch.bool))
    power = float(out[:, 2_000:-2_000].square().mean() / wave[:, 2_000:-2_000].square().mean())
    assert power > 0.9 if kept else power < 0.01


def test_an_equaliser_lifts_where_it_is_told_to() -> None:
    gains = altered.curve(torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.0, 12.0]]))[0]
    assert gains[0] == 1 and gains[-1] == pytest.approx(10 ** (12 / 20), rel=1e-3)
    assert bool((gains.diff() >= 0).all())


def test_sounds_keep_their_size_and_never_clip() -> None:
    wave = 0.9 * torch.sin(torch.arange(9_000) / 7)[None].repeat(4, 1)
    made = altered.sounds(wave, seeded())
    assert made.shape == wave.shape and made.abs().max() <= 0.981
    assert torch.equal(made, altered.sounds(wave, seeded()))
    assert not altered.sounds(torch.zeros(1, 2_000), seeded()).any()


def test_a_template_is_filled_again_with_altered_media_of_some_tasks(tmp_path: Path) -> None:
    processor = tiny.processor()
    plain = Processor(tiny.TOKENIZER, tiny.VOCABULARY)
    templates.build(documents(), plain, LEVELS, tmp_path / "t", packed=False)
    templates.fill(tmp_path / "t", processor, tmp_path / "given")
    chosen = [d for d in documents() if d["task"] == "see"]
    build.build(chosen, processor, tmp_path / "built")
    count = templates.fill(tmp_path / "t", processor, tmp_path / "same", tasks=("see",))
    assert 0 < count < 19
    for name in ("tokens.bin", "loss.bin", "index.npy", "tasks.npy"):
        assert (tmp_path / "same" / name).read_bytes() == (tmp_path / "built" / name).read_bytes()
    told = [json.loads((tmp_path / n / "meta.json").read_text()) for n in ("same", "built")]
    for key in ("tasks", "documents", "tokens", "tokens_by_task", "targets_by_task"):
        assert told[0][key] == told[1][key], key

    def alter(x: torch.Tensor) -> torch.Tensor:
        return altered.pictures(x, seeded(), True) if x.dim() == 4 else altered.sounds(x, seeded())

    templates.fill(tmp_path / "t", processor, tmp_path / "other", alter=alter, tasks=("see",))
    same, other = (np.fromfile(tmp_path / n / "tokens.bin", np.uint32) for n in ("same", "other"))
    assert len(same) == len(other) and 0 < (same != other).mean() < 0.9
    with pytest.raises(build.ShardError, match="no document of sing"):
        templates.fill(tmp_path / "t", processor, tmp_path / "none", tasks=("sing",))
