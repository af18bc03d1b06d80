"""The image codec's reports: probes that read what is there, and an ablation from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from m27.codec.image import ImageCodec
from m27.train.image_codec import ImageCodecOptions
from m27.train.image_data import Pictures
from m27.train.image_report import mean_interval, pooled_digits
from recipes import card_sections, image_ablation, image_codec, image_probes


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two classes that any codec tells apart, for every probe."""

    def labelled(name: str, side: str, count: int) -> tuple[np.ndarray, list[str]]:
        rng = np.random.default_rng(len(name) + len(side))
        dark = rng.integers(0, 2, 20)
        rgb = np.where(dark[:, None, None, None] > 0, 20, 230) + rng.integers(0, 20, (20, 32, 32, 3))
        return rgb.astype(np.uint8), ["dark" if d else "light" for d in dark]

    monkeypatch.setattr(image_probes, "labelled", labelled)
    monkeypatch.setattr(image_probes, "PROBES", {"brightness": image_probes.PROBES["cifar10"]})


def test_probes_read_the_codes_and_say_how_sure_they_are(few: None) -> None:
    torch.manual_seed(0)
    row = image_probes.probes(ImageCodec().eval(), 20, 20)["brightness"]
    assert row["codes"]["classes"] == 2 and row["train"] == row["test"] == 20
    assert row["codes"]["accuracy"] >= row["constant"]
    for kind in ("codes", "single codes"):
        low, high = row[kind]["interval"]
        assert low <= row[kind]["accuracy"] <= high


def test_pooled_digits_count_what_codes_hold_wherever_it_is() -> None:
    codec = ImageCodec((4, 3)).eval()
    codes = torch.tensor([[[0, 5], [5, 5]], [[5, 5], [0, 5]]])
    pooled = pooled_digits(codec, codes)
    assert torch.equal(pooled[0], pooled[1])
    assert pooled[0].tolist() == [0.25, 0.75, 0, 0, 0.25, 0.75, 0, 0]


def test_a_means_interval_holds_it_and_narrows() -> None:
    few, many = mean_interval([1.0, 2.0, 3.0]), mean_interval([1.0, 2.0, 3.0] * 30)
    assert few[0] == many[0] == 2.0
    assert few[1] < many[1] < 2.0 < many[2] < few[2]


@pytest.mark.slow
def test_an_ablation_from_end_to_end(few: None, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3), dtype=np.uint8)
    groups = [Pictures("noise", pixels, [f"noise {i}" for i in range(8)], 1.0)]
    options = ImageCodecOptions(steps=2, batch=2, size=32, warmup=1, codec_warmup=1)
    made = image_ablation.ablation(
        options, tmp_path, groups, None, {"noise": pixels[:3], "more": pixels[3:6]}, (20, 20),
        None, torch.device("cpu"),
    )  # fmt: skip
    assert list(made["variants"]) == list(image_ablation.VARIANTS)
    revisions = {v["revision"] for v in made["variants"].values()}
    assert len(revisions) == 3  # the weights of the losses told them apart
    lines = image_ablation.table(made).splitlines()
    assert {line.count("|") for line in lines} == {5}
    assert any(line.startswith("| psnr, noise |") for line in lines)
    assert "teacher and captions" in card_sections.ablation(json.loads(json.dumps(made)))


def test_a_clock_is_the_next_such_time() -> None:
    import time

    ahead = image_codec.clock("00:00") - time.time()
    assert 0 < ahead <= 24 * 3600
