"""The vocoder's second half: it begins as nothing, streams as it decodes, and leaves codes alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from m27.codec import packing
from m27.codec.audio import FILE, AudioCodec, AudioConfig
from m27.codec.istft import features
from m27.codec.packing import CodecError

SMALL = AudioConfig(
    whisper_blocks=1,
    whisper_dim=32,
    whisper_heads=2,
    encoder_dim=16,
    encoder_blocks=1,
    decoder_dim=24,
    decoder_blocks=2,
    look_ahead=2,
    bands=32,
    refiner_dim=16,
    refiner_blocks=1,
)


def made(vocoder: str, work: float = 0.0) -> AudioCodec:
    """A small codec whose refiner, where it has one, does ``work`` times something random."""
    torch.manual_seed(1)
    codec = AudioCodec(SMALL).eval()
    with torch.no_grad():
        codec.decoder.head.weight.mul_(4)
        codec.decoder.head.bias[::3] += 1
        if vocoder == "istft":
            codec.add_refiner()
            assert codec.refiner is not None
            codec.refiner.out.weight.normal_(0, 0.2 * work)
            codec.refiner.out.bias.normal_(0, work)
    return codec.eval()


def codes_of(count: int, seed: int = 0) -> torch.Tensor:
    """Random codes ``[1, count]``."""
    return torch.randint(0, 8192, (1, count), generator=torch.Generator().manual_seed(seed))


def test_a_new_refiner_changes_no_bit() -> None:
    codes = codes_of(40)
    assert torch.equal(made("istft").decode(codes), made("source-filter").decode(codes))
    assert not torch.equal(made("istft", 1.0).decode(codes), made("source-filter").decode(codes))


def test_a_refiner_changes_no_code() -> None:
    wave = torch.randn(1, 8_000, generator=torch.Generator().manual_seed(2)) * 0.2
    plain, refined = made("source-filter"), made("istft", 1.0)
    assert torch.equal(plain.encode(wave), refined.encode(wave))
    assert plain.codes_revision == refined.codes_revision
    assert plain.revision != refined.revision


def test_no_gain_is_silence_and_a_turn_keeps_the_size() -> None:
    codec = made("istft")
    assert codec.refiner is not None
    wave = torch.randn(1, 8_000, generator=torch.Generator().manual_seed(3)) * 0.1
    states = torch.zeros(1, 40, 16)
    bins = codec.refiner.out.bias.shape[0] // 2
    with torch.no_grad():
        codec.refiner.out.bias[:bins] = -9.0  # as low as it goes: e^-6
        quiet = codec.refiner(wave, states)[:, 1_000:-1_000]
        codec.refiner.out.bias[:bins] = 0.0
        codec.refiner.out.bias[bins:] = torch.pi
        turned = codec.refiner(wave, states)[:, 1_000:-1_000]
    inner = wave[:, 1_000:-1_000]
    assert torch.allclose(quiet, inner * np.exp(-6), atol=1e-5)
    # The real lowest and highest bins turn as well, by pi: everything is negated.
    assert torch.allclose(turned, -inner, atol=1e-4)


@pytest.mark.parametrize("step", [3, 17])
def test_stream_equals_whole(step: int) -> None:
    codec = made("istft", 1.0)
    codes = codes_of(60)
    whole = codec.decode(codes)[0].numpy()
    stream = codec.stream()
    pieces = [stream.push(codes[0, at : at + step].numpy()) for at in range(0, 60, step)]
    streamed = np.concatenate([*pieces, stream.flush()])
    assert streamed.shape == whole.shape
    # Phases add up in float32, and how they round depends on the processor: 0.0012 to 0.0056 were seen.
    assert float(np.abs(streamed - whole).max()) < 1e-2
    assert len(stream._codes) < 50  # it forgets what it no longer needs


def test_the_look_ahead_is_bounded() -> None:
    codec = made("istft", 1.0)
    stream = codec.stream()
    sizes = [len(stream.push([code])) for code in codes_of(30)[0].tolist()]
    waited = next(count for count, size in enumerate(sizes, 1) if size)
    assert waited <= codec.config.look_ahead + 5
    assert set(sizes[waited:]) == {400}


def test_what_comes_later_does_not_change_what_was_said() -> None:
    codec = made("istft", 1.0)
    a, b = codes_of(40, 1), codes_of(40, 2)
    b[:, :25] = a[:, :25]
    certain = (25 - codec.config.look_ahead - 4) * 400
    one, two = codec.decode(a), codec.decode(b)
    assert torch.allclose(one[:, :certain], two[:, :certain], atol=1e-4)
    assert not torch.allclose(one, two, atol=1e-3)


def test_saved_and_loaded_is_the_same_codec(tmp_path: Path) -> None:
    codec = made("istft", 1.0)
    loaded = AudioCodec.load(codec.save(tmp_path).parent)
    assert loaded.config == codec.config and loaded.config.vocoder == "istft"
    again = AudioCodec.load(
        loaded.save(tmp_path / "again", "other.safetensors").parent, name="other.safetensors"
    )
    assert torch.equal(again.decode(codes_of(20)), loaded.decode(codes_of(20)))


def test_a_file_from_before_loads_as_source_filter(tmp_path: Path) -> None:
    codec = made("source-filter")
    tensors, metadata = packing.read(codec.save(tmp_path))
    fields = json.loads(metadata["config"])
    old = {k: v for k, v in fields.items() if k not in ("vocoder", "refiner_dim", "refiner_blocks")}
    packing.write(tmp_path / FILE, tensors, {"config": json.dumps(old)})
    loaded = AudioCodec.load(tmp_path)
    assert loaded.config.vocoder == "source-filter" and loaded.refiner is None
    packing.write(tmp_path / FILE, tensors, {"config": json.dumps(fields | {"vocoder": "wavenet"})})
    with pytest.raises(CodecError, match="not an audio codec of this version"):
        AudioCodec.load(tmp_path)
    with pytest.raises(ValueError, match="vocoder 'wavenet' is none of"):
        replace(SMALL, vocoder="wavenet")


def test_a_tone_in_the_middle_of_a_bin_has_no_phase_beyond_it() -> None:
    bins = torch.tensor([40, 101])
    time = torch.arange(8_000).double() / 16_000
    wave = (torch.sin(2 * torch.pi * bins[:, None] * 20 * time) * 0.1).float()
    spectra = torch.stft(
        wave, 800, 200, window=torch.hann_window(800), center=False, return_complex=True
    )
    log, cosine, sine = features(spectra).chunk(3, -1)
    for row, number in enumerate(bins.tolist()):
        assert int(log[row, 5].argmax()) == number
        assert torch.allclose(cosine[row, 1:, number], torch.ones(1), atol=1e-3)
        assert torch.allclose(sine[row, 1:, number], torch.zeros(1), atol=1e-3)


def test_full_size_with_a_refiner_fits_the_budget() -> None:
    full = AudioCodec(AudioConfig(vocoder="istft"))
    packed = packing.pack(full.state_dict())
    assert sum(t.numel() * t.element_size() for t in packed.values()) < 22_450_000
