import numpy as np
import pytest

from m27.data.sources.soundfont import SoundFont, SoundFontError
from tests.data.banks import write_bank


def loudest_hertz(wave):
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(wave.size)))
    return float(np.argmax(spectrum) * 16_000 / wave.size)


@pytest.mark.parametrize(("key", "hertz"), [(69, 440.0), (81, 880.0), (57, 220.0), (76, 659.26)])
def test_a_key_sounds_at_its_frequency(tmp_path, key, hertz):
    font = SoundFont(write_bank(tmp_path / "a.sf2"))
    wave = font.note(0, key, 100, held=1.0, seconds=1.0)
    assert wave.dtype == np.float32
    assert wave.shape == (16_000,)
    assert abs(loudest_hertz(wave) - hertz) < 1.5


def test_the_loop_holds_the_note_and_letting_go_ends_it(tmp_path):
    wave = SoundFont(write_bank(tmp_path / "a.sf2")).note(0, 69, 127, held=0.6, seconds=1.0)
    # The recording is 0.1 s long: only its loop sounds at 0.5 s.
    assert 0.3 < np.sqrt((wave[7000:9000] ** 2).mean()) < 0.4
    assert np.abs(wave[11_000:]).max() < 0.01


def test_a_softer_strike_is_softer(tmp_path):
    font = SoundFont(write_bank(tmp_path / "a.sf2"))
    loud, soft = (np.abs(font.note(0, 69, v, 0.5, 0.5)).max() for v in (127, 64))
    assert soft == pytest.approx(loud * (64 / 127) ** 2, rel=0.02)


def test_what_is_not_there_is_named(tmp_path):
    font = SoundFont(write_bank(tmp_path / "small.sf2", keys=(60, 70)))
    with pytest.raises(SoundFontError, match=r"small\.sf2: no program 5"):
        font.note(5, 60, 90, 0.5, 0.5)
    with pytest.raises(SoundFontError, match="no zone for key 71"):
        font.note(0, 71, 90, 0.5, 0.5)
    broken = tmp_path / "broken.sf2"
    broken.write_bytes(b"RIFF\0\0\0\0WAVEfmt ")
    with pytest.raises(SoundFontError, match=r"broken\.sf2: not a SoundFont"):
        SoundFont(broken)
    cut = tmp_path / "cut.sf2"
    cut.write_bytes((tmp_path / "small.sf2").read_bytes()[:300])
    with pytest.raises(SoundFontError, match="chunk"):
        SoundFont(cut)
