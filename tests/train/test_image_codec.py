"""Codec training: it learns, and a run that is stopped and resumed equals one that is not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from m27.codec.image import ImageCodec
from m27.train.image_adversary import Critic, balanced
from m27.train.image_codec import ImageCodecOptions, ImageCodecTrainer
from m27.train.image_data import Bank, Pictures, hash_captions
from m27.train.image_losses import (
    colour_loss,
    correlation_loss,
    feature_loss,
    opponent,
    patch_colours,
    pixel_loss,
    recognised_loss,
)
from m27.train.image_report import probe, psnr, ssim, use
from m27.train.image_shapes import NAMED, shapes
from tests.train.test_audio_live import without_autocast

OPTIONS = ImageCodecOptions(steps=4, batch=4, size=32, warmup=1, codec_warmup=1)
ADVERSE = replace(OPTIONS, adversarial=0.5, critic_alone=1)
DEEP = replace(
    OPTIONS, adversarial=0.5, critic_alone=1, recognised=0.5, adversary_from=0.25,
    widths=(64, 32, 16, 8),
)  # fmt: skip


@pytest.fixture(scope="module")
def groups() -> list[Pictures]:
    rng = np.random.default_rng(0)
    flat = np.repeat(rng.integers(0, 255, (8, 1, 1, 3), dtype=np.uint8), 32, 1).repeat(32, 2)
    noise = rng.integers(0, 255, (4, 16, 16, 3), dtype=np.uint8)
    return [
        Pictures("flat", flat, [f"colour {i}" for i in range(8)], 1.0),
        Pictures("noise", noise, ["noise"] * 4, 0.5),
    ]


def test_a_batch_depends_on_seed_and_step_alone(groups: list[Pictures]) -> None:
    a, b = Bank(groups).draw(4, 32, 0, 3), Bank(groups).draw(4, 32, 0, 3)
    assert torch.equal(a.pixels, b.pixels)
    assert torch.equal(a.words, b.words) and torch.equal(a.captions, b.captions)
    assert a.pixels.shape == (4, 3, 32, 32)
    assert not torch.equal(a.pixels, Bank(groups).draw(4, 32, 0, 4).pixels)
    assert not torch.equal(a.pixels, Bank(groups).draw(4, 32, 1, 3).pixels)


def test_drawn_pictures_are_the_stored_ones_mirrored_or_enlarged() -> None:
    """Against plain indexing, flipping and enlarging, of those that are not zoomed into."""
    pixels = np.random.default_rng(1).integers(0, 255, (6, 16, 16, 3), dtype=np.uint8)
    bank = Bank([Pictures("noise", pixels, [f"number {i}" for i in range(6)], 1.0)])
    whole = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    large = F.interpolate(whole, (32, 32), mode="bicubic", align_corners=False).clamp(0, 1)
    drawn = bank.draw(24, 32, 0, 0)
    same = 0
    for x, caption in zip(drawn.pixels, drawn.captions, strict=True):
        i = int((bank.captions[0] == caption).nonzero())
        ways = torch.stack([large[i], large[i].flip(-1)])
        same += bool((ways - x).abs().amax((1, 2, 3)).min() < 1e-3)
    assert 12 <= same < 24


def test_captions_are_hashed_word_by_word() -> None:
    words, whole = hash_captions(["A red fox", "red fox, a", "fox", ""])
    assert set(words[0].tolist()) == set(words[1].tolist()) and whole[0] == whole[1]
    assert words[2, 0] == words[0, 2] and whole[2] != whole[0]
    assert int(words[3].sum()) == 0


@pytest.mark.parametrize(
    "options", [ADVERSE, replace(ADVERSE, stage="decoder"), DEEP], ids=["all", "decoder", "deep"]
)
def test_resumed_equals_uninterrupted(
    options: ImageCodecOptions, groups: list[Pictures], tmp_path: Path
) -> None:
    whole = ImageCodecTrainer(None, options, tmp_path / "whole")
    whole.run(groups, log_every=1)
    first = ImageCodecTrainer(None, options, tmp_path / "parts")
    for _ in range(2):
        first.train_step(Bank(groups))
    first.save()
    second = ImageCodecTrainer(None, options, tmp_path / "parts")
    assert second.resume()
    assert second.step == 2
    second.run(groups, log_every=1)
    for part, module in whole.modules.items():
        for name, value in module.state_dict().items():
            assert torch.equal(value, second.modules[part].state_dict()[name]), (part, name)
    rows = [json.loads(r) for r in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert len(rows) == 4 and "fooled" in rows[-1] and "fooled" not in rows[0]
    assert ImageCodec.load(tmp_path / "whole").widths == options.widths


def test_no_step_waits_for_its_device(
    groups: list[Pictures], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device with shapes and no values, a value that the host asks for and a tensor left elsewhere are errors."""
    without_autocast(monkeypatch)
    trainer = ImageCodecTrainer(None, DEEP, tmp_path, "meta")
    trainer.step = 3
    made = trainer.train_step(Bank(groups, "meta"))
    assert {"recognised", "fooled", "critic", "teacher", "unique"} <= set(made)
    assert {value.device.type for value in made.values()} == {"meta"}


def test_a_wider_decoder_goes_on_from_the_same_codes(tmp_path: Path) -> None:
    torch.manual_seed(1)
    ImageCodec().save(tmp_path)
    shipped = ImageCodec.load(tmp_path)
    trainer = ImageCodecTrainer(None, replace(DEEP, stage="decoder"), tmp_path / "run")
    trainer.begin_from(tmp_path)
    trainer.codec.save(tmp_path / "wide")
    wide = ImageCodec.load(tmp_path / "wide")
    pixels = torch.rand(2, 3, 32, 32)
    assert wide.widths == DEEP.widths != shipped.widths
    assert torch.equal(wide.encode(pixels), shipped.encode(pixels))
    assert wide.codes_revision == shipped.codes_revision
    assert wide.decode(wide.encode(pixels)).shape == (2, 3, 32, 32)


def test_what_is_recognised_is_nought_for_the_same_picture_and_grows() -> None:
    torch.manual_seed(0)
    trunk, last = ImageCodec().trunk.requires_grad_(False), torch.randn(2, 320, 2, 2)
    early = [torch.zeros(1)] * 3  # which count for nothing here
    given, other = [*early, last], [*early, last.roll(1, 0)]
    assert float(recognised_loss(trunk, given, given)) == pytest.approx(0, abs=1e-5)
    assert float(recognised_loss(trunk, other, given)) > 0.5


def test_the_decoder_stage_leaves_every_code_as_it_was(
    groups: list[Pictures], tmp_path: Path
) -> None:
    torch.manual_seed(3)
    begun = ImageCodec()
    begun.save(tmp_path / "first")
    shipped = ImageCodec.load(tmp_path / "first")
    options = replace(ADVERSE, stage="decoder", steps=3)
    trainer = ImageCodecTrainer(None, options, tmp_path / "run")
    trainer.begin_from(tmp_path / "first")
    trainer.run(groups)
    after = ImageCodec.load(tmp_path / "run")
    pixels = torch.rand(3, 3, 32, 32)
    assert torch.equal(after.encode(pixels), shipped.encode(pixels))
    assert after.codes_revision == shipped.codes_revision
    assert after.revision != shipped.revision
    assert not torch.equal(after.decode(after.encode(pixels)), shipped.decode(after.encode(pixels)))
    for part in (after.trunk, after.neck):
        for name, value in part.state_dict().items():
            assert torch.equal(value, shipped.get_submodule(part_of(part)).state_dict()[name]), name


def part_of(module: torch.nn.Module) -> str:
    return type(module).__name__.lower()


def test_one_pass_through_the_pixels_gives_the_gradient_of_the_sum(
    groups: list[Pictures], tmp_path: Path
) -> None:
    """Against autograd on the weighted sum of all losses, spelled out, without an adversary."""
    trainer = ImageCodecTrainer(None, OPTIONS, tmp_path)
    trainer.narrow = False  # whatever the processor has: what is spelled out below is in float32
    for parameter in trainer.codec.decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    batch = Bank(groups).draw(4, 32, 0, 0)
    trainer.backward(batch)
    got = {n: p.grad for n, p in trainer.codec.named_parameters() if p.grad is not None}
    trainer.codec.zero_grad()
    q, _, maps = trainer.codec.quantize(batch.pixels)
    y = trainer.codec.decoder(q)
    with torch.no_grad():
        pooled = trainer.codec.trunk.pooled(maps[3])
    teacher, contrast, shown = trainer.heads.losses(
        q, batch.pixels, maps[3], pooled, batch.words, batch.captions
    )
    o = OPTIONS
    seen = o.pixel * pixel_loss(y, batch.pixels) + o.colour * colour_loss(y, batch.pixels)
    seen = seen + o.perceptual * feature_loss(trainer.codec.trunk(y, 5), maps)
    meant = o.teacher * teacher + o.captions * contrast + o.code_colour * shown
    (seen + meant + o.apart * correlation_loss(q)).backward()
    assert len(got) > 60
    for name, parameter in trainer.codec.named_parameters():
        if name in got:
            assert torch.allclose(got[name], parameter.grad, atol=1e-5, rtol=1e-3), name


def test_a_shifted_colour_costs_more_than_a_shifted_luma_and_blur_costs_little() -> None:
    red = torch.tensor([0.8, 0.1, 0.1]).view(1, 3, 1, 1).expand(2, 3, 32, 32)
    shift = torch.tensor([0.1, -0.05, 0.0]).view(1, 3, 1, 1)  # of chroma, nearly none of luma
    assert float(colour_loss(red + shift, red)) > 2 * float(colour_loss(red + 0.02, red))
    checks = (torch.arange(32)[:, None] + torch.arange(32)) % 2 * 0.2
    assert float(colour_loss(red + checks - 0.1, red)) < 1e-6 < float(pixel_loss(red + checks, red))
    assert torch.allclose(opponent(torch.ones(1, 3, 2, 2))[0, :, 0, 0], torch.tensor([1.0, 0, 0]))
    line = torch.ones(1, 3, 16, 16)
    line[:, 1:, 4] = 0
    mean, strong = patch_colours(line, 16)[0, :, 0, 0].split(3)
    assert strong[2] > 5 * mean[2] > 0


def test_the_adversarys_pull_is_a_share_of_the_rest_and_turns_none_off() -> None:
    torch.manual_seed(0)
    rest, pull = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4) * 1e3
    both = balanced(rest, pull, 0.5)
    assert float((both - rest).norm() / rest.norm()) == pytest.approx(0.5, rel=1e-4)
    assert torch.equal(balanced(rest, torch.zeros_like(pull), 0.5), rest)


def test_a_critic_learns_to_tell_and_its_means_follow() -> None:
    torch.manual_seed(0)
    critic = Critic(8)
    optimizer = torch.optim.Adam(critic.parameters(), lr=5e-3)
    maps = [torch.zeros(4, 24, 8, 8), torch.zeros(4, 40, 4, 4)]
    first = None
    for _ in range(25):
        sharp, flat = torch.rand(4, 3, 32, 32), torch.full((4, 3, 32, 32), 0.5)
        loss = critic.loss(critic(sharp, maps), critic(flat, maps), 0.01)
        first = float(loss.detach()) if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.7 * first
    assert float(critic.given) > float(critic.made)


def test_shapes_are_named_after_their_colours() -> None:
    group = shapes(8, side=32, seed=1)
    assert group.pixels.shape == (8, 32, 32, 3) and len(group.captions) == 8
    assert np.array_equal(group.pixels, shapes(8, side=32, seed=1).pixels)
    assert all(c.split()[0] in NAMED for c in group.captions)


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
