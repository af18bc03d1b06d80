import random

import numpy as np
import pytest

from m27.data.sources import clips
from m27.data.sources.base import Item, SourceError


def tone(seconds, amplitude=0.5, hertz=300):
    t = np.arange(int(seconds * clips.RATE)) / clips.RATE
    return (amplitude * np.sin(2 * np.pi * hertz * t)).astype(np.float32)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("M27_CACHE", str(tmp_path))
    return tmp_path


def two_items():
    yield Item("toy/a", "dog", "dog bark", audio=tone(0.2), meta={"split": "train", "n": [1, 2]})
    yield Item("toy/b", "cat", "cat", audio=tone(0.1, 0.1), meta={"split": "test"})


def test_level_makes_loudness_equal_and_keeps_peaks():
    for amplitude in (0.001, 0.3, 1.0):
        out = clips.level(tone(0.5, amplitude) + np.float32(0.2))
        assert np.sqrt((out**2).mean()) == pytest.approx(0.1, rel=0.05)
        assert abs(out.mean()) < 1e-3
    click = np.zeros(16_000, np.float32)
    click[8000] = 1
    assert np.abs(clips.level(click)).max() <= 0.9001
    assert not clips.level(np.zeros(1000, np.float32)).any()


def test_trim_cuts_silence_from_the_ends_only():
    silence = np.zeros(8000, np.float32)
    wave = np.concatenate([silence, tone(0.2), silence, tone(0.2), silence])
    out = clips.trim(wave, margin=0.05)
    assert abs(out.size - (0.4 + 0.5 + 0.1) * clips.RATE) < 400


def test_loudest_finds_the_event():
    wave = np.concatenate([tone(2, 0.01), tone(0.5, 0.5, 700), tone(2, 0.01)])
    window = clips.loudest(wave, 0.5)
    assert window.size == 8000
    assert (window**2).sum() > 0.9 * (wave**2).sum()
    assert clips.loudest(wave[:100], 0.5).size == 100
    rng = random.Random(0)
    assert all((clips.some_window(wave, 0.5, rng) ** 2).sum() > 100 for _ in range(5))


def test_stored_is_made_once_and_equal_each_time(cache):
    calls = []

    def make():
        calls.append(1)
        return two_items()

    first = list(clips.stored("toy", "1", make))
    again = list(clips.stored("toy", "1", make))
    assert len(calls) == 1
    for one, other, made in zip(first, again, two_items(), strict=True):
        assert (one.key, one.concept, one.text, one.meta) == (
            made.key,
            made.concept,
            made.text,
            made.meta,
        )
        assert one.audio.dtype == np.float32
        np.testing.assert_array_equal(one.audio, other.audio)
        np.testing.assert_allclose(one.audio, made.audio, atol=2e-5)
    assert [item.key for item in clips.on_side(first, "test")] == ["toy/b"]
    assert sorted(path.name for path in (cache / "generated").iterdir()) == ["toy-1"]


def test_a_failed_build_leaves_nothing(cache):
    def make():
        yield next(two_items())
        yield Item("toy/none", "x", "x", meta={"split": "train"})

    with pytest.raises(SourceError, match="toy/none has no samples"):
        list(clips.stored("toy", "1", make))
    assert list((cache / "generated").iterdir()) == []


def test_a_cut_store_is_named(cache):
    list(clips.stored("toy", "1", two_items))
    path = cache / "generated" / "toy-1" / "clips.i16"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(SourceError, match="toy-1: clip toy/a"):
        list(clips.stored("toy", "1", two_items))


def test_lowest_is_exact_and_ignores_order():
    keys = [f"k{i}" for i in range(50)]
    held = clips.lowest(keys, 10, "salt")
    assert len(held) == 10
    assert held == clips.lowest(reversed(keys), 10, "salt")
    assert held != clips.lowest(keys, 10, "pepper")
    assert held <= clips.lowest(keys, 11, "salt")


def test_warp_makes_a_clip_faster_and_higher():
    out = clips.warp(tone(1.0, hertz=400), 1.25)
    assert out.size == pytest.approx(0.8 * clips.RATE, abs=2)
    spectrum = np.abs(np.fft.rfft(out[2000:10_000]))
    assert spectrum.argmax() * clips.RATE / 8000 == pytest.approx(500, abs=4)


def test_a_hash_lies_in_the_unit_interval_and_goes_with_lowest():
    keys = [f"clip {number}" for number in range(400)]
    places = {key: clips.hashed(key, "some") for key in keys}
    assert all(0 <= place < 1 for place in places.values())
    assert set(sorted(keys, key=places.__getitem__)[:40]) == clips.lowest(keys, 40, "some")
