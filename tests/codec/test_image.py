"""The image codec: shapes at any allowed size, batch == one by one, what is saved is what is
loaded."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from m27.codec import packing
from m27.codec.image import FILE, ImageCodec
from m27.codec.packing import CodecError
from m27.codec.trunk import STAGES, Trunk, from_published


@pytest.fixture(scope="module")
def codec() -> ImageCodec:
    torch.manual_seed(0)
    return ImageCodec().eval().requires_grad_(False)


@pytest.mark.parametrize(("height", "width"), [(128, 128), (16, 48), (80, 16)])
def test_shapes(codec: ImageCodec, height: int, width: int) -> None:
    codes = codec.encode(torch.rand(2, 3, height, width))
    assert codes.shape == (2, height // 16, width // 16)
    assert int(codes.min()) >= 0
    assert int(codes.max()) < codec.codebook_size == 16384
    pixels = codec.decode(codes)
    assert pixels.shape == (2, 3, height, width)
    assert float(pixels.min()) >= 0
    assert float(pixels.max()) <= 1


def test_a_batch_is_its_pictures_one_by_one(codec: ImageCodec) -> None:
    pixels = torch.rand(3, 3, 64, 64)
    together = codec.encode(pixels)
    apart = torch.cat([codec.encode(p[None]) for p in pixels])
    assert (together == apart).float().mean() > 0.99  # a code on a cell's edge may fall either way
    assert torch.allclose(
        codec.decode(together), torch.cat([codec.decode(c[None]) for c in together]), atol=1e-4
    )


def test_decoding_is_by_the_codes_vectors_alone(codec: ImageCodec) -> None:
    q, codes, _ = codec.quantize(torch.rand(1, 3, 32, 32))
    assert torch.allclose(codec.decoder(q).clamp(0, 1), codec.decode(codes), atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "words"),
    [((1, 3, 100, 128), "100×128"), ((1, 3, 528, 16), "528×16"), ((3, 16, 16), "3, 16, 16")],
)
def test_bad_pixels_are_named(codec: ImageCodec, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(CodecError, match=words):
        codec.encode(torch.zeros(shape))


def test_bad_codes_are_named(codec: ImageCodec) -> None:
    with pytest.raises(CodecError, match="16384"):
        codec.decode(torch.full((1, 2, 2), 16384))
    with pytest.raises(CodecError, match=r"\[B, h, w\]"):
        codec.decode(torch.zeros(2, 2, dtype=torch.long))


def test_saved_and_loaded(codec: ImageCodec, tmp_path: Path) -> None:
    codec.save(tmp_path)
    first = ImageCodec.load(tmp_path)
    first.save(tmp_path / "again")
    second = ImageCodec.load(tmp_path / "again")
    assert first.revision == codec.revision == ImageCodec.load(tmp_path).revision
    pixels = torch.rand(1, 3, 64, 64)
    assert torch.equal(first.encode(pixels), second.encode(pixels))
    assert not list(tmp_path.rglob("*.tmp"))
    with pytest.raises(CodecError, match="no image codec"):
        ImageCodec.load(tmp_path / "nowhere")


def test_weights_too_small_for_float16_scales_survive_many_saves(tmp_path: Path) -> None:
    """Dead channels of the published trunk have such; each saving moved them a little."""
    torch.manual_seed(0)
    codec = ImageCodec()
    with torch.no_grad():
        codec.trunk.blocks[3].expand.weight *= 1e-5  # type: ignore[union-attr]
    codec.save(tmp_path)
    first = ImageCodec.load(tmp_path)
    with torch.no_grad():
        first.decoder.out.bias += 1
    first.save(tmp_path / "again")
    second = ImageCodec.load(tmp_path / "again")
    assert second.codes_revision == first.codes_revision
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]) or name == "decoder.out.bias", name


def test_codes_are_told_apart_by_what_makes_them_not_by_the_decoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    codec = ImageCodec()
    codec.save(tmp_path)
    before = codec.codes_revision
    assert ImageCodec.load(tmp_path).codes_revision == before  # rounding once is rounding
    with torch.no_grad():
        codec.decoder.out.bias += 1
    whole = codec.revision
    codec.save(tmp_path)
    assert codec.codes_revision == before and codec.revision != whole
    with torch.no_grad():
        codec.neck.out.bias += 1
    assert codec.codes_revision != before
    assert ImageCodec((4, 4)).codes_revision != before


def test_a_file_that_is_not_a_whole_codec_is_named(codec: ImageCodec, tmp_path: Path) -> None:
    whole, about = packing.read(codec.save(tmp_path))
    few = {name: tensor for name, tensor in whole.items() if not name.startswith("neck.out.")}
    bent = {**whole, "neck.out.bias": torch.zeros(2)}
    for tensors, metadata, words in (
        (few, about, "neck.out"),
        (bent, about, "not an image codec"),
        (whole, {"config": json.dumps({"levels": codec.levels})}, "not an image codec"),
        (whole, {}, "not an image codec"),
    ):
        packing.write(tmp_path / FILE, tensors, metadata)
        with pytest.raises(CodecError, match=words) as caught:
            ImageCodec.load(tmp_path)
        assert str(tmp_path / FILE) in str(caught.value)


def test_norms_fold_into_convolutions() -> None:
    """The trunk's first layers with folded norms equal convolution, then batch norm, spelled
    out."""
    torch.manual_seed(1)
    trunk = Trunk()
    state: dict[str, torch.Tensor] = {}

    def published(conv: str, norm: str, module: torch.nn.Module) -> None:
        weight = module.get_parameter("weight")
        state[f"{conv}.weight"] = torch.randn_like(weight)
        n = weight.shape[0]
        state[f"{norm}.weight"], state[f"{norm}.bias"] = torch.rand(n) + 0.5, torch.randn(n)
        state[f"{norm}.running_mean"], state[f"{norm}.running_var"] = (
            torch.randn(n),
            torch.rand(n) + 0.5,
        )

    published("_conv_stem", "_bn0", trunk.stem)
    published("_conv_head", "_bn1", trunk.head)
    for i, block in enumerate(trunk.blocks):
        names = [("expand", "_expand_conv", "_bn0")] if i else []
        names += [("depthwise", "_depthwise_conv", "_bn1"), ("project", "_project_conv", "_bn2")]
        for own, conv, norm in names:
            published(f"_blocks.{i}.{conv}", f"_blocks.{i}.{norm}", getattr(block, own))
    trunk.load_state_dict(from_published(state))
    assert len(trunk.blocks) == sum(s[0] for s in STAGES) == 16
    x = torch.rand(1, 3, 32, 32)
    y = F.conv2d(F.pad((x * 255 - 127) / 128, (0, 1, 0, 1)), state["_conv_stem.weight"], stride=2)
    y = F.batch_norm(
        y,
        state["_bn0.running_mean"],
        state["_bn0.running_var"],
        state["_bn0.weight"],
        state["_bn0.bias"],
        eps=1e-3,
    )
    assert torch.allclose(trunk.stem((x * 255 - 127) / 128), y, atol=1e-3)


def test_the_revision_does_not_depend_on_the_layout_in_memory(codec: ImageCodec) -> None:
    before = codec.codes_revision
    copied: torch.nn.Module = copy.deepcopy(codec)
    copied.to(memory_format=torch.channels_last)
    assert copied.codes_revision == before
