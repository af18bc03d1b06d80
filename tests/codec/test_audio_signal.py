"""The codec's signal processing: features against their definitions, pitch, synthesis, the
weights' reader."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from m27.codec import mel, source_filter
from m27.codec.mel import (
    acoustic_log_mel,
    hold,
    mel_filters,
    pitch_hz,
    pitch_salience,
    pitch_track,
    whisper_log_mel,
)
from m27.codec.source_filter import Frames, advance, pulses, synthesise
from m27.codec.whisper_encoder import CTranslate2Error, WhisperEncoder, read_ctranslate2


def tone(hertz: float, harmonics: int = 1, samples: int = 16_000) -> torch.Tensor:
    """A tone ``[1, samples]`` with falling harmonics."""
    time = torch.arange(samples, dtype=torch.float64) / 16_000
    parts = [torch.sin(2 * math.pi * hertz * k * time) / k for k in range(1, harmonics + 1)]
    return (torch.stack(parts).sum(0) * 0.2).float()[None]


@pytest.mark.parametrize("hertz", [60.0, 110.0, 220.5, 440.0, 1000.0, 1500.0])
@pytest.mark.parametrize("harmonics", [1, 5])
def test_pitch_of_tones(hertz: float, harmonics: int) -> None:
    pitch, voiced = pitch_track(pitch_salience(tone(hertz, harmonics)))
    assert pitch.shape == voiced.shape == (1, 80)
    middle = slice(5, 74)
    assert bool(voiced[0, middle].all())
    assert torch.allclose(pitch_hz(pitch[0, middle]), torch.tensor(hertz), rtol=0.01)


def test_noise_and_silence_have_no_pitch() -> None:
    noise = torch.randn(1, 16_000, generator=torch.Generator().manual_seed(0)) * 0.1
    assert float(pitch_track(pitch_salience(noise))[1].float().mean()) < 0.05
    assert not bool(pitch_track(pitch_salience(torch.zeros(1, 4_000)))[1].any())


def test_hold_fills_from_the_last_voiced_frame() -> None:
    pitch = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]])
    voiced = torch.tensor([[False, True, False, True, False]])
    assert hold(pitch, voiced).tolist() == [[2.0, 2.0, 2.0, 4.0, 4.0]]
    assert hold(pitch, voiced & False).tolist() == [[5.0] * 5]


def test_mel_filters_are_triangles_of_equal_area() -> None:
    filters = mel_filters(40, 2048)
    areas = filters.sum(1) * 16_000 / 2048
    assert filters.shape == (40, 1025) and float(filters.min()) == 0
    assert torch.allclose(areas, torch.ones(40), atol=0.1)
    assert bool((filters.argmax(1).diff() > 0).all())


def test_shapes_and_loudness_of_features() -> None:
    wave = tone(300, 4, 8_000)
    assert whisper_log_mel(wave).shape == (1, 80, 50)
    quiet, loud = acoustic_log_mel(wave * 0.1), acoustic_log_mel(wave)
    assert loud.shape == (1, 40, 96)
    assert float((loud - quiet).mean()) > 0.05


def test_whisper_log_mel_scale() -> None:
    silence = whisper_log_mel(torch.zeros(1, 3_200))
    assert torch.allclose(silence, torch.full_like(silence, -1.5))
    mel = whisper_log_mel(tone(440, 1))
    assert float(mel.max() - mel.min()) <= 2.0 + 1e-5
    assert abs(int(mel[0, :, 50].argmax()) - int(mel_filters(80, 400)[:, 11].argmax())) <= 1


def test_phase_is_the_integral_of_pitch() -> None:
    pitch = torch.tensor([[100.0, 200.0, 200.0]])
    phase = advance(pitch, torch.tensor([100.0]), torch.zeros(1, dtype=torch.float64))
    expected = torch.tensor([[0.0, 1.25, 1.25 + 1.875, 1.25 + 1.875 + 2.5]], dtype=torch.float64)
    assert torch.allclose(phase, expected % 1)


def test_pulses_have_unit_power_and_the_right_pitch() -> None:
    pitch = torch.full((1, 80), 160.0)
    wave = pulses(pitch, pitch[:, 0], torch.zeros(1, dtype=torch.float64))
    assert wave.shape == (1, 16_000)
    assert abs(float(wave.square().mean()) - 1) < 0.05
    spectrum = torch.fft.rfft(wave[0]).abs()  # one bin a Hz
    assert spectrum[160::160][:49].min() > 100 * spectrum[80::160][:49].max()
    assert float(spectrum[7_950:].max()) < 0.02 * float(spectrum[160])


def test_pulses_are_the_sum_of_their_harmonics_also_just_before_a_period() -> None:
    pitch = torch.full((7, 4), 160.0)
    phase = -torch.tensor([0.0, 1e-5, 3.5e-5, 4e-5, 5e-5, 1e-4, 0.3]).double()
    wave = pulses(pitch, pitch[:, 0], phase)
    time = torch.arange(1, 801).double() / 16_000
    turns = phase[:, None] + 160 * time
    count = 7900 // 160
    angle = turns[..., None] * torch.arange(1, count + 1).double() * (2 * math.pi)
    exact = angle.cos().sum(-1) * math.sqrt(2 / count)
    assert float((wave - exact).abs().max()) < 2e-3


def test_synthesis_obeys_its_envelopes() -> None:
    frames = 80
    pitch = torch.full((1, frames), 200.0)
    start, phase = pitch[:, 0], torch.zeros(1, dtype=torch.float64)
    off = torch.full((1, frames, 64), -14.0)
    on = torch.full((1, frames, 64), -3.0)
    hummed = synthesise(Frames(pitch, start, phase, 0, on, off))
    hissed = synthesise(Frames(pitch, start, phase, 0, off, on))
    for wave in (hummed, hissed):
        level = float(wave[:, 800:-800].square().mean().sqrt())
        assert abs(level / math.exp(-3) - 1) < 0.06
    assert bool(pitch_track(pitch_salience(hummed))[1][0, 5:74].all())
    assert float(pitch_track(pitch_salience(hissed))[1].float().mean()) < 0.05
    low = off.clone()
    low[..., :20] = -3.0
    spectrum = torch.fft.rfft(synthesise(Frames(pitch, start, phase, 0, off, low))[0]).abs()
    assert float(spectrum[6_000:].mean()) < 0.01 * float(spectrum[:500].mean())


def variable(name: str, array: np.ndarray, kind: int) -> bytes:
    """One variable of a CTranslate2 file."""
    raw = array.tobytes()
    label = name.encode() + b"\0"
    head = struct.pack("<H", len(label)) + label + struct.pack("<B", array.ndim)
    return (
        head
        + struct.pack(f"<{array.ndim}I", *array.shape)
        + struct.pack("<BI", kind, len(raw))
        + raw
    )


def test_reads_ctranslate2_in_parts_and_int8(tmp_path: Path) -> None:
    half = np.arange(6, dtype=np.float16).reshape(2, 3)
    steps = np.array([[127, -127], [64, 0]], np.int8)
    scale = np.array([127.0, 64.0], np.float32)
    data = struct.pack("<IH", 6, 5) + b"Spec\0" + struct.pack("<II", 3, 3)
    data += variable("a", half, 4) + variable("w", steps, 1) + variable("w_scale", scale, 0)
    data += struct.pack("<I", 0)
    one, two = tmp_path / "1", tmp_path / "2"
    one.write_bytes(data[:40])
    two.write_bytes(data[40:])
    arrays = read_ctranslate2([one, two])
    assert np.array_equal(arrays["a"], half.astype(np.float32))
    assert arrays["w"].tolist() == [[1.0, -1.0], [1.0, 0.0]]
    with pytest.raises(CTranslate2Error, match="truncated"):
        read_ctranslate2([one])
    one.write_bytes(struct.pack("<I", 9) + data[4:])
    with pytest.raises(CTranslate2Error, match="format 9"):
        read_ctranslate2([one])


def test_whisper_encoder_taps_its_blocks() -> None:
    torch.manual_seed(0)
    encoder = WhisperEncoder(2, 32, 2, 100)
    mel = torch.randn(1, 80, 60)
    first, last = encoder(mel, taps=(1,))
    assert first.shape == last.shape == (1, 30, 32)
    assert torch.allclose(encoder.blocks[1](first), last, atol=1e-6)


def test_shared_tables_can_be_trained_with_whoever_made_them() -> None:
    """They are made once a process, maybe while something is only heard; a loss through them comes later."""
    made = (mel.mel_filters, mel.hann, mel._lag_table, source_filter.noise_table, source_filter._spread)
    for table in made:
        table.cache_clear()
    with torch.inference_mode():
        wave = torch.randn(1, 4_000)
        mel.whisper_log_mel(wave), mel.acoustic_log_mel(wave), mel.pitch_salience(wave)
        source_filter.noise_table(), source_filter._spread(24)
    assert not source_filter.noise_table().is_inference() and not source_filter._spread(24).is_inference()
    given = torch.randn(1, 4_000, requires_grad=True)
    heard = mel.whisper_log_mel(given).sum() + mel.acoustic_log_mel(given).sum()
    (heard + mel.pitch_salience(given).sum()).backward()
    assert given.grad is not None
