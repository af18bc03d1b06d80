"""The audio codec: shapes, streaming equals whole decoding, saving, odd inputs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from m27.codec import packing
from m27.codec.audio import AudioCodec, AudioConfig, at_codes
from m27.codec.packing import CodecError

SMALL = AudioConfig(
    whisper_blocks=1,
    whisper_dim=32,
    whisper_heads=2,
    encoder_dim=16,
    encoder_blocks=1,
    decoder_dim=24,
    decoder_blocks=4,
    look_ahead=3,
    bands=32,
)


@pytest.fixture(scope="module")
def codec() -> AudioCodec:
    """A small codec with random weights, loud enough to test."""
    torch.manual_seed(1)
    made = AudioCodec(SMALL).eval()
    with torch.no_grad():
        made.decoder.head.weight.mul_(4)
        made.decoder.head.bias[::3] += 1
    return made


def codes_of(count: int, seed: int = 0) -> torch.Tensor:
    """Random codes ``[1, count]``."""
    return torch.randint(0, 8192, (1, count), generator=torch.Generator().manual_seed(seed))


def test_one_codebook_of_8192_at_40_codes_a_second(codec: AudioCodec) -> None:
    assert codec.codebook_size == 8192
    assert codec.sample_rate / codec.hop == 40


@pytest.mark.parametrize("samples", [1, 399, 400, 401, 1_600, 16_000, 200_000])
def test_lengths(codec: AudioCodec, samples: int) -> None:
    wave = torch.randn(1, samples, generator=torch.Generator().manual_seed(2)) * 0.1
    codes = codec.encode(wave)
    count = -(-samples // 400)
    assert codes.shape == (1, count) and codes.dtype == torch.int64
    assert int(codes.min()) >= 0 and int(codes.max()) < 8192
    decoded = codec.decode(codes)
    assert decoded.shape == (1, count * 400)
    assert bool(torch.isfinite(decoded).all()) and float(decoded.abs().max()) <= 1


def test_silence_encodes_and_batches_do_not_mix(codec: AudioCodec) -> None:
    loud = torch.randn(1, 8_000, generator=torch.Generator().manual_seed(3)) * 0.3
    both = codec.encode(torch.cat([torch.zeros(1, 8_000), loud]))
    assert torch.equal(both[1:], codec.encode(loud))
    assert torch.equal(both[:1], codec.encode(torch.zeros(1, 8_000)))


@pytest.mark.parametrize("shape", [(1, 0), (100,), (1, 1, 100)])
def test_not_a_wave(codec: AudioCodec, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected samples"):
        codec.encode(torch.zeros(shape))


def test_not_finite(codec: AudioCodec) -> None:
    with pytest.raises(ValueError, match="not a finite number"):
        codec.encode(torch.tensor([[0.0, float("nan")]]))


@pytest.mark.parametrize("codes", [[[8192]], [[-1]]])
def test_codes_outside_the_codebook(codec: AudioCodec, codes: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="outside"):
        codec.decode(torch.tensor(codes))
    with pytest.raises(ValueError, match="outside"):
        codec.stream().push(codes[0])


def test_no_codes(codec: AudioCodec) -> None:
    with pytest.raises(ValueError, match="expected codes"):
        codec.decode(torch.zeros(1, 0, dtype=torch.long))
    assert codec.stream().flush().shape == (0,)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Products of several threads are summed in an order that may change with the number of rows (so on AVX2). The
    last digit of a pitch of over 1,000 Hz, which random weights give, is then a phase after some seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("step", [1, 3, 17, 90])
@pytest.mark.usefixtures("one_thread")
def test_stream_equals_whole(codec: AudioCodec, step: int) -> None:
    codes = codes_of(90)
    whole = codec.decode(codes)[0].numpy()
    assert float(np.abs(whole).max()) > 0.05
    stream = codec.stream()
    pieces = [stream.push(codes[0, at : at + step].numpy()) for at in range(0, 90, step)]
    pieces.append(stream.flush())
    streamed = np.concatenate(pieces)
    assert streamed.dtype == np.float32 and streamed.shape == whole.shape
    assert float(np.abs(streamed - whole).max()) < 5e-3
    assert len(stream._codes) < 60  # it forgets what it no longer needs


def test_first_packet_comes_before_the_last_code(codec: AudioCodec) -> None:
    stream = codec.stream()
    codes = codes_of(40)[0].tolist()
    waited = next(count for count, code in enumerate(codes, 1) if len(stream.push([code])))
    assert waited <= 8


def test_a_closed_stream_takes_no_more(codec: AudioCodec) -> None:
    stream = codec.stream()
    stream.flush()
    with pytest.raises(ValueError, match="after flush"):
        stream.push([1])


def test_what_comes_later_does_not_change_what_was_said(codec: AudioCodec) -> None:
    a, b = codes_of(60, 1), codes_of(60, 2)
    b[:, :30] = a[:, :30]
    certain = (30 - codec.decoder.look_ahead - 2) * 400
    one, two = codec.decode(a), codec.decode(b)
    assert torch.allclose(one[:, :certain], two[:, :certain], atol=1e-5)
    assert not torch.allclose(one, two, atol=1e-3)


def test_saved_and_loaded_is_the_same_codec(codec: AudioCodec, tmp_path: Path) -> None:
    codec.save(tmp_path)
    loaded = AudioCodec.load(tmp_path)
    assert loaded.config == codec.config
    assert loaded.revision == codec.revision and len(codec.revision) == 12
    again = AudioCodec.load(loaded.save(tmp_path / "again").parent)
    codes = codes_of(20)
    assert torch.equal(again.decode(codes), loaded.decode(codes))


def test_revision_follows_the_weights(codec: AudioCodec) -> None:
    before = codec.revision
    with torch.no_grad():
        codec.encoder.out.bias += 1
    after = codec.revision
    with torch.no_grad():
        codec.encoder.out.bias -= 1
    assert before != after


def test_codes_revision_follows_what_determines_codes_alone(codec: AudioCodec) -> None:
    before, whole = codec.codes_revision, codec.revision
    changed: dict[str, tuple[bool, bool]] = {}
    for name in ("encoder.out.bias", "ear.conv1.bias", "decoder.norm.bias", "encoder.mean"):
        tensor = codec.state_dict()[name]
        tensor += 1
        changed[name] = (codec.codes_revision != before, codec.revision != whole)
        tensor -= 1
    assert len(before) == 12 and codec.codes_revision == before
    assert changed.pop("decoder.norm.bias") == (False, True)
    assert set(changed.values()) == {(True, True)}


def test_load_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(CodecError, match=r"audio_codec\.safetensors"):
        AudioCodec.load(tmp_path)
    (tmp_path / "audio_codec.safetensors").write_bytes(b"no")
    with pytest.raises(CodecError, match="not a readable safetensors file"):
        AudioCodec.load(tmp_path)
    packing.write(tmp_path / "audio_codec.safetensors", {"x": torch.zeros(1)}, {"config": "{}"})
    with pytest.raises(CodecError, match="not an audio codec"):
        AudioCodec.load(tmp_path)


def test_packing_keeps_to_a_hundredth() -> None:
    weight = torch.randn(80, 64, generator=torch.Generator().manual_seed(4))
    packed = packing.pack({"w": weight, "b": weight[0]})
    assert packed["w"].dtype == torch.int8 and packed["b"].dtype == torch.float16
    assert float((packing.unpack(packed)["w"] - weight).abs().max()) < 0.03
    assert packing.revision(packed) == packing.revision(packing.pack(packing.unpack(packed)))


def test_states_are_read_at_the_middle_of_codes() -> None:
    ramp = (torch.arange(100.0) * 320)[None, :, None]  # each state holds its centre's sample number
    assert torch.allclose(at_codes(ramp, 50)[0, :, 0], torch.arange(50) * 400.0 + 200)


def test_full_size_fits_the_budget() -> None:
    full = AudioCodec()
    int8 = sum(p.numel() for p in full.parameters() if p.ndim >= 2)
    rest = sum(p.numel() for p in full.parameters() if p.ndim < 2)
    assert int8 + 4 * rest < 22_000_000
